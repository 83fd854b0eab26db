cimport cython


@cython.locals(row=Py_ssize_t, column=Py_ssize_t, position=Py_ssize_t)
cdef void _gather(
    double[:, :] values,
    list cluster_ids,
    dict positions,
    const double[:, :] stored,
    const double[:] factors,
) except *
