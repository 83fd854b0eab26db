cimport cython


@cython.locals(row=Py_ssize_t, first=Py_ssize_t, second=Py_ssize_t, place=Py_ssize_t, width=Py_ssize_t, total=double, value=double,
               factor=double)
cdef void _predict(double[:] result, const float[:, :] features, const float[:] weights) except *
