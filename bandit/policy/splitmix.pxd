cimport cython

cdef unsigned long long _MASK, _STEP, _FIRST, _SECOND
cdef double _UNIT

@cython.locals(place=Py_ssize_t, mixed=cython.ulonglong, numbers=list)
cdef list _fractions(unsigned long long state, Py_ssize_t count)
