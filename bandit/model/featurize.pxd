cimport cython
from libc cimport math

cdef double _DEAD_ZONE


@cython.locals(row=Py_ssize_t, column=Py_ssize_t, n=Py_ssize_t, types=Py_ssize_t, reward=double, impressions=double,
               total_importance=double, clusters=double, day=double, topic_mean=double, base=double, rate=double, session=double, actions=double, age_days=double,
               impressions_session="const double[:]", reward_session="const double[:]", impressions_long="const double[:]",
               reward_long="const double[:]", topic_ids="const long long[:]", topic_history="const double[:]",
               item_counts="const long long[:]", action_counts="const double[:, :]", importance="const double[:]",
               last_action_at="const long long[:]", topic_means=dict, mean=double, strength=double)
cdef void _fill(float[:, :] matrix, object profile, const double[:, :] sums, object prior, long long now) except *

cdef double _zero_if_tiny(double value)
