cimport cython

cdef int ELEMENT

cpdef doubles(bytes raw, int tag)

@cython.locals(start=Py_ssize_t, end=Py_ssize_t, count=Py_ssize_t, at=Py_ssize_t)
cpdef integers(bytes raw, int tag)

@cython.locals(start=Py_ssize_t, end=Py_ssize_t)
cdef Py_ssize_t _numbers_start(bytes raw, int tag) except -2

@cython.locals(length=Py_ssize_t, shift=int, byte=int)
cdef Py_ssize_t _inside(bytes raw, Py_ssize_t at, int tag, Py_ssize_t end) except -2

@cython.locals(place=Py_ssize_t, shift=int, at=Py_ssize_t, value=cython.ulonglong, part=cython.ulonglong)
cdef void _fill(unsigned long long[:] numbers, bytes raw, Py_ssize_t start) except *

@cython.locals(end=Py_ssize_t, at=Py_ssize_t, length=Py_ssize_t, shift=int, byte=int, more=bint, found=list)
cpdef texts(bytes raw, int tag)
