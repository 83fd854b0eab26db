cimport cython


@cython.locals(row=Py_ssize_t, place=Py_ssize_t)
cdef void _gather(
    double[:, :] sums,
    long long[:] last,
    list cluster_ids,
    dict place_of,
    const double[:] impressions_session,
    const double[:] reward_session,
    const double[:] draws_session,
    const double[:] impressions_long,
    const double[:] reward_long,
    const long long[:] last_impression_at,
    double session,
    double long,
) except *
