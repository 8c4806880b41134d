"""The moves, for Python: integers in, (result, errno) out; `calls/remap.py` says what they mean."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

import os

from pagemove._native.core cimport prepare


cdef extern from "process.h" nogil:
    struct pm_process:
        int uffd
        uint32_t defects
    int pm_process_get(pm_process **process)
    void pm_process_reopen()
    int pm_process_set_defects(uint32_t defects)
    int PM_DEFECT_STALE_EAGAIN
    int PM_DEFECT_HUGE_ZERO
    int PM_DEFECT_REFUSE
    int PM_DEFECT_SPLIT_SPIN

cdef extern from "guard.h" nogil:
    uint32_t pm_defects_of(const char *release)

cdef extern from "moves.h" nogil:
    struct pm_many:
        uint64_t dst, src, unit
        int64_t dst_limit, src_limit
        const int64_t *dst_pages
        const int64_t *src_pages
        size_t count
        unsigned flags
        size_t index
        uint64_t partial, moved
    int64_t pm_move(pm_process *process, uint64_t dst, uint64_t src, uint64_t length,
                    unsigned flags, int wait)
    int pm_move_many(pm_process *process, pm_many *many)
    int64_t pm_first_outside(const int64_t *pages, size_t count, int64_t limit)

cdef extern from "paged.h" nogil:
    uint64_t pm_paged_at(uint64_t start, uint64_t length)

cdef extern from "descriptors.h" nogil:
    bint pm_may_print(int fd)

cdef extern from "hotcall.h":
    struct PyMethodDef:
        pass
    PyMethodDef pm_hotcall_method
    void pm_hotcall_set_fallback(object callable)

cdef extern from "Python.h":
    object PyCFunction_NewEx(PyMethodDef *method, void *self, object module)


prepare()

DEFECT_STALE_EAGAIN = PM_DEFECT_STALE_EAGAIN
DEFECT_HUGE_ZERO = PM_DEFECT_HUGE_ZERO
DEFECT_REFUSE = PM_DEFECT_REFUSE
DEFECT_SPLIT_SPIN = PM_DEFECT_SPLIT_SPIN

remap_anon_pages = PyCFunction_NewEx(&pm_hotcall_method, NULL, "pagemove")


def set_fallback(callable):
    """Set what answers the calls of `remap_anon_pages` that are not simple or do not succeed."""
    pm_hotcall_set_fallback(callable)


cdef int _process(pm_process **process) except -1:
    cdef int error = pm_process_get(process)
    if error:
        raise OSError(-error, f"userfaultfd: {os.strerror(-error)}")
    return 0


def descriptor():
    """Return the userfaultfd of this process, opened on the first call, and anew after a fork."""
    cdef pm_process *process
    _process(&process)
    return process.uffd


def reopen():
    """Forget the descriptors: the program closed them. The next call opens new ones."""
    pm_process_reopen()


def may_tell():
    """Whether descriptor 2 is still standard error, not a file that has got its number."""
    return pm_may_print(2)


def paged_at(uint64_t start, uint64_t length):
    """Return where paged memory begins that has a byte of the range; 0 if none has."""
    return pm_paged_at(start, length)


def defects():
    """Return the known defects of the running kernel, as DEFECT_ bits."""
    cdef pm_process *process
    _process(&process)
    return process.defects


def set_defects(uint32_t defects):
    """Pretend to run on a kernel with these defects; for tests."""
    cdef int error = pm_process_set_defects(defects)
    if error:
        raise OSError(-error, f"userfaultfd: {os.strerror(-error)}")


def defects_of(str release):
    """Return the known defects of a kernel release, as DEFECT_ bits."""
    cdef bytes text = release.encode()
    cdef const char *name = text
    return pm_defects_of(name)


def move(uint64_t dst, uint64_t src, uint64_t length, unsigned flags):
    """Move pages; return the bytes moved, or minus the errno where nothing was."""
    cdef pm_process *process
    cdef int64_t result
    _process(&process)
    with nogil:
        result = pm_move(process, dst, src, length, flags, 1)
    return result


cdef class Indices:
    """An array of page numbers, held: contiguous, aligned, int64; anything else is refused."""

    cdef Py_buffer _view
    cdef const int64_t *pages
    cdef size_t count

    def __cinit__(self, object array):
        PyObject_GetBuffer(array, &self._view, PyBUF_SIMPLE)
        self.pages = <const int64_t *> self._view.buf
        self.count = self._view.len // sizeof(int64_t)
        if self._view.itemsize != sizeof(int64_t) or <uint64_t> self._view.buf % sizeof(int64_t):
            raise TypeError("page numbers must be contiguous aligned int64")

    def __dealloc__(self):
        PyBuffer_Release(&self._view)

    def first_outside(self, int64_t limit):
        """Return the position of the first index outside [0, limit), or -1."""
        cdef int64_t result
        with nogil:
            result = pm_first_outside(self.pages, self.count, limit)
        return result


def move_many(uint64_t dst, uint64_t src, uint64_t unit, int64_t dst_limit, int64_t src_limit,
              Indices dst_pages not None, Indices src_pages not None, unsigned flags,
              size_t index, uint64_t partial):
    """Go on with many moves from (index, partial); return (errno or 0, index, partial, moved).

    `moved` counts the bytes of this call alone.
    """
    cdef pm_process *process
    cdef pm_many many
    cdef int error
    if dst_pages.count != src_pages.count:
        raise ValueError("as many destinations as sources are needed")
    _process(&process)
    memset(&many, 0, sizeof(many))
    many.dst = dst
    many.src = src
    many.unit = unit
    many.dst_limit = dst_limit
    many.src_limit = src_limit
    many.dst_pages = dst_pages.pages
    many.src_pages = src_pages.pages
    many.count = dst_pages.count
    many.flags = flags
    many.index = index
    many.partial = partial
    with nogil:
        error = pm_move_many(process, &many)
    return -error, many.index, many.partial, many.moved
