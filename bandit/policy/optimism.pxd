cimport cython
from libc cimport math


@cython.locals(row=Py_ssize_t, rate=double, residual=double, mean=double, in_flight=double, certainty=double)
cdef void _score(
    double[:] scores,
    const float[:] rates,
    const double[:] residuals,
    const double[:] impressions_long,
    const double[:] impressions_session,
    const double[:] draws_session,
    double strength,
    double impressions_per_query,
    double limit,
    double optimism,
) except *
