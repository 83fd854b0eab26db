cimport cython

cdef int ELEMENT

@cython.locals(end=Py_ssize_t, start=Py_ssize_t)
cpdef Py_ssize_t payload_start(bytes raw, int tag) except -2

@cython.locals(length=Py_ssize_t, shift=int, byte=int)
cdef Py_ssize_t _inside(bytes raw, Py_ssize_t at, int tag, Py_ssize_t end) except -2

@cython.locals(end=Py_ssize_t, count=Py_ssize_t, at=Py_ssize_t)
cpdef varints(bytes raw, Py_ssize_t start)

@cython.locals(place=Py_ssize_t, shift=int, at=Py_ssize_t, value=cython.ulonglong, part=cython.ulonglong)
cdef void _fill(unsigned long long[::1] numbers, bytes raw, Py_ssize_t start) except *

@cython.locals(end=Py_ssize_t, found=list, at=Py_ssize_t, length=Py_ssize_t, shift=int, byte=int, more=bint)
cpdef texts(bytes raw, int tag)
