cimport cython


@cython.locals(row=Py_ssize_t, column=Py_ssize_t, last=Py_ssize_t, types=Py_ssize_t, place=Py_ssize_t, actions=double)
cdef void _pack(
    double[:, ::1] matrix,
    const long long[::1] rows,
    const long long[::1] topic_ids,
    const double[:, ::1] action_counts,
    const double[::1] importance,
    const double[::1] impressions_session,
    const double[::1] reward_session,
    const double[::1] impressions_long,
    const double[::1] reward_long,
    const double[::1] draws_session,
) except *
