"""System calls that neither Python nor pagemove has, and which the tests need."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import mmap
import os
import platform
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pagemove import HUGE_PAGE_SIZE, PAGE_SIZE, PageState, lowlevel, vmas
from pagemove.introspect import states_at

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

MLOCK_ONFAULT = 1

_X86 = platform.machine() == "x86_64"
_SYS_MLOCK2 = 325 if _X86 else 284
_SYS_USERFAULTFD = 323 if _X86 else 282
_AUDIT_ARCH = 0xC000003E if _X86 else 0xC00000B7
_SYS_IO_URING_SETUP = 425
_SYS_IO_URING_ENTER = 426
_SYS_IO_URING_REGISTER = 427
_SYS_CACHESTAT = 451

NOBODY = 65534

_MADV_COLLAPSE = 25

_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAP_DAC_READ_SEARCH = 2
_CAPABILITY_VERSION_3 = 0x20080522
_SECCOMP_MODE_FILTER = 2
_SECCOMP_RET_ALLOW = 0x7FFF0000
_SECCOMP_RET_ERRNO = 0x00050000


def _checked(result: int, call: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}")
    return result


def syscall(number: int, *args: int) -> int:
    """Make a system call; OSError on failure."""
    words = [ctypes.c_long(arg) for arg in args]
    return _checked(_libc.syscall(ctypes.c_long(number), *words), f"syscall {number}")


def mlock(address: int, nbytes: int, *, on_fault: bool = False) -> None:
    """mlock2(2): lock, populating the range, or with `on_fault` what gets there later."""
    syscall(_SYS_MLOCK2, address, nbytes, MLOCK_ONFAULT if on_fault else 0)


def munlock(address: int, nbytes: int) -> None:
    """munlock(2)."""
    words = ctypes.c_void_p(address), ctypes.c_size_t(nbytes)
    _checked(_libc.munlock(*words), "munlock")


@contextmanager
def in_a_pipe(address: int, nbytes: int = PAGE_SIZE) -> Iterator[int]:
    """Have a pipe refer to the pages of a range, by vmsplice(2), for as long as the block lasts.

    Gives the end of the pipe to read from.
    """
    out, into = os.pipe()
    try:
        vector = ctypes.create_string_buffer(struct.pack("=QQ", address, nbytes), 16)
        taken = _checked(_libc.vmsplice(into, vector, 1, 0), "vmsplice")
        assert taken == nbytes, f"the pipe took {taken} of {nbytes} bytes"
        yield out
    finally:
        os.close(out)
        os.close(into)


def page_out(address: int, nbytes: int) -> None:
    """Swap the pages of a range out: MADV_PAGEOUT on each CPU, until none is left in memory.

    A page that is new waits in a list of the CPU that made it, where reclaim cannot take it from;
    the advice empties that list for the CPU that it is given on. Others may hold a page meanwhile.
    """
    before = os.sched_getaffinity(0)
    limit = time.monotonic() + 10
    try:
        for cpu in itertools.cycle(before):
            os.sched_setaffinity(0, {cpu})
            lowlevel.madvise(address, nbytes, lowlevel.MADV_PAGEOUT)
            if not (states_at(address, nbytes // PAGE_SIZE) & PageState.PRESENT).any():
                break
            assert time.monotonic() < limit, "the kernel does not swap these pages out"
    finally:
        os.sched_setaffinity(0, before)


def collapse_heap() -> None:
    """Put what this process has allocated so far into huge pages, where there are any to be had.

    A fork copies an entry for each page, and the child gives each back when it ends: of a process
    of 200 MB a fork and its end take 20 ms of CPU time, and 9 ms then.
    """
    for vma in vmas():
        if vma.permissions != "rw-p" or vma.inode or vma.name not in ("", "[heap]"):
            continue
        first = -(-vma.start // HUGE_PAGE_SIZE) * HUGE_PAGE_SIZE
        for address in range(first, vma.end - HUGE_PAGE_SIZE + 1, HUGE_PAGE_SIZE):
            # Nothing may be there, or the kernel has no huge pages.
            with contextlib.suppress(OSError):
                lowlevel.madvise(address, HUGE_PAGE_SIZE, _MADV_COLLAPSE)


def unwritten_pages(fd: int) -> int:
    """Count the pages of a file that the device does not have yet (cachestat(2))."""
    span = (ctypes.c_uint64 * 2)(0, 0)
    found = (ctypes.c_uint64 * 5)()
    syscall(_SYS_CACHESTAT, fd, ctypes.addressof(span), ctypes.addressof(found), 0)
    return found[1] + found[2]


def no_cachestat() -> str | None:
    """Say why pages that are not written yet cannot be counted, or None if they can."""
    try:
        syscall(_SYS_CACHESTAT, -1, 0, 0, 0)
    except OSError as error:
        return None if error.errno == errno.EBADF else "no cachestat (Linux 6.5)"
    return None


def set_dumpable() -> None:
    """Restore what setuid takes away: one's own files under /proc/self."""
    _checked(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl(PR_SET_DUMPABLE)")


def become_nobody() -> None:
    """Drop every privilege but reading files, here and in what this process executes.

    The interpreter and the tests may lie where only their owner may read, and reading files has
    nothing to do with moving pages.
    """
    os.setgroups([])
    _checked(_libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0), "prctl(PR_SET_KEEPCAPS)")
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    one = 1 << _CAP_DAC_READ_SEARCH
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    capabilities = struct.pack("=6I", one, one, one, 0, 0, 0)
    _checked(_libc.capset(header, capabilities), "capset")
    raised = _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_READ_SEARCH, 0, 0)
    _checked(raised, "prctl(PR_CAP_AMBIENT)")


def no_seccomp() -> str | None:
    """Say why a seccomp filter cannot be installed, or None if it can."""
    status = Path("/proc/self/status").read_text()
    return None if "\nSeccomp:" in status else "a kernel without seccomp"


def refuse_userfaultfd(code: int) -> None:
    """Install a seccomp filter that answers userfaultfd(2) with an errno. For ever: in a child."""
    _refuse(_SYS_USERFAULTFD, code)


def refuse_io_uring(code: int, *, setup: bool = True) -> None:
    """The same of io_uring_setup(2), or of io_uring_enter(2)."""
    _refuse(_SYS_IO_URING_SETUP if setup else _SYS_IO_URING_ENTER, code)


def _refuse(call: int, code: int) -> None:
    load, jump_equal, give = 0x20, 0x15, 0x06
    rules = [
        (load, 0, 0, 4),
        (jump_equal, 1, 0, _AUDIT_ARCH),
        (give, 0, 0, _SECCOMP_RET_ALLOW),
        (load, 0, 0, 0),
        (jump_equal, 0, 1, call),
        (give, 0, 0, _SECCOMP_RET_ERRNO | code),
        (give, 0, 0, _SECCOMP_RET_ALLOW),
    ]
    code_bytes = b"".join(struct.pack("=HBBI", *rule) for rule in rules)
    buffer = ctypes.create_string_buffer(code_bytes, len(code_bytes))
    program = struct.pack("=H6xQ", len(rules), ctypes.addressof(buffer))
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
    result = _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0)
    _checked(result, "prctl(PR_SET_SECCOMP)")


def hugetlb_free() -> bool:
    """Return whether there is a hugetlb page to map."""
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000  # MAP_HUGETLB
        with mmap.mmap(-1, 2 << 20, flags=flags):
            return True
    except OSError:
        return False


class Ring:
    """An io_uring that does nothing but hold registered buffers, which pins their pages."""

    def __init__(self) -> None:
        self._params = ctypes.create_string_buffer(120)
        self._fd = syscall(_SYS_IO_URING_SETUP, 4, ctypes.addressof(self._params))

    def register(self, address: int, nbytes: int) -> None:
        """Pin the pages of a range, faulting them in."""
        vector = struct.pack("=QQ", address, nbytes)
        buffer = ctypes.create_string_buffer(vector, len(vector))
        syscall(_SYS_IO_URING_REGISTER, self._fd, 0, ctypes.addressof(buffer), 1)

    def unregister(self) -> None:
        """Unpin them; the kernel may finish it a little later."""
        syscall(_SYS_IO_URING_REGISTER, self._fd, 1, 0, 0)

    def close(self) -> None:
        """Close it. Twice is fine."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Ring:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
