cimport cython


@cython.locals(row=Py_ssize_t, place=Py_ssize_t)
cdef void _gather(
    double[:, ::1] sums,
    long long[::1] last,
    list cluster_ids,
    dict place_of,
    const double[::1] impressions_session,
    const double[::1] reward_session,
    const double[::1] draws_session,
    const double[::1] impressions_long,
    const double[::1] reward_long,
    const long long[::1] last_impression_at,
    double session,
    double long,
) except *
