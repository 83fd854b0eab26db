cimport cython
from libc cimport math

cdef int _MAX_NEWTON_STEPS
cdef double _ROUNDING


@cython.locals(row=Py_ssize_t, n=Py_ssize_t, rest=double, left=double, total=double, again=bint)
cdef void _share(double[::1] quotas, const double[::1] weights, const double[::1] caps, double k) except *

@cython.locals(row=Py_ssize_t, n=Py_ssize_t, rest=double, left=double, total=double, top=double, nu=double, slope=double, inverse=double,
               step=double, quota=double, again=bint, _=int)
cdef void _spend(double[::1] quotas, const double[::1] scores, const double[::1] budgets, const double[::1] caps, double k) except *

@cython.locals(n=Py_ssize_t, row=Py_ssize_t, most=double)
cdef bint _start(double[::1] quotas, const double[::1] caps, double k) except -1

@cython.locals(n=Py_ssize_t, row=Py_ssize_t, best=Py_ssize_t, value=double, rest=double)
cdef double _greedy(double[::1] taken, const double[::1] scores, const double[::1] caps, double k) except? -1.0

@cython.locals(n=Py_ssize_t, row=Py_ssize_t, total=double, sound=bint)
cdef bint _spread(double[::1] budgets, const double[::1] scores, const double[::1] impressions, const double[::1] caps, double strength,
                  double whole) except -1

@cython.locals(row=Py_ssize_t, total=double, most=double, expected=double, positive=bint)
cpdef bint is_distribution(const double[::1] quotas, double k, const double[::1] caps) except -1

@cython.locals(row=Py_ssize_t)
cdef Py_ssize_t _first_outside(const double[::1] values, double low) except -2
