cimport cython
from libc cimport math


@cython.locals(row=Py_ssize_t, rate=double, residual=double, mean=double, in_flight=double, certainty=double)
cdef void _score(
    double[::1] scores,
    const float[:] rates,
    const double[::1] residuals,
    const double[::1] impressions_long,
    const double[::1] impressions_session,
    const double[::1] draws_session,
    double strength,
    double impressions_per_query,
    double limit,
    double optimism,
) except *
