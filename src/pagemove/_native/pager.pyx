"""The pager, for Python: starts and stops it, asks it for things, reads its counters."""

from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.exc cimport PyErr_Occurred
from libc.errno cimport EDOM, EFBIG
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc

import errno as _errno
import os

from pagemove._native.core cimport pm_generation, pm_generation_known, prepare


cdef extern from "Python.h":
    int Py_AddPendingCall(int (*function)(void *) noexcept, void *argument)

cdef extern from "process.h" nogil:
    enum:
        PM_DEFECT_REFUSE

cdef extern from "guard.h" nogil:
    uint32_t pm_running_defects()

cdef extern from "paged.h" nogil:
    int pm_paged_enter(uint64_t start, uint64_t end)
    void pm_paged_leave(uint64_t start)


prepare()

# Without `except`: who has asked for it raises what a signal handler has raised.
cdef extern from "Python.h":
    int _run_signal_handlers "PyErr_CheckSignals" ()


cdef int _interrupted() noexcept with gil:
    return _run_signal_handlers()


# In threads that run no handlers it does nothing.
pg_ask_while_waiting(_interrupted)

include "overall.pxi"
include "shared.pxi"
include "taken.pxi"
include "region.pxi"
include "given.pxi"


cdef class Pager(Region):
    """One region of paged memory, with the threads that serve it: what it is asked for and counts.

    Integers in, integers out; what the words mean to people is in `pagemove.paging`.
    """

    @property
    def kernel_faults(self):
        """Whether faults raised inside system calls are served too."""
        return bool(pg_kernel_faults(self._open()))

    @property
    def compressed(self):
        """Whether its store is compressed memory of this process."""
        return bool(pg_compresses(self._open()))

    @property
    def shares_helper(self):
        """Whether the process that runs the store may run those of other regions."""
        return bool(pg_shares_helper(self._open()))

    @property
    def moves(self):
        """Whether blocks leave by UFFDIO_MOVE, not by mremap."""
        return bool(pg_moves(self._open()))

    @property
    def lost(self):
        """Whether the program has closed the descriptors that the library keeps."""
        return bool(pg_lost(self._open()))

    def prefetch(self, uint64_t offset, uint64_t length, bint wait):
        """Read the blocks of a range ahead. With `wait`: 0, or an errno if one cannot be read."""
        cdef pg_region *region = self._open()
        cdef int status
        self._calls += 1
        try:
            with nogil:
                status = pg_prefetch(region, offset, length, wait)
            self._raise_if_interrupted(status)
        finally:
            self._calls -= 1
        return _errno_of(status)

    def gather(self, bytes runs, bint wait):
        """Read many blocks at once, of runs as of `pin_blocks` that ascend.

        With `wait`: 0, or an errno if one cannot be read.
        """
        cdef pg_region *region = self._open()
        cdef const pg_run *run = <const pg_run *> <const char *> runs
        cdef size_t count = self._count_runs(runs)
        cdef int status
        self._calls += 1
        try:
            with nogil:
                status = pg_gather(region, run, count, wait)
            self._raise_if_interrupted(status)
        finally:
            self._calls -= 1
        return _errno_of(status)

    @property
    def gatherable(self):
        """Bytes that `gather` should be asked for at most, so that none has left by the end."""
        return pg_gatherable(self._open())

    def evict(self, uint64_t offset, uint64_t length):
        """Take blocks that touch a range away. 0, or the errno of one that could not be written."""
        cdef pg_region *region = self._open()
        cdef int status
        self._calls += 1
        try:
            with nogil:
                status = pg_evict(region, offset, length)
            self._raise_if_interrupted(status)
        finally:
            self._calls -= 1
        return _errno_of(status)

    def discard(self, uint64_t offset, uint64_t length):
        """Have whole blocks of a region opened blank be zeros, without keeping anything of them.

        0, or an errno: EBUSY if one is pinned.
        """
        cdef pg_region *region = self._open()
        cdef int status
        self._calls += 1
        with nogil:
            status = pg_discard_blocks(region, offset, length)
        self._calls -= 1
        return _errno_of(status)

    def for_arenas(self):
        """Return addresses for C: of what discards blocks, of what has a region that was opened
        `plain` served, of what moves blocks, of what says whether there is room, of whether it
        still is plain, of which forked process has it too, of whether it is lost, of a bit for each
        block that an array has, and of the first argument of all.
        """
        cdef uint64_t *owned = pg_own_blocks(self._open())
        if owned == NULL:
            raise MemoryError("no memory for which blocks arrays have")
        return (
            <uint64_t> <uintptr_t> &pg_discard_blocks,
            <uint64_t> <uintptr_t> &pg_engage,
            <uint64_t> <uintptr_t> &pg_shift,
            <uint64_t> <uintptr_t> &pg_is_full,
            <uint64_t> <uintptr_t> pg_plain_flag(self._open()),
            <uint64_t> <uintptr_t> pg_carried_in(self._open()),
            <uint64_t> <uintptr_t> pg_lost_flag(self._open()),
            <uint64_t> <uintptr_t> owned,
            <uint64_t> <uintptr_t> self._open(),
        )

    def pin_blocks(self, bytes runs, bint write):
        """Bring blocks in, and have them stay.

        Runs are pairs of 32-bit integers in the native order: a first block, and how many. With
        `write` they can be written by system calls that nobody serves the faults of, and count as
        changed. 0; or -1: the limit has no room for them, or an errno. Then nothing is pinned.
        """
        cdef pg_region *region = self._open()
        cdef const pg_run *run = <const pg_run *> <const char *> runs
        cdef size_t count = self._count_runs(runs)
        cdef int status
        self._calls += 1
        try:
            with nogil:
                status = pg_pin(region, run, count, write)
            self._raise_if_interrupted(status)
        finally:
            self._calls -= 1
        return -1 if status == -PG_NO_ROOM else _errno_of(status)

    def unpin_blocks(self, bytes runs):
        """Let blocks leave again that `pin_blocks` was called for with the same runs."""
        cdef pg_region *region = self._open()
        cdef const pg_run *run = <const pg_run *> <const char *> runs
        cdef size_t count = self._count_runs(runs)
        self._calls += 1
        with nogil:
            pg_unpin(region, run, count)
        self._calls -= 1

    cdef size_t _count_runs(self, bytes runs) except? 0:
        cdef uint64_t blocks = (self._nbytes + self._block_size - 1) // self._block_size
        cdef const pg_run *run = <const pg_run *> <const char *> runs
        cdef size_t count = len(runs) // sizeof(pg_run)
        for i in range(count):
            if <uint64_t> run[i].first + run[i].count > blocks:
                raise ValueError(f"run {i} is not within the {blocks} blocks of the region")
        return count

    @property
    def pinnable(self):
        """Bytes that can be pinned at most, all together."""
        return pg_pinnable(self._open())

    def flush(self):
        """Make changes durable. 0; -1: of a region that is lost all is saved; or an errno:
        `failures` has the block."""
        cdef pg_region *region = self._open()
        cdef int status
        self._calls += 1
        try:
            with nogil:
                status = pg_flush(region)
            self._raise_if_interrupted(status)
        finally:
            self._calls -= 1
        return -1 if status == -PG_LOST else _errno_of(status)

    @property
    def share_id(self):
        """What `SharedLimit.shares` knows it by."""
        return pg_share_id(self._open())

    def counters(self):
        """Return all counters by name."""
        cdef pg_counters counters
        cdef pg_region *region = self._open()
        self._calls += 1
        with nogil:
            pg_counters_of(region, &counters)
        self._calls -= 1
        return {
            "faults": counters.faults,
            "write_faults": counters.write_faults,
            "soft_faults": counters.rescued,
            "prefetched": counters.prefetched,
            "evicted": counters.evicted,
            "remapped": counters.remapped,
            "written_back": counters.written_back,
            "resident": counters.resident,
            "dirty": counters.dirty,
            "pinned": counters.pinned,
            "leased": counters.leased,
            "bytes_read": counters.bytes_read,
            "bytes_written": counters.bytes_written,
            "retries": counters.retries,
            "errors": counters.errors,
            "restarts": counters.restarts,
            "background_written": counters.background_written,
            "background_failures": counters.background_failures,
        }

    def histogram(self):
        """Return (upper limit in ns, number of faults) of each range of latencies with any."""
        cdef uint64_t counts[PG_BUCKETS]
        cdef pg_region *region = self._open()
        self._calls += 1
        with nogil:
            pg_histogram(region, counts)
        self._calls -= 1
        return [(pg_bucket_limit(i), counts[i]) for i in range(PG_BUCKETS) if counts[i]]

    def failures(self):
        """Return (sequence, operation, offset, errno or 0 for too little, tries) of the newest."""
        cdef pg_failure failures[PG_FAILURES]
        cdef pg_region *region = self._open()
        cdef size_t count
        self._calls += 1
        with nogil:
            count = pg_failures(region, failures)
        self._calls -= 1
        return [
            (failures[i].sequence, failures[i].operation, failures[i].offset, failures[i].error,
             failures[i].tries)
            for i in range(count)
        ]

    def failure_text(self, uint64_t sequence):
        """Return what the helper said of a failure, with its traceback; empty if too old."""
        cdef char text[PG_TEXT]
        pg_failure_text(self._open(), sequence, text)
        return text.decode(errors="replace")

    def reading(self):
        """Return how a file is read, as pg_reading: (queue, direct, alignment).

        Errnos are negative; EDOM of `direct` says that blocks are not aligned.
        """
        cdef pg_reading found
        pg_reading_of(self._open(), &found)
        direct = -EDOM if found.direct == -PG_UNALIGNED else found.direct
        return found.queue, direct, found.alignment

    def store_stats(self):
        """Return what a helper's store, or compressed memory, says of itself; empty: no answer."""
        cdef pg_region *region = self._open()
        cdef char text[PG_TEXT]
        cdef int status
        self._calls += 1
        try:
            with nogil:
                status = pg_store_stats(region, text)
            self._raise_if_interrupted(status)
        finally:
            self._calls -= 1
        return "" if status else text.decode(errors="replace")

    def record(self):
        """Remember from now on in which order blocks are needed for the first time."""
        cdef int status = pg_record(self._open())
        if status:
            raise OSError(-status, f"no memory for a record: {os.strerror(-status)}")

    def recorded(self):
        """Return the numbers of the blocks recorded, in the native order of 32-bit integers."""
        cdef pg_region *region = self._open()
        cdef uint32_t count = pg_recorded(region, NULL, 0)
        cdef bytearray numbers = bytearray(4 * count)
        if count:
            count = pg_recorded(region, <uint32_t *> <char *> numbers, count)
        return bytes(numbers)

    def replay(self, bytes numbers):
        """Read blocks ahead in an order that `recorded` has given."""
        cdef int status = pg_replay(
            self._open(), <const uint32_t *> <const char *> numbers, len(numbers) // 4
        )
        if status:
            raise OSError(-status, f"cannot replay: {os.strerror(-status)}")

    def state_bytes(self):
        """Bytes of memory that the state of blocks takes."""
        return pg_state_bytes(self._open())


cdef int _errno_of(int status):
    # 0 of a code: a store that took less than it was given.
    return 0 if status == 0 else pg_errno_of(-status) or _errno.EIO
