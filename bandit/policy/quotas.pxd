cimport cython
from libc cimport math

cdef int _MAX_NEWTON_STEPS
cdef double _ROUNDING, _LEAST_WEIGHT, _LEAST_VALUE


@cython.locals(decision=Py_ssize_t, row=Py_ssize_t, start=Py_ssize_t, end=Py_ssize_t, rest=double, left=double, top=double, total=double,
               again=bint)
cdef Py_ssize_t _water_fill(double[:] quotas, double[:] weights, const double[:] caps, const long long[:] offsets,
                            const double[:] k) except -2

@cython.locals(decision=Py_ssize_t, row=Py_ssize_t, start=Py_ssize_t, end=Py_ssize_t, rest=double, left=double, top=double, total=double,
               nu=double, quota=double, again=bint)
cdef Py_ssize_t _solve_budgeted(double[:] quotas, const double[:] scores, const double[:] budgets, const double[:] caps,
                                const long long[:] offsets, const double[:] k) except -2

@cython.locals(row=Py_ssize_t, nu=double, total=double, slope=double, inverse=double, step=double, _=int)
cdef double _root(const double[:] quotas, const double[:] scores, const double[:] budgets, Py_ssize_t start, Py_ssize_t end, double top,
                  double left) except? -1.0

@cython.locals(row=Py_ssize_t, most=double)
cdef bint _mark_uncapped(double[:] quotas, const double[:] caps, Py_ssize_t start, Py_ssize_t end, double k) except -1

@cython.locals(row=Py_ssize_t, total=double, most=double, expected=double, positive=bint)
cdef bint _is_distribution(const double[:] quotas, const double[:] caps, Py_ssize_t start, Py_ssize_t end, double k) except -1

@cython.locals(row=Py_ssize_t, best=Py_ssize_t, value=double, rest=double, taken=double, _=Py_ssize_t)
cdef double _greedy(double[:] passed, const double[:] scores, const double[:] caps, Py_ssize_t start, Py_ssize_t end,
                    double k) except? -1.0

@cython.locals(decision=Py_ssize_t, row=Py_ssize_t, start=Py_ssize_t, end=Py_ssize_t, mean=double, strength=double, share=double,
               total=double, value=double, sound=bint)
cdef bint _fill_budgets(double[:] budgets, const double[:] scores, const double[:] impressions, const double[:] caps,
                        const long long[:] offsets, const double[:] k, tuple terms) except -1

@cython.locals(row=Py_ssize_t)
cdef Py_ssize_t _first_outside(const double[:] values, double low) except -2

@cython.locals(row=Py_ssize_t, items=double)
cdef void _fill_caps(double[:] caps, const long long[:] offsets, double most) except *
