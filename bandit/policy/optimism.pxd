cimport cython
from libc cimport math


@cython.locals(row=Py_ssize_t, rate=double, residual=double, mean=double, in_flight=double, certainty=double,
               impressions_session="const double[:]", impressions_long="const double[:]", draws_session="const double[:]",
               impressions_per_query=double, limit=double, optimism=double)
cdef void _score(
    double[:] scores,
    const float[:] rates,
    const double[:] residuals,
    const double[:, :] sums,
    double strength,
    object exploration,
) except *
