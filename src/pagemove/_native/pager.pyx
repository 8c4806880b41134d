"""The pager, for Python: starts and stops it, asks it for things, reads its counters."""

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.exc cimport PyErr_Occurred
from libc.errno cimport EDOM, EFBIG
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free

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

cdef bint _may_move = not pm_running_defects() & PM_DEFECT_REFUSE


def set_moves(bint moves):
    """Let regions made from now on move pages where the kernel can, or never. For tests."""
    global _may_move
    _may_move = moves


def codec():
    """Return the library that compresses memory in this process, with its version; None: none."""
    cdef const char *name
    with nogil:
        name = pg_codec_name()
    return name.decode() or None


cdef bint _kernel_faults = True


def set_kernel_faults(bint served):
    """Let regions made from now on serve faults of system calls where permitted, or never.

    Never is what an unprivileged process has. For tests.
    """
    global _kernel_faults
    _kernel_faults = served


cdef bint _rings = True


def set_rings(bint used):
    """Let regions made from now on read by io_uring where it is permitted, or never. For tests."""
    global _rings
    _rings = used


def try_ring():
    """Return 0 if this process may open a ring of io_uring, or an errno."""
    cdef int status
    with nogil:
        status = pg_try_ring()
    return -status


def set_trouble(int call, uint64_t first=0, uint64_t count=1, uint64_t period=0, int error=0):
    """Let pages that are copied (0), moved in (1) or out (2) fail; error 0: none. For tests."""
    pg_set_trouble(call, first, count, period, error)


#: What the pager says to itself, beyond all errnos: in the events of a trace.
CODES = {
    PG_SHORT: "short",
    PG_NOT_NOW: "not now",
    PG_NO_ANSWER: "no answer",
    PG_GONE: "helper gone",
    PG_NOT_ASKED: "not asked",
    PG_NO_MEMORY: "no memory",
    PG_NOT_DURABLE: "not durable",
    PG_INTERRUPTED: "interrupted",
    PG_LOST: "lost",
}


def trace_bytes():
    """The size of a file of events."""
    return pg_trace_bytes()


def trace_into(int fd):
    """Write what all regions do into such a file from now on. 0, or an errno."""
    return -pg_trace_start(fd)


def save_all(uint64_t nanoseconds):
    """Flush all regions whose stores outlive the process; how many were not saved in that time."""
    cdef unsigned unsaved
    with nogil:
        unsaved = pg_save_all(nanoseconds)
    return unsaved


def save_on_sigterm(uint64_t nanoseconds, bint replace):
    """Have SIGTERM do that, and then what it does by default. 0, or an errno."""
    return -pg_save_on_sigterm(nanoseconds, replace)


def leave_sigterm():
    """Undo `save_on_sigterm`."""
    pg_leave_sigterm()


def watch_beats(uint64_t patience_ns):
    """End this process when no `beat` has come for so long. 0, or an errno."""
    return -pg_watch_beats(patience_ns)


def beat(bint watched):
    """Say that the interpreter is to be had; with False, that the next beat may take forever."""
    pg_beat(watched)


cdef object _pending = None


cdef int _call_pending(void *unused) noexcept with gil:
    if _pending is not None:
        try:
            _pending()
        except BaseException:
            # It would be raised wherever the main thread happens to be.
            pass
    return 0


def call_in_main_thread(object function):
    """Have the main thread call it when it next comes to the interpreter."""
    global _pending
    _pending = function
    Py_AddPendingCall(_call_pending, NULL)


cdef int _raise_if_signalled(int status) except -1:
    return -1 if status == -PG_INTERRUPTED and PyErr_Occurred() != NULL else 0


cdef void _enter_inherited(uint64_t start, uint64_t end) noexcept nogil:
    # Where there is no room the kernel refuses to move such pages all the same.
    pm_paged_enter(start, end)


def serve_inherited():
    """Have all that were made `again` there from now on. 0, or an errno."""
    cdef int status
    pm_generation()
    with nogil:
        status = pg_heirs_start(_enter_inherited)
    return -status


cdef class SharedLimit:
    """A limit for any number of regions. Integers in, integers out: `pagemove.Budget`.

    In a child made by fork it is one that no region shares yet.
    """

    cdef pg_budget *_budget
    cdef uint64_t _born
    cdef uint64_t _total
    cdef object __weakref__

    def __cinit__(self, *args, **kwargs):
        self._budget = NULL

    def __init__(self, uint64_t total):
        if self._budget != NULL:
            raise ValueError("this limit is set already")
        self._total = total
        self.here()

    def __dealloc__(self):
        if self._budget != NULL and self._born == pm_generation_known():
            pg_budget_release(self._budget)

    cdef pg_budget *here(self) except NULL:
        if self._budget != NULL and self._born == pm_generation():
            return self._budget
        # Not freed: a thread of the parent may have been about to change it.
        self._budget = pg_budget_new(self._total)
        self._born = pm_generation()
        if self._budget == NULL:
            raise MemoryError
        return self._budget

    def change_total(self, uint64_t total, uint64_t patience_ns):
        """Change the limit, and wait for regions to return memory, so many nanoseconds at most.

        0; -1: the regions need more, and nothing has changed; or ETIMEDOUT.
        """
        cdef pg_budget *budget = self.here()
        cdef int status
        with nogil:
            status = pg_budget_resize(budget, total, patience_ns, pg_may_wait_no_longer)
        if status == -PG_NO_ROOM:
            return -1
        self._total = total
        _raise_if_signalled(status)
        return 0 if status == -PG_INTERRUPTED else -status

    def counters(self):
        """Return all counters by name."""
        cdef pg_budget_counters counters
        cdef pg_budget *budget = self.here()
        with nogil:
            pg_budget_counters_of(budget, &counters)
        return {
            "total": counters.total,
            "leased": counters.leased,
            "floors": counters.floors,
            "grown": counters.grown,
            "returned": counters.returned,
            "moved": counters.moved,
            "refused": counters.refused,
            "members": counters.members,
        }


cdef class Host:
    """What is known of a helper process that any number of regions share."""

    cdef pg_host *_host
    cdef object __weakref__

    def __cinit__(self):
        self._host = pg_host_new()
        if self._host == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self._host != NULL:
            pg_host_release(self._host)

    @property
    def members(self):
        """How many regions share it now."""
        return pg_host_members(self._host)


# In a child made by fork, by mode: "r", "r+", "c".
cdef tuple _REMEDIES = (
    "open the store anew in the child, or leave fork='reopen', over a store that can be opened "
    "again",
    "flush it in the parent, and open the store anew in the child",
    "its private changes are the parent's alone: open the store anew in the child, without them, "
    "or pass the child a copy of what it needs",
)


cdef class Pager:
    """One region of paged memory, with the threads that serve it.

    Integers in, integers out; what the words mean to people is in `pagemove.paging`. It is not
    inherited by a fork: in a child it refuses everything, and closing it does nothing, unless it
    was made to be there `again`.
    """

    cdef pg_region *_region
    cdef const pg_region *_origin
    cdef pg_heir *_heir
    cdef uint64_t _address
    cdef uint64_t _nbytes
    cdef uint64_t _block_size
    cdef uint64_t _born
    cdef int _mode
    cdef Py_ssize_t _exports
    cdef Py_ssize_t _calls
    cdef bint _interrupted
    # Handed over: new buffers are read-only, and so are arrays over them.
    cdef public bint _frozen
    cdef object __weakref__

    def __cinit__(self, *args, **kwargs):
        self._region = NULL
        self._heir = NULL
        self._born = pm_generation()

    def __init__(self, int fd, uint64_t nbytes, bytes label, *, int mode, uint64_t block_size,
                 uint64_t limit, uint64_t timeout_ns, bint read_ahead, bytes spill_directory,
                 uint64_t offset=0, object injection=(), bytes name=b"", object helper=None,
                 bint dumped=False, uint64_t writeback_ns=0, bint outlives=False,
                 object identities=(), SharedLimit budget=None, bint blank=False, bint plain=False,
                 bint again=False, bytes path=None, int64_t modified=0, object compression=None,
                 bint direct=False, object door=None):
        cdef pg_config config
        cdef pg_injection *injections
        cdef pg_helper process
        cdef pg_compression memory
        cdef const char *arguments[128]
        cdef char text[PG_TEXT]
        cdef int status
        if self._region != NULL or self._heir != NULL:
            raise ValueError("this pager is open already")
        if nbytes == 0:
            raise ValueError("nbytes must be positive, not 0")
        rules = [tuple(rule) for rule in injection]
        injections = <pg_injection *> calloc(len(rules) + 1, sizeof(pg_injection))
        if injections == NULL:
            raise MemoryError
        try:
            for i, (operation, first, count, kind, value) in enumerate(rules):
                injections[i].operation = operation
                injections[i].first = first
                injections[i].count = count
                injections[i].kind = kind
                injections[i].value = value
            config.fd = fd
            for i in range(3):
                config.identities[i].device = config.identities[i].inode = 0
            for i, (device, inode) in enumerate(identities):
                config.identities[i].device, config.identities[i].inode = device, inode
            config.offset = offset
            config.nbytes = nbytes
            config.label = label
            config.mode = mode
            config.block_size = block_size
            config.limit = limit
            config.budget = NULL if budget is None else budget.here()
            config.timeout_ns = timeout_ns
            config.read_ahead = read_ahead
            config.dumped = dumped
            config.writeback_ns = writeback_ns
            config.outlives = outlives
            config.blank = blank
            config.plain = plain
            config.moves = _may_move
            config.direct = direct
            config.rings = _rings
            config.kernel_faults = _kernel_faults
            config.spill_directory = spill_directory
            config.name = name
            config.injections = injections
            config.injection_count = len(rules)
            config.again = again
            config.path = NULL if path is None else <const char *> path
            config.modified = modified
            config.helper = NULL
            config.compression = NULL
            if compression is not None:
                memory.limit, spill = compression
                memory.spill = NULL if spill is None else <const char *> spill
                config.compression = &memory
            if helper is not None:
                (argv, process.config_fd, process.log_fd, process.lanes, process.buffer_size,
                 process.restarts, process.flush_retryable) = helper
                if len(argv) > 127:
                    raise ValueError(f"at most 127 arguments for the helper, not {len(argv)}")
                for i, argument in enumerate(argv):
                    arguments[i] = argument
                arguments[len(argv)] = NULL
                process.argv = arguments
                process.host, process.door_fd, process.door_is_new = NULL, -1, 0
                if door is not None:
                    host, process.door_fd, process.door_is_new = door
                    process.host = (<Host?> host)._host
                config.helper = &process
            with nogil:
                status = pg_open(&config, &self._region, text)
            self._raise_if_interrupted(status)
        finally:
            free(injections)
        if status == -EFBIG:
            raise OSError(EFBIG, "more blocks than can be numbered: choose a larger block size")
        if status:
            reason = text.decode(errors="replace") or os.strerror(-status)
            error = OSError(-status, f"cannot set up paged memory of {nbytes} bytes: {reason}")
            error.explained = bool(text[0])
            raise error
        status = pm_paged_enter(
            pg_address(self._region),
            pg_address(self._region) + (nbytes + block_size - 1) // block_size * block_size,
        )
        if status:
            pg_drop(self._region, True)
            self._region = NULL
            raise OSError(-status, "more regions of paged memory than one process can have")
        self._origin = self._region
        self._address = pg_address(self._region)
        self._nbytes = nbytes
        self._block_size = block_size
        self._mode = mode

    def __dealloc__(self):
        # In a forked child there is nothing to close, and there are no threads to wait for.
        # Whoever did not wait for the store before does not here, where nothing can be raised.
        if pm_generation_known() and self._is_here():
            if self._heir != NULL:
                pm_paged_leave(self._address)
                pg_heir_drop(self._heir, not self._interrupted)
            elif self._region != NULL:
                pm_paged_leave(self._address)
                pg_drop(self._region, not self._interrupted)
        self._heir = NULL
        self._region = NULL

    cdef bint _is_here(self):
        """Whether it is of this process; in a child made by fork it may have become so."""
        cdef pg_heir *heir
        if self._born == pm_generation():
            return True
        if self._region == NULL and self._heir == NULL:
            return False
        heir = pg_heir_of(self._origin, False)
        if heir == NULL:
            return False
        # What the parent had is not freed: its locks may be held by threads that are not here.
        self._heir = heir
        self._region = NULL
        self._born = pm_generation()
        self._calls = 0
        return True

    def inherit(self, SharedLimit budget=None, object helper=None):
        """In a child made by fork, before `serve_inherited`: pass on what is of this process.

        Of a helper the descriptors of what it gets and of its log, and what they are.
        """
        cdef pm_identity identities[2]
        cdef pg_heir *heir = pg_heir_of(self._origin, True)
        if heir == NULL:
            return
        if budget is not None:
            pg_heir_share(heir, budget.here())
        if helper is not None:
            config, log, known = helper
            for i, (device, inode) in enumerate(known):
                identities[i].device, identities[i].inode = device, inode
            number = b"%d" % os.getpid()
            if pg_heir_equip(heir, config, log, identities, number):
                raise MemoryError

    cdef int _raise_if_interrupted(self, int status) except -1:
        """Raise what the signal handler has raised that ended a call."""
        if status != -PG_INTERRUPTED:
            return 0
        self._interrupted = True
        if PyErr_Occurred() != NULL:
            return -1
        raise ValueError(
            "this is a child of the process that waited for paged memory; it is not there"
        )

    cdef pg_region *_open(self) except NULL:
        cdef pg_region *region = NULL
        cdef char text[PG_TEXT]
        cdef int status
        self._check_open()
        if self._heir == NULL or self._region != NULL:
            return self._region
        self._calls += 1
        with nogil:
            status = pg_heir_region(self._heir, &region, text)
        self._calls -= 1
        if status:
            reason = text.decode(errors="replace") or os.strerror(pg_errno_of(-status))
            raise OSError(pg_errno_of(-status), f"cannot open inherited paged memory: {reason}")
        self._region = region
        return region

    cdef int _check_open(self) except -1:
        if self._region == NULL and self._heir == NULL:
            raise ValueError(f"{type(self).__name__} is closed")
        if not self._is_here():
            raise ValueError(
                f"{type(self).__name__} belongs to the parent process: it is not inherited by a "
                f"fork; {_REMEDIES[self._mode]}"
            )
        return 0

    @property
    def address(self):
        """Address of the first byte. ValueError once closed."""
        self._check_open()
        return self._address

    @property
    def nbytes(self):
        """Length in bytes, that of the store."""
        return self._nbytes

    @property
    def block_size(self):
        """Bytes that arrive and leave together."""
        return self._block_size

    @property
    def closed(self):
        """Whether the region is gone, or belongs to the process this one was forked from."""
        return not self._is_here() or (self._region == NULL and self._heir == NULL)

    @property
    def inherited(self):
        """Whether it belongs to the process this one was forked from."""
        return (self._region != NULL or self._heir != NULL) and not self._is_here()

    @property
    def untouched(self):
        """Whether this process has inherited it, and not opened it yet."""
        self._check_open()
        return self._heir != NULL and pg_heir_waits(self._heir) != 0

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
        `plain` served, of whether it still is plain, and of the first argument of both.
        """
        return (
            <uint64_t> <uintptr_t> &pg_discard_blocks,
            <uint64_t> <uintptr_t> &pg_engage,
            <uint64_t> <uintptr_t> pg_plain_flag(self._open()),
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

    @property
    def _is_called(self):
        """Whether a thread is in a call of it."""
        return self._calls > 0

    def close(self):
        """End the threads and unmap; does not flush. Twice is fine; BufferError while in use.

        If a signal handler raises meanwhile it is closed all the same, by its own threads.
        """
        cdef pg_region *region
        cdef pg_heir *heir
        cdef int status
        if self.closed:
            return
        if self._exports:
            raise BufferError(
                f"cannot close {type(self).__name__}: {self._exports} buffers of it (arrays, "
                "memoryviews) are still in use; delete them first"
            )
        if self._calls > 0:
            raise BufferError(
                f"cannot close {type(self).__name__}: another thread is in a call of it; wait for "
                "that first"
            )
        region, heir = self._region, self._heir
        self._region = NULL
        self._heir = NULL
        pm_paged_leave(self._address)
        with nogil:
            status = pg_close(region) if heir == NULL else pg_heir_close(heir)
        self._raise_if_interrupted(status)

    def __getbuffer__(self, Py_buffer *view, int flags):
        self._check_open()
        PyBuffer_FillInfo(
            view, self, <void *> <uintptr_t> self._address, self._nbytes,
            self._mode == PG_READ or self._frozen, flags,
        )
        self._exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self._exports -= 1


cdef int _errno_of(int status):
    # 0 of a code: a store that took less than it was given.
    return 0 if status == 0 else pg_errno_of(-status) or _errno.EIO
