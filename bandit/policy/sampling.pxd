cimport cython
from libc cimport math

cdef double _WHOLE, _LEAST_WEIGHT

@cython.locals(n=Py_ssize_t, last=Py_ssize_t, other=Py_ssize_t, step=Py_ssize_t, place=Py_ssize_t, whole=long, taken=long, before=long,
               number=double, quota=double, first=double, cumulated=double, nearest=double, passed=double, order=list, counts=list)
cpdef list draw_counts(list quotas, list numbers)

@cython.locals(position=Py_ssize_t, row=Py_ssize_t, count=Py_ssize_t, needed=Py_ssize_t, used=Py_ssize_t, start=Py_ssize_t,
               end=Py_ssize_t, place=Py_ssize_t, floor=Py_ssize_t, quota=double, propensity=double, giving=list,
               numbers=list, found=list, own=list, lower=list, upper=list, propensities=list, drawn=list)
cpdef list draw_items(rows, list quotas, list counts, list offsets, const double[:] weights, rng)

@cython.locals(place=Py_ssize_t, low=double, high=double, mixed=list)
cpdef list mixed_inclusion(list lower, list upper, double rest)

@cython.locals(n=Py_ssize_t, place=Py_ssize_t, whole=Py_ssize_t, weight=double, largest=double, rest=double, alpha=double,
               relative=list, descending=list, rests=list)
cpdef list inclusion_probabilities(list weights, Py_ssize_t count)
