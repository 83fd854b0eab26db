cimport cython
from libc cimport math

cdef int _MAX_NEWTON_STEPS
cdef double _ROUNDING


@cython.locals(row=Py_ssize_t, n=Py_ssize_t, rest=double, left=double, total=double, again=bint)
cdef void _water_fill(double[:] quotas, const double[:] weights, const double[:] caps, double k) except *

@cython.locals(row=Py_ssize_t, n=Py_ssize_t, rest=double, left=double, total=double, top=double, nu=double, slope=double, inverse=double,
               step=double, quota=double, again=bint, _=int)
cdef void _solve_budgeted(double[:] quotas, const double[:] scores, const double[:] budgets, const double[:] caps, double k) except *

@cython.locals(n=Py_ssize_t, row=Py_ssize_t, most=double)
cdef bint _mark_uncapped(double[:] quotas, const double[:] caps, double k) except -1

@cython.locals(n=Py_ssize_t, row=Py_ssize_t, best=Py_ssize_t, value=double, rest=double, taken=double)
cdef double _greedy(double[:] passed, const double[:] scores, const double[:] caps, double k) except? -1.0

@cython.locals(n=Py_ssize_t, row=Py_ssize_t, total=double, sound=bint)
cdef bint _fill_budgets(double[:] budgets, const double[:] scores, const double[:] impressions, const double[:] caps, double strength,
                  double whole) except -1

@cython.locals(row=Py_ssize_t, total=double, most=double, expected=double, positive=bint)
cpdef bint is_distribution(const double[:] quotas, double k, const double[:] caps) except -1

@cython.locals(row=Py_ssize_t)
cdef Py_ssize_t _first_outside(const double[:] values, double low) except -2

@cython.locals(row=Py_ssize_t, items=double)
cdef void _fill_caps(double[:] caps, const long long[:] offsets, double most) except *
