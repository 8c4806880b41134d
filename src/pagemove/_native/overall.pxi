"""What concerns all regions of the process, and what tests ask of those made from now on.

Part of pager.pyx, which includes it.
"""

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


def call_as_own(function, *arguments):
    """Call it in a thread that, as the pager's, keeps no process alive whose others have ended."""
    pg_enter_own()
    try:
        return function(*arguments)
    finally:
        pg_leave_own()
