cimport cython


@cython.locals(row=Py_ssize_t, column=Py_ssize_t, last=Py_ssize_t, types=Py_ssize_t, place=Py_ssize_t, actions=double)
cdef void _pack(
    double[:, :] matrix,
    const long long[:] rows,
    const long long[:] topic_ids,
    const double[:, :] action_counts,
    const double[:] importance,
    const double[:] impressions_session,
    const double[:] reward_session,
    const double[:] impressions_long,
    const double[:] reward_long,
    const double[:] draws_session,
) except *
