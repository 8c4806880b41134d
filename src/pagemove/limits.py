"""Which limit of the process, or of the machine, a refused call has met, and what to set."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from typing import NamedTuple


class Limit(NamedTuple):
    """A limit, what it is here, and how to raise it."""

    text: str
    remedy: str


class _Resource(NamedTuple):
    number: int
    name: str
    option: str
    unit: str
    enough: str


_DESCRIPTORS = _Resource(resource.RLIMIT_NOFILE, "NOFILE", "n", "descriptors", "1024")
_THREADS = _Resource(resource.RLIMIT_NPROC, "NPROC", "u", "processes and threads", "4096")
_ADDRESSES = _Resource(resource.RLIMIT_AS, "AS", "v", "bytes of addresses", "unlimited")
_DATA = _Resource(resource.RLIMIT_DATA, "DATA", "d", "bytes of data", "unlimited")

# With less room the kernel may have found the next mapping to be one too many.
_FEW_MAPPINGS = 1000


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


def _limits(code: int | None) -> Iterator[Limit]:
    match code:
        case errno.EMFILE:
            yield from _set(_DESCRIPTORS)
        case errno.ENFILE:
            most = read_text("/proc/sys/fs/file-max")
            yield Limit(
                f"the whole system may have {most or 'no more'} open files (fs.file-max)",
                "as root: sysctl -w fs.file-max=9223372036854775807",
            )
        case errno.EAGAIN:
            yield from _set(_THREADS)
            yield from _pids()
        case errno.ENOMEM:
            yield from _set(_ADDRESSES)
            yield from _set(_DATA)
            yield from _mappings()
            yield from _overcommit()


def _set(of: _Resource) -> Iterator[Limit]:
    soft, _hard = resource.getrlimit(of.number)
    if soft != resource.RLIM_INFINITY:
        yield Limit(
            f"the process may have {soft} {of.unit} (RLIMIT_{of.name})",
            f"ulimit -{of.option} {of.enough}, before it is started; in a systemd unit: "
            f"Limit{of.name}={of.enough.replace('unlimited', 'infinity')}",
        )


def _pids() -> Iterator[Limit]:
    group = read_text("/proc/self/cgroup").rpartition("::")[2].strip()
    most = read_text(f"/sys/fs/cgroup{group}/pids.max")
    if most.isdigit():
        yield Limit(
            f"its cgroup may have {most} processes and threads (pids.max)",
            "docker run --pids-limit 4096; in a systemd unit: TasksMax=4096",
        )


def _mappings() -> Iterator[Limit]:
    most = read_text("/proc/sys/vm/max_map_count")
    used = read_text("/proc/self/maps").count("\n")
    if most and used > int(most) - _FEW_MAPPINGS:
        yield Limit(
            f"the process has {used} mappings of at most {most} (vm.max_map_count)",
            f"as root: sysctl -w vm.max_map_count={max(4 * int(most), 262144)}",
        )


def _overcommit() -> Iterator[Limit]:
    if read_text("/proc/sys/vm/overcommit_memory") == "2":
        yield Limit(
            "the kernel promises no more memory than there is (vm.overcommit_memory is 2)",
            "as root: sysctl -w vm.overcommit_memory=0, or raise vm.overcommit_ratio",
        )


def read_text(path: str) -> str:
    """Read a file of procfs or sysfs; nothing where it is not, or may not be read."""
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""
