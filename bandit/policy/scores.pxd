cimport cython
from libc cimport math

cdef double _LEAST_SHARE
cdef Py_ssize_t _SHRUNK_RATE


@cython.locals(decision=Py_ssize_t, row=Py_ssize_t, start=Py_ssize_t, end=Py_ssize_t, count=Py_ssize_t, average=double,
               rewards="const double[:]", impressions="const double[:]")
cdef void _fill_rates(double[:] scores, double[:] seen, evidence, const long long[:] offsets) except *

@cython.locals(row=Py_ssize_t, half=Py_ssize_t, whole=Py_ssize_t, first=Py_ssize_t, total=double)
cdef double _sum(double[:] values, Py_ssize_t start, Py_ssize_t count) except? -1.0

@cython.locals(row=Py_ssize_t, rate=double, residual=double, mean=double, in_flight=double, certainty=double, limit=double,
               optimism=double, per_query=double, impressions="const double[:]", session="const double[:]", draws="const double[:]")
cdef void _add_optimism(double[:] scores, const float[:, :] features, const double[:, :] sums, double strength, exploration) except *
