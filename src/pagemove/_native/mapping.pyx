"""Who owns memory: `Mapping` owns one anonymous mapping, `Hold` borrows another object's buffer."""

from cpython.buffer cimport (
    PyBUF_STRIDES,
    PyBuffer_FillInfo,
    PyBuffer_IsContiguous,
    PyBuffer_Release,
    PyObject_CheckBuffer,
    PyObject_GetBuffer,
)
from libc.errno cimport errno
from libc.stdint cimport uint64_t, uintptr_t

import os

from pagemove._native.core cimport pm_generation, prepare


cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void *addr, size_t length)
    int madvise(void *addr, size_t length, int advice)
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE
    int MADV_DONTFORK
    void *MAP_FAILED

cdef extern from "pager/memories.h" nogil:
    struct pg_memory:
        pass
    pg_memory *pg_enter_memory(uint64_t base, uint64_t length)
    void pg_leave_memory(pg_memory *memory)


prepare()


def generation():
    """Distinguish this process from those it was forked from, and from its children.

    A number that is another in every process of a line of forks, as a pid is not: that is reused.
    """
    return pm_generation()


cdef class Mapping:
    """One private anonymous mapping, unmapped when the last buffer of it is gone.

    It is not inherited by a fork. In a child an inherited object is dead: it refuses buffers, and
    unmaps nothing. The child keeps its address range reserved, since arrays may lead there: a touch
    is SIGSEGV.
    """

    cdef uint64_t _address
    cdef uint64_t _nbytes
    cdef uint64_t _born
    cdef pg_memory *_entry
    cdef Py_ssize_t _exports
    cdef object __weakref__

    def __cinit__(self, *args, **kwargs):
        self._address = 0
        self._entry = NULL
        self._nbytes = 0
        self._exports = 0

    def _map(self, uint64_t nbytes, uint64_t alignment):
        """Map `nbytes` at a multiple of `alignment`, both multiples of the page size."""
        cdef uint64_t spare = alignment - <uint64_t> os.sysconf("SC_PAGESIZE")
        cdef uint64_t start, lead
        cdef void *found
        if self._address:
            raise ValueError("this mapping is mapped already")
        if nbytes + spare < nbytes:
            raise MemoryError(f"cannot map {nbytes} bytes: larger than any address space")
        with nogil:
            found = mmap(NULL, nbytes + spare, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if found == MAP_FAILED:
            raise MemoryError(
                f"cannot map {nbytes} bytes: {os.strerror(errno)}; by default the kernel refuses "
                "a mapping that is larger than all memory and swap"
            )
        start = <uintptr_t> found
        lead = -start % alignment
        if lead:
            munmap(found, lead)
        if spare > lead:
            munmap(<void *> <uintptr_t> (start + lead + nbytes), spare - lead)
        self._address = start + lead
        self._nbytes = nbytes
        self._born = pm_generation()
        if madvise(<void *> <uintptr_t> self._address, nbytes, MADV_DONTFORK):
            code = errno
            self._unmap()
            raise OSError(code, f"madvise(MADV_DONTFORK): {os.strerror(code)}")
        # Another thread may fork, and wait for one that wants the interpreter.
        with nogil:
            self._entry = pg_enter_memory(self._address, nbytes)
        if self._entry == NULL:
            self._unmap()
            raise MemoryError

    cdef void _unmap(self) noexcept:
        cdef pg_memory *entry = self._entry
        cdef uint64_t address = self._address
        self._entry = NULL
        self._address = 0
        if not address or self._born != pm_generation():
            return
        if entry == NULL:
            munmap(<void *> <uintptr_t> address, self._nbytes)
            return
        with nogil:
            pg_leave_memory(entry)

    def __dealloc__(self):
        self._unmap()

    @property
    def address(self):
        """Address of the first byte. ValueError once closed."""
        if not self._address:
            raise ValueError(f"{type(self).__name__} is closed")
        return self._address

    @property
    def nbytes(self):
        """Length in bytes, a whole number of pages."""
        return self._nbytes

    @property
    def closed(self):
        """Whether the mapping is gone, or belongs to the process this one was forked from."""
        return not self._address or self._born != pm_generation()

    @property
    def inherited(self):
        """Whether it belongs to the process this one was forked from."""
        return self._address and self._born != pm_generation()

    def close(self):
        """Unmap the memory. Twice is fine, and so is a forked child, where it does nothing.

        Raises
        ------
        BufferError
            Arrays or memoryviews of it are still in use.

        Examples
        --------
        >>> import pagemove
        >>> memory = pagemove.Memory(pagemove.PAGE_SIZE)
        >>> memory.close()
        >>> memory.closed
        True
        """
        if self._born != pm_generation():
            return
        if self._exports:
            raise BufferError(
                f"cannot close {type(self).__name__}: {self._exports} buffers of it (arrays, "
                "memoryviews) are still in use; delete them first"
            )
        self._unmap()

    def __getbuffer__(self, Py_buffer *view, int flags):
        if not self._address:
            raise ValueError(f"{type(self).__name__} is closed")
        if self._born != pm_generation():
            raise ValueError(
                f"{type(self).__name__} at {self._address:#x} belongs to the parent process: it is "
                "not inherited by a fork; make a new one in the child"
            )
        PyBuffer_FillInfo(view, self, <void *> <uintptr_t> self._address, self._nbytes, 0, flags)
        self._exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self._exports -= 1


cdef class Hold:
    """Holds the buffer of an object, so that its memory stays where it is.

    `BufferError` where `writable` is asked of a read-only buffer, `TypeError` for an object with
    no C-contiguous buffer.
    """

    cdef Py_buffer _view
    cdef bint _held

    def __cinit__(self, object buffer, bint writable=False):
        self._held = False
        if not PyObject_CheckBuffer(buffer):
            raise TypeError(
                f"{type(buffer).__name__} has no buffer: pass a Memory, a NumPy array, or another "
                "object with a C-contiguous buffer"
            )
        PyObject_GetBuffer(buffer, &self._view, PyBUF_STRIDES)
        self._held = True
        if not PyBuffer_IsContiguous(&self._view, b"C"):
            self.release()
            raise TypeError(
                f"the {type(buffer).__name__} is not C-contiguous, so it has gaps that are not its "
                "own: pass a contiguous one"
            )
        if writable and self._view.readonly:
            self.release()
            raise BufferError(
                f"the {type(buffer).__name__} is read-only: its pages may not be moved"
            )

    @property
    def address(self):
        """Address of the first byte."""
        return <uintptr_t> self._view.buf

    @property
    def nbytes(self):
        """Length in bytes."""
        return self._view.len

    def release(self):
        """Release the buffer. Twice is fine."""
        if self._held:
            self._held = False
            PyBuffer_Release(&self._view)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.release()

    def __dealloc__(self):
        self.release()
