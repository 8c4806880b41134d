"""Tries in children what may be the end of a process: `pagemove doctor` lives on to say so.

Not for use in a library: a child made by fork shares the pages of its parent, which then cannot be
moved.
"""

from __future__ import annotations

import errno
import functools
import json
import mmap
import os
import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from pagemove import limits
from pagemove._native import calls, pager
from pagemove.calls.remap import move, remap_anon_pages
from pagemove.introspect import PAGE_SIZE
from pagemove.kernel import KernelFeatures, Problem
from pagemove.memory import Memory
from pagemove.paging.options import FEWEST_BLOCKS
from pagemove.paging.region import PagedMemory
from pagemove.probing import PROBES, USER_MODE_ONLY, open_device
from pagemove.stores.file import FileStore

_DEADLINE = 20.0
_PAUSE = 0.002
_MOST_TOLD = 4096


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a child came to its end.

    Attributes
    ----------
    signal : int
        That killed it; 0 for none.
    late : bool
        Whether it had to be killed, because it did not end.
    error : dict
        ``errno`` and ``text`` of what it raised; empty for nothing.
    """

    signal: int = 0
    late: bool = False
    error: dict[str, Any] = field(default_factory=dict)


def deadly_probes() -> tuple[str, ...]:
    """Name the `PROBES` for which the process's seccomp filter, if it has one, kills."""
    return tuple(
        name
        for name, probe in PROBES.items()
        if _is_filtered() and _in_child(probe).signal == signal.SIGSYS
    )


def try_moving(found: KernelFeatures) -> Problem | None:
    """Move pages in a child; return what is in the way, where features say that nothing is."""
    name = "remap_anon_pages"
    problem = _refused(name, _TO_MOVE) or _tried(name, "pages cannot be moved", _move_pages, found)
    return problem and replace(problem, needed=True)


def try_paging(found: KernelFeatures) -> Problem | None:
    """Open a small region in a child and read more of it than fits below its limit.

    Parameters
    ----------
    found : KernelFeatures
        What is here, where paging is said to work.

    Returns
    -------
    Problem or None
        Which limit is in the way, what it is, and what to set.
    """
    name = "paged_memory"
    return _refused(name, _TO_PAGE) or _tried(
        name, "a small region cannot be paged", _page_a_little, found
    )


def _refused(name: str, requests: Iterable[str]) -> Problem | None:
    """Name the requests to a userfaultfd that a seccomp filter refuses, if it does.

    What depends on them fails later and elsewhere: a thread sleeps forever, or SIGBUS ends it.
    """
    if not _is_filtered():
        return None
    try:
        endings = {request: _in_child(functools.partial(_ask, request)) for request in requests}
    except (OSError, MemoryError):  # of the fork, which another trial reports
        return None
    killed = [request for request, ending in endings.items() if ending.signal == signal.SIGSYS]
    refused = [request for request, ending in endings.items() if ending.error]
    if not killed and not refused:
        return None
    requests = " and ".join(killed + refused)
    return Problem(
        name,
        f"ioctl(2) with {requests}: the process's seccomp filter "
        + ("kills the caller" if killed else "refuses it"),
        f"allow ioctl(2) with {requests} in the seccomp filter",
        errno=errno.EPERM if killed else endings[refused[0]].error["errno"],
    )


def _ask(request: str) -> None:
    """Make a request that means nothing; raise unless the kernel is who says so."""
    try:
        fd = _opened()
    except OSError:
        return  # a limit, which another trial reports
    try:
        _REQUESTS[request](fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def _opened() -> int:
    try:
        fd = calls.userfaultfd(os.O_CLOEXEC | USER_MODE_ONLY)
    except OSError:
        fd = open_device()
    calls.api(fd)
    return fd


_REQUESTS: dict[str, Callable[[int], object]] = {
    "UFFDIO_REGISTER": lambda fd: calls.register(fd, 0, 0, 0),
    "UFFDIO_UNREGISTER": lambda fd: calls.unregister(fd, 0, 0),
    "UFFDIO_WAKE": lambda fd: calls.wake(fd, 0, 0),
    "UFFDIO_COPY": lambda fd: calls.copy(fd, 0, 0, 0),
    "UFFDIO_MOVE": lambda fd: calls.move(fd, 0, 0, 0),
    "UFFDIO_WRITEPROTECT": lambda fd: calls.writeprotect(fd, 0, 0, 0),
    "UFFDIO_POISON": lambda fd: calls.poison(fd, 0, 0),
}
_TO_MOVE = ("UFFDIO_REGISTER", "UFFDIO_MOVE")
_TO_PAGE = tuple(_REQUESTS)


def _tried(
    name: str, failure: str, call: Callable[[], object], found: KernelFeatures
) -> Problem | None:
    try:
        ending = _in_child(call)
    except (OSError, MemoryError) as refusal:  # of the fork
        ending = _Ending(error=_told(refusal))
    if ending.signal or ending.late:
        return Problem(name, *_death(ending))
    if not ending.error:
        return None
    error = OSError(ending.error["errno"], ending.error["text"])
    what = f"{failure}: {ending.error['text']}"
    code = error.errno or errno.EIO
    behind = limits.behind(error)
    if behind:
        texts = "; ".join(limit.text for limit in behind)
        remedies = "; or ".join(limit.remedy for limit in behind)
        return Problem(name, f"{what}, and {texts}", remedies, errno=code)
    remedy = next(
        (problem.remedy for problem in found.problems if problem.name == "pagemap_scan"),
        "no limit of the process explains it: strace -f shows which call fails",
    )
    return Problem(name, what, remedy, errno=code)


def _death(ending: _Ending) -> tuple[str, str]:
    """Say how a child that tried it ended, and what helps."""
    what = "a process that tries it"
    if ending.late:
        return (
            f"{what} does not end within {_DEADLINE:.0f} s",
            "look what it waits for (strace -f), and whether the machine has time for it",
        )
    if ending.signal == signal.SIGSYS:
        return (
            f"{what} is killed by its seccomp filter, for a system call that is not named here",
            "the audit log has its number (journalctl -k -g SECCOMP): allow it in the filter",
        )
    if ending.signal == signal.SIGKILL:
        return (
            f"{what} is killed (SIGKILL), as the kernel does where a cgroup is out of memory",
            "allow it more memory: docker run --memory; in a systemd unit: MemoryMax=",
        )
    return (
        f"{what} dies of {signal.Signals(ending.signal).name}",
        "what it said on standard error has the cause",
    )


def _move_pages() -> None:
    # One page and several: the library makes other system calls for these.
    count = 4
    with Memory(count * PAGE_SIZE) as one, Memory(count * PAGE_SIZE) as other:
        content = bytes(range(1, count + 1)) * PAGE_SIZE
        memoryview(one)[:] = content
        remap_anon_pages(other, one, PAGE_SIZE)
        remap_anon_pages(one, other, PAGE_SIZE)
        move(other, one)
        if bytes(other) != content:
            raise OSError(errno.EIO, "what arrives is not what was there")


def _page_a_little() -> None:
    # A file that is there wherever this code is, and has more blocks than the limit.
    blocks = 2 * FEWEST_BLOCKS
    path = pager.__file__
    with open(path, "rb") as file:
        expected = file.read(blocks * PAGE_SIZE)
    with (
        FileStore(path) as store,
        PagedMemory(
            store, block_size=PAGE_SIZE, resident_limit=FEWEST_BLOCKS * PAGE_SIZE
        ) as region,
        memoryview(region) as view,
    ):
        if bytes(view[: len(expected)]) != expected:
            raise OSError(errno.EIO, f"what is read of {path} is not what it has")


def _is_filtered() -> bool:
    """Whether there is a seccomp filter, as far as that can be known."""
    try:
        with open("/proc/self/status") as file:
            return "\nSeccomp:\t0\n" not in file.read()
    except OSError:
        return True


def _told(error: BaseException) -> dict[str, Any]:
    code = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    text = str(getattr(error, "strerror", None) or error) or type(error).__name__
    return {"errno": code or 0, "text": text[: _MOST_TOLD // 8]}


def _in_child(call: Callable[[], object]) -> _Ending:
    """Make a call in a child made by fork; return how that ended.

    Raises
    ------
    OSError, MemoryError
        There can be no child.
    """
    # Not a pipe: descriptors may be what is missing.
    with mmap.mmap(-1, _MOST_TOLD) as told:
        with warnings.catch_warnings():
            # Of threads, which are those of the numerical library: the child does not need them.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            _be_child(call, told)
        return _ending_of(child, told)


def _be_child(call: Callable[[], object], told: mmap.mmap) -> None:
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        call()
    except BaseException as error:
        told.write(json.dumps(_told(error)).encode())
    finally:
        # Not what else happens at exit: that is the parent's.
        os._exit(0)


def _ending_of(child: int, told: mmap.mmap) -> _Ending:
    limit = time.monotonic() + _DEADLINE
    late = False
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > limit and not late:
            late = True
            os.kill(child, signal.SIGKILL)
        time.sleep(_PAUSE)
    text = told[:].rstrip(b"\0")
    return _Ending(
        signal=max(-os.waitstatus_to_exitcode(status), 0),
        late=late,
        error=json.loads(text) if text else {},
    )
