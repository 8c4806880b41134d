"""Arrays of NumPy in a region of paged memory: the arena, and NumPy's hook for it (NEP 49)."""

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint64_t, uint8_t, uintptr_t
from libc.stdlib cimport calloc, free

from pagemove._native.core cimport pm_generation, prepare


cdef extern from "arena.h" nogil:
    ctypedef int (*pa_discard)(void *region, uint64_t offset, uint64_t length)
    ctypedef int (*pa_engage)(void *region)
    ctypedef int (*pa_shift)(void *region, uint64_t to, uint64_t start, uint64_t length)
    ctypedef int (*pa_full)(void *region, uint64_t nbytes, int zeros)
    struct pa_memory:
        uint64_t base, length, block_size, limit
        const int *plain
        const uint64_t *carried_in
        uint64_t *owned
        const int *lost
        pa_discard discard
        pa_engage engage
        pa_shift shift
        pa_full full
        void *region
    struct pa_arena:
        pass
    struct pa_counters:
        uint64_t used, peak, kept, reserved, free, largest, objects, allocated, moved, refused
        uint64_t full, used_then, largest_then, lost, unserved
        int unserved_error
    pa_arena *pa_new(const pa_memory *memory)
    void pa_free_arena(pa_arena *arena)
    void *pa_allocate(pa_arena *arena, uint64_t nbytes, int zeros)
    uint64_t pa_plain_bytes(pa_arena *arena)
    void *pa_resize(pa_arena *arena, void *object, uint64_t nbytes)
    void pa_release(pa_arena *arena, void *object)
    int pa_set_limit(pa_arena *arena, uint64_t limit)
    void pa_counters_of "pa_counters"(pa_arena *arena, pa_counters *counters)

cdef extern from "handler.h" nogil:
    struct pa_allocator:
        pass
    struct pa_handler:
        uint8_t version
        pa_allocator allocator
    struct pa_use:
        pa_handler handler
        pa_arena *arena
        pa_allocator below
        uint64_t least, born
        void *arena_object
        void *below_object
    void pa_fill_handler(pa_use *use)
    void pa_replace(pa_handler *own, pa_use *use)

prepare()

# Of NumPy's table of functions, which only grows (numpy/__multiarray_api.h). PyArray_API[304]
# returns the handler that was there before.
ctypedef object (*_set_handler)(object handler)
ctypedef object (*_get_handler)()
ctypedef unsigned int (*_version)() noexcept

cdef enum:
    _FEATURE_VERSION = 211
    _SET_HANDLER = 304
    _GET_HANDLER = 305
    _OWN_HANDLER = 306
    _WITH_HANDLERS = 0xF
    _LAYOUT = 1

cdef const char *_NAME = "mem_handler"
cdef void **_numpy = NULL


cdef void **_table() except NULL:
    global _numpy
    if _numpy == NULL:
        from numpy._core import _multiarray_umath as core

        found = <void **> PyCapsule_GetPointer(core._ARRAY_API, NULL)
        if (<_version> found[_FEATURE_VERSION])() < _WITH_HANDLERS:
            raise ImportError("this NumPy has no data handlers: 1.22 is the first that has")
        _numpy = found
    return _numpy


cdef pa_handler *_handler_of(object capsule) except NULL:
    cdef pa_handler *handler = <pa_handler *> PyCapsule_GetPointer(capsule, _NAME)
    if handler.version != _LAYOUT:
        raise ImportError(f"this NumPy's data handlers have layout {handler.version}, not 1")
    return handler


def swap_handler(handler):
    """Make a capsule the data handler of this context; return the one before."""
    return (<_set_handler> _table()[_SET_HANDLER])(handler)


def current_handler():
    """Return the data handler of this context, a capsule."""
    return (<_get_handler> _table()[_GET_HANDLER])()


cdef void _end_use(object capsule) noexcept:
    cdef pa_use *use = <pa_use *> PyCapsule_GetPointer(capsule, _NAME)
    arena, below = <object> use.arena_object, <object> use.below_object
    Py_DECREF(arena)
    Py_DECREF(below)
    free(use)


cdef class Arena:
    """Memory for arrays out of a region that was opened blank, and that it keeps alive.

    With a limit, in bytes, the region is to be `plain` until they are more than that.
    `pagemove.paging.allocations` has the meaning. Its last array, or handler, ends it.
    """

    cdef pa_arena *_arena
    cdef object _region
    cdef object __weakref__

    def __cinit__(self, *args, **kwargs):
        self._arena = NULL

    def __init__(self, region, uint64_t limit=0):
        cdef uint64_t discard, engage, shift, full, plain, carried_in, lost, owned, argument
        cdef pa_memory memory
        if self._arena != NULL:
            raise ValueError("this arena has a region already")
        discard, engage, shift, full, plain, carried_in, lost, owned, argument = (
            region.for_arenas()
        )
        memory.base, memory.length, memory.block_size = (
            region.address, region.nbytes, region.block_size
        )
        memory.limit = limit
        memory.plain = <const int *> <uintptr_t> plain
        memory.carried_in = <const uint64_t *> <uintptr_t> carried_in
        memory.owned = <uint64_t *> <uintptr_t> owned
        memory.lost = <const int *> <uintptr_t> lost
        memory.discard = <pa_discard> <uintptr_t> discard
        memory.engage = <pa_engage> <uintptr_t> engage
        memory.shift = <pa_shift> <uintptr_t> shift
        memory.full = <pa_full> <uintptr_t> full
        memory.region = <void *> <uintptr_t> argument
        self._arena = pa_new(&memory)
        if self._arena == NULL:
            raise MemoryError("no memory for the records of an arena")
        self._region = region

    def __dealloc__(self):
        if self._arena != NULL:
            pa_free_arena(self._arena)

    cdef pa_use *_use(self, uint64_t least, object below) except NULL:
        cdef pa_handler *under = _handler_of(below)
        cdef pa_use *use = <pa_use *> calloc(1, sizeof(pa_use))
        if use == NULL:
            raise MemoryError
        use.arena = self._arena
        use.least = least
        use.below = under.allocator
        use.born = pm_generation()
        pa_fill_handler(use)
        Py_INCREF(self)
        Py_INCREF(below)
        use.arena_object, use.below_object = <void *> self, <void *> below
        return use

    def handler(self, uint64_t least, below):
        """Return a data handler for NumPy: arrays of `least` bytes or more are in the arena.

        Others are left to the handler `below`.
        """
        return PyCapsule_New(self._use(least, below), _NAME, _end_use)

    def replace_default(self, uint64_t least):
        """Have NumPy's own handler do that, in all threads and forever."""
        own = <object> (<void **> _table()[_OWN_HANDLER])[0]
        pa_replace(_handler_of(own), self._use(least, own))

    def counters(self):
        """Return all counters by name, in bytes or calls."""
        cdef pa_counters counters
        pa_counters_of(self._arena, &counters)
        return {
            "used": counters.used,
            "peak": counters.peak,
            "kept": counters.kept,
            "reserved": counters.reserved,
            "free": counters.free,
            "largest": counters.largest,
            "objects": counters.objects,
            "allocated": counters.allocated,
            "moved": counters.moved,
            "refused": counters.refused,
            "full": counters.full,
            "used_then": counters.used_then,
            "largest_then": counters.largest_then,
            "lost": counters.lost,
            "unserved": counters.unserved,
            "unserved_error": counters.unserved_error,
        }

    def set_limit(self, uint64_t limit):
        """Have another limit from now on; 0, or an errno: what is beyond it cannot be evicted."""
        cdef int status
        with nogil:
            status = pa_set_limit(self._arena, limit)
        return -status

    @property
    def plain_nbytes(self):
        """Bytes of it that are resident while the region is `plain`."""
        cdef uint64_t nbytes
        with nogil:
            nbytes = pa_plain_bytes(self._arena)
        return nbytes

    # For tests.
    def allocate(self, uint64_t nbytes, bint zeros=False):
        """Return an address, 0 if there is no extent."""
        cdef void *found
        with nogil:
            found = pa_allocate(self._arena, nbytes, zeros)
        return <uint64_t> <uintptr_t> found

    def resize(self, uint64_t address, uint64_t nbytes):
        """As realloc(3)."""
        cdef void *found
        with nogil:
            found = pa_resize(self._arena, <void *> <uintptr_t> address, nbytes)
        return <uint64_t> <uintptr_t> found

    def release(self, uint64_t address):
        """As free(3)."""
        with nogil:
            pa_release(self._arena, <void *> <uintptr_t> address)
