"""Which limit of the process, or of the machine, a refused call has met, and what to set."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import resource
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

from pagemove.cgroups import groups, read

_Error = TypeVar("_Error", OSError, MemoryError)

#: What a limit answers whatever the call. EAGAIN is one of threads and processes only where such
#: were to be made: who waits for a lock says that too.
ALWAYS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Limit(NamedTuple):
    """A limit, what it is here and how much of it is used, and how to raise it.

    Attributes
    ----------
    name : str
        ``"RLIMIT_NOFILE"``, ``"vm.max_map_count"``, ``"pids.max"`` ...
    text : str
        What it is, in words.
    remedy : str
        The commands that raise it.
    """

    name: str
    text: str
    remedy: str


class _Resource(NamedTuple):
    number: int
    name: str
    option: str
    unit: str
    least: int  # that is advised; 0: unlimited
    whose: str = "process"


_DESCRIPTORS = _Resource(resource.RLIMIT_NOFILE, "NOFILE", "n", "descriptors", 1024)
# The kernel counts those of all processes of the user.
_THREADS = _Resource(resource.RLIMIT_NPROC, "NPROC", "u", "processes and threads", 4096, "user")
_ADDRESSES = _Resource(resource.RLIMIT_AS, "AS", "v", "bytes of addresses", 0)
_DATA = _Resource(resource.RLIMIT_DATA, "DATA", "d", "bytes of data", 0)

# With less room the kernel may have found the next mapping to be one too many.
_FEW_MAPPINGS = 1000
# Used that far, a limit is likely to have been met.
_NEARLY = 0.75
_MOST_COUNTED = 1 << 16
_PIECE = 1 << 14
# A region that could not have its last thread has ended the others when it is asked why.
_THREADS_AT_ONCE = 80
# Bytes of addresses that a thread or two take: its stack, and an arena of malloc.
_STACKS = 128 << 20
# Where there are as many mappings, or addresses, as there may be, the interpreter cannot even look
# for the reason. These are given up then.
_MOST_RESERVED, _RESERVED_NBYTES = 4, 1 << 20
_reserve: list[mmap.mmap] = []


def _reserve_mappings() -> None:
    # Shared: private ones side by side would be one mapping.
    with contextlib.suppress(OSError, MemoryError):
        while len(_reserve) < _MOST_RESERVED:
            _reserve.append(mmap.mmap(-1, _RESERVED_NBYTES, prot=mmap.PROT_READ))


_reserve_mappings()


def behind(error: BaseException) -> tuple[Limit, ...]:
    """Name the limits that an error can come from.

    Parameters
    ----------
    error : BaseException
        An `OSError`, or a `MemoryError`, which counts as ENOMEM.

    Returns
    -------
    tuple of Limit
        Those that are set here, the likeliest first. None for what no limit explains.
    """
    code = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    return tuple(_limits(code))


def text_of(limits: Iterable[Limit]) -> str:
    """Return the sentences that name limits, and then what to set; empty for none."""
    found = tuple(limits)
    if not found:
        return ""
    texts = "; ".join(limit.text for limit in found)
    return f"{texts}; to raise it: {'; or '.join(limit.remedy for limit in found)}"


def explain(error: _Error) -> _Error:
    """Have an error name the limits that it can come from, where it does not yet.

    Returns
    -------
    OSError or MemoryError
        The same: its class, errno and traceback stay.
    """
    try:
        _explain(error)
    except MemoryError:
        _reserve.clear()
        with contextlib.suppress(MemoryError):  # then what it says is enough
            _explain(error)
        _reserve_mappings()
    return error


def _explain(error: OSError | MemoryError) -> None:
    said = str(error)
    try:
        behind_it = behind(error)
    except MemoryError:
        # Looking takes memory, and there is none: only what takes next to nothing.
        behind_it = (*_set(_ADDRESSES, None), *_set(_DATA, None), *_mappings())
    found = [limit for limit in behind_it if limit.name not in said]
    if not found:
        return
    if isinstance(error, MemoryError):
        error.args = (f"{said or 'out of memory'}; {text_of(found)}",)
    else:
        append(error, text_of(found))


def append(error: OSError, text: str) -> None:
    """Add to the message of an error."""
    # It is pickled by its arguments, and shown by its attributes.
    error.strerror = f"{error.strerror}; {text}"
    error.args = (error.errno, error.strerror, *error.args[2:])


@contextlib.contextmanager
def named() -> Iterator[None]:
    """Have what is raised within name the limits that it can come from; see `explain`."""
    try:
        yield
    except MemoryError as error:
        explain(error)
        raise
    except OSError as error:
        if error.errno in ALWAYS:
            explain(error)
        raise


def _limits(code: int | None) -> Iterator[Limit]:
    match code:
        case errno.EMFILE:
            yield from _set(_DESCRIPTORS, _open_descriptors())
        case errno.ENFILE:
            most = read("/proc/sys/fs/file-max")
            yield Limit(
                "fs.file-max",
                f"the whole system may have {most or 'no more'} open files (fs.file-max)",
                "as root: sysctl -w fs.file-max=9223372036854775807",
            )
        case errno.EAGAIN:
            # A thread whose stack cannot be mapped fails with this too. And the kernel does not
            # count those of root.
            found = [*_near(_THREADS, _threads_of_user()), *_pids()]
            found += [*_near(_ADDRESSES, _address_bytes()), *_near(_DATA, _data_bytes())]
            found += _mappings()
            yield from found or _set(_THREADS, _threads_of_user())
        case errno.ENOMEM:
            yield from _set(_ADDRESSES, _address_bytes())
            yield from _set(_DATA, _data_bytes())
            yield from _mappings()
            yield from _overcommit()
            yield from _memory()


def _near(of: _Resource, used: int | None) -> Iterator[Limit]:
    """Name a limit only if so much of it is used that a thread can be too much."""
    soft, _ = resource.getrlimit(of.number)
    spare = _THREADS_AT_ONCE if of.least else _STACKS
    if used is None or used >= _NEARLY * soft or used + spare > soft:
        yield from _set(of, used)


def _set(of: _Resource, used: int | None) -> Iterator[Limit]:
    soft, hard = resource.getrlimit(of.number)
    if soft == resource.RLIM_INFINITY:
        return
    enough = max(of.least, 1 << (4 * soft - 1).bit_length()) if of.least else 0
    option = str(enough) if enough else "unlimited"
    who = "before it is started"
    if hard != resource.RLIM_INFINITY and (not enough or hard < enough):
        who += f", by root, for the hard limit is {hard}"
    yield Limit(
        f"RLIMIT_{of.name}",
        f"the {of.whose} may have {soft} {of.unit} (RLIMIT_{of.name})"
        + ("" if used is None else f" and has {used}"),
        f"ulimit -{of.option} {option}, {who}; in a systemd unit: "
        f"Limit{of.name}={option.replace('unlimited', 'infinity')}",
    )


def soft_descriptors() -> int:
    """Return the number of descriptors that the process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_COUNTED if soft == resource.RLIM_INFINITY else soft


def _open_descriptors() -> int:
    """Count them without opening one more."""
    count = 0
    for fd in range(min(soft_descriptors(), _MOST_COUNTED)):
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_GETFD)
            count += 1
    return count


def _threads_of_user() -> int | None:
    """Count the threads of this user, as far as /proc shows them."""
    user, count = str(os.getuid()), 0
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdecimal():
                status = _status(name)
                if status.get("Uid", "").split()[:1] == [user]:
                    count += int(status.get("Threads", "0"))
    return count or None


def _status(process: str) -> dict[str, str]:
    lines = read(f"/proc/{process}/status").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _address_bytes() -> int | None:
    pages = read("/proc/self/statm").split()[:1]
    return int(pages[0]) * resource.getpagesize() if pages else None


def _data_bytes() -> int | None:
    kilobytes = _status("self").get("VmData", "").split()[:1]
    return int(kilobytes[0]) << 10 if kilobytes else None


def _pids() -> Iterator[Limit]:
    for group in groups("pids"):
        most, used = group.number("pids.max"), group.number("pids.current")
        if most is None:
            continue
        if used is None or used >= _NEARLY * most or used + _THREADS_AT_ONCE > most:
            yield Limit(
                "pids.max",
                f"its cgroup may have {most} processes and threads ({group.path}/pids.max)"
                + ("" if used is None else f" and has {used}"),
                f"as root: echo {max(4 * most, 4096)} > {group.path}/pids.max; docker run "
                "--pids-limit 4096; in a systemd unit: TasksMax=4096",
            )


def _mappings() -> Iterator[Limit]:
    most = read("/proc/sys/vm/max_map_count")
    used = _lines_of("/proc/self/maps")
    if most and used > int(most) - _FEW_MAPPINGS:
        yield Limit(
            "vm.max_map_count",
            f"the process has {used} mappings of at most {most} (vm.max_map_count)",
            f"as root: sysctl -w vm.max_map_count={max(4 * int(most), 262144)}",
        )


def _lines_of(path: str) -> int:
    """Count lines in pieces that need no mapping of their own."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return sum(piece.count(b"\n") for piece in iter(lambda: os.read(fd, _PIECE), b""))
    finally:
        os.close(fd)


def _overcommit() -> Iterator[Limit]:
    if read("/proc/sys/vm/overcommit_memory") != "2":
        return
    lines = (line.split() for line in read("/proc/meminfo").splitlines())
    sizes = {words[0]: int(words[1]) for words in lines if len(words) == 3}
    most, used = sizes.get("CommitLimit:"), sizes.get("Committed_AS:")
    known = "" if most is None else f", {most} kB, of which {used} kB are promised"
    yield Limit(
        "vm.overcommit_memory",
        "the kernel promises no more memory than there is (vm.overcommit_memory is 2, not 0 or 1)"
        + known,
        "as root: sysctl -w vm.overcommit_memory=0, or raise vm.overcommit_ratio",
    )


def _memory() -> Iterator[Limit]:
    for group in groups("memory"):
        most_name, used_name = MEMORY_FILES[group.version]
        most, used = group.number(most_name), group.number(used_name)
        if most is not None and used is not None and used >= _NEARLY * most:
            yield Limit(
                most_name,
                f"its cgroup may have {most} bytes of memory ({group.path}/{most_name}) and has "
                f"{used}",
                f"as root: echo {4 * most} > {group.path}/{most_name}; docker run --memory; in a "
                "systemd unit: MemoryMax=",
            )


#: How the limit and the use of memory are called in a control group, by version.
MEMORY_FILES: dict[int, tuple[str, str]] = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    2: ("memory.max", "memory.current"),
}


#: Why that is so, and what to do.
NOT_DUMPABLE = (
    "the process may not open it, because it is not dumpable (it has changed its user or group, or "
    "its program may not be read or has capabilities of its own): after the change call "
    "prctl(PR_SET_DUMPABLE, 1), in Python ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)"
)


def is_dumpable() -> bool:
    """Whether /proc/self belongs to this process's user.

    It does not after a change of user or group, and of a program that may not be read or that has
    capabilities of its own (PR_SET_DUMPABLE): then only the capability CAP_DAC_READ_SEARCH opens
    what is in it.
    """
    try:
        return os.stat("/proc/self/stat").st_uid == os.geteuid()
    except OSError:
        return True
