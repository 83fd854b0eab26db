cimport cython


@cython.locals(row=Py_ssize_t, column=Py_ssize_t, last=Py_ssize_t, position=Py_ssize_t, topic_ids="const long long[:]",
               actions="const double[:]", importance="const double[:]")
cdef void _pack(double[:, :] matrix, const long long[:] rows, object profile, const double[:, :] sums) except *
