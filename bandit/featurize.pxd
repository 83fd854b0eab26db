cimport cython
from libc cimport math

cdef double _LEAST


@cython.locals(row=Py_ssize_t, column=Py_ssize_t, n=Py_ssize_t, types=Py_ssize_t, reward=double, impressions=double,
               total_importance=double, clusters=double, day=double, topic_mean=double, base=double, rate=double, session=double, actions=double, age_days=double)
cdef void _fill(
    float[:, ::1] matrix,
    const long long[::1] topic_ids,
    dict topic_means,
    double mean,
    double strength,
    const double[::1] impressions_session,
    const double[::1] reward_session,
    const double[::1] impressions_long,
    const double[::1] reward_long,
    const double[::1] topic_history,
    const long long[::1] item_counts,
    const double[:, ::1] action_counts,
    const double[::1] importance,
    const long long[::1] last_action_at,
    long long now,
) except *

cdef double _felt(double value)
