"""The machine that is measured: what to say of it, and how to hold it still.

Pins threads to CPUs, keeps a second thread of the process running, finds room for memory whose
mappings may be taken apart, and chills the caches.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from pagemove import HUGE_PAGE_SIZE, PAGE_SIZE, features, lowlevel

# <asm-generic/mman-common.h>; what the module `mmap` leaves out.
_PROT_NONE = 0
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000

_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_CACHE = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True, slots=True)
class Machine:
    """What a reader has to know of the machine to compare its figures with another's."""

    kernel: str
    architecture: str
    cpus: int
    pinned: bool
    page_size: int
    huge_page_size: int
    huge_pages: str
    max_map_count: int
    defects: tuple[str, ...]
    last_level_cache: int
    python: str
    numpy: str


def last_level_cache() -> int:
    """Bytes of the largest cache that CPU 0 uses; 0 if the kernel does not say."""
    sizes = [path.read_text().strip() for path in _CACHE.glob("index*/size")]
    return max((int(size[:-1]) * _UNITS[size[-1]] for size in sizes), default=0)


def machine() -> Machine:
    """Describe this machine."""
    found = features()
    cpus = len(os.sched_getaffinity(0))
    return Machine(
        kernel=found.release,
        architecture=platform.machine(),
        cpus=cpus,
        pinned=cpus > 1,
        page_size=found.page_size,
        huge_page_size=found.huge_page_size,
        huge_pages=found.thp,
        max_map_count=found.max_map_count,
        defects=found.defects,
        last_level_cache=last_level_cache(),
        python=platform.python_version(),
        numpy=np.__version__,
    )


@contextmanager
def pinned() -> Iterator[int | None]:
    """Keep the calling thread on one CPU, and give the number of another, if there is another."""
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        yield None
        return
    own, other = sorted(allowed)[:2]
    os.sched_setaffinity(0, {own})
    try:
        yield other
    finally:
        os.sched_setaffinity(0, allowed)


def _require(result: int, call: str) -> None:
    if result:
        raise OSError(result, f"{call}: {os.strerror(result)}")


class Sibling:
    """A second thread of this process, and how long it has run."""

    def __init__(self, thread_clock: int) -> None:
        self._clock = thread_clock
        self._started = time.monotonic_ns()
        self._ran = self.ran()

    def ran(self) -> int:
        """Return the nanoseconds of CPU time it has had."""
        return time.clock_gettime_ns(self._clock)

    def share(self) -> float:
        """Return for how much of the time since it started it really ran."""
        return (self.ran() - self._ran) / max(time.monotonic_ns() - self._started, 1)


@contextmanager
def running_sibling(cpu: int | None) -> Iterator[Sibling | None]:
    """Keep a second thread of this process busy on `cpu`, if given, without GIL and memory.

    It waits for a POSIX spin lock, which is a loop of a few instructions in user space: nothing
    slows the measuring thread but the need to tell the other CPU of a changed page table.
    """
    if cpu is None:
        yield None
        return
    libc = ctypes.CDLL(None)
    lock = ctypes.c_int()
    clocks: list[int] = []
    ready = threading.Event()

    def spin() -> None:
        try:
            os.sched_setaffinity(0, {cpu})
            clocks.append(time.pthread_getcpuclockid(threading.get_ident()))
        finally:
            ready.set()
        libc.pthread_spin_lock(ctypes.byref(lock))
        libc.pthread_spin_unlock(ctypes.byref(lock))

    _require(libc.pthread_spin_init(ctypes.byref(lock), 0), "pthread_spin_init")
    _require(libc.pthread_spin_lock(ctypes.byref(lock)), "pthread_spin_lock")
    thread = threading.Thread(target=spin, name="pagemove-sibling", daemon=True)
    thread.start()
    try:
        ready.wait()
        if not clocks:
            raise OSError(errno.EINVAL, f"no thread can be kept on CPU {cpu}")
        sibling = Sibling(clocks[0])
        begun = sibling.ran()
        while sibling.ran() - begun < 1_000_000:
            time.sleep(0.001)
        yield Sibling(clocks[0])
    finally:
        libc.pthread_spin_unlock(ctypes.byref(lock))
        thread.join()


class Intrusions:
    """Notices that another process took the CPU of the calling thread, or of its sibling."""

    def __init__(self, sibling: Sibling | None) -> None:
        self._sibling = sibling
        self._switches = 0
        self._ran = 0

    def start(self) -> None:
        """Take notice from now on."""
        self._switches = _switches()
        self._ran = self._sibling.ran() if self._sibling else 0

    def disturbed(self, elapsed: int) -> bool:
        """Return whether it was so in the `elapsed` nanoseconds since `start`."""
        idle = self._sibling is not None and self._sibling.ran() - self._ran < elapsed // 2
        return idle or _switches() != self._switches


def _switches() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


class Area:
    """Private anonymous memory whose parts may be moved away and mapped anew.

    It lies where the kernel does not look first for room: while a part of it is unmapped, another
    thread's `mmap` must not end up there.

    Parameters
    ----------
    nbytes : int
        Rounded up to whole huge pages.
    huge_pages : bool
        Whether it shall, or must not, consist of huge pages.
    """

    _next: ClassVar[int] = 0

    def __init__(self, nbytes: int, *, huge_pages: bool = False) -> None:
        unit = HUGE_PAGE_SIZE or PAGE_SIZE
        self.nbytes = -(-nbytes // unit) * unit
        self._advice = mmap.MADV_HUGEPAGE if huge_pages else mmap.MADV_NOHUGEPAGE
        # A unit on either side stays inaccessible, so that the mapping has no neighbours.
        self._reserved = self.nbytes + 3 * unit
        flags = _ANONYMOUS | _MAP_NORESERVE
        self._start = lowlevel.mmap(self._hint(unit), self._reserved, _PROT_NONE, flags)
        self.address = -(-self._start // unit) * unit + unit
        self.map(self.address, self.nbytes)

    def _hint(self, unit: int) -> int:
        if not Area._next:
            usual = lowlevel.mmap(0, PAGE_SIZE, _PROT_NONE, _ANONYMOUS)
            lowlevel.munmap(usual, PAGE_SIZE)
            Area._next = usual // 2 // unit * unit
        hint = Area._next
        Area._next += self._reserved
        return hint

    def map(self, address: int, nbytes: int) -> None:
        """Map fresh memory over a part of the area, whatever is there."""
        lowlevel.mmap(address, nbytes, _READ_WRITE, _ANONYMOUS | _MAP_FIXED)
        if HUGE_PAGE_SIZE:
            lowlevel.madvise(address, nbytes, self._advice)

    def view(self, address: int, nbytes: int) -> memoryview:
        """Return the bytes of a part of the area; never to be used after `close`."""
        return memoryview((ctypes.c_char * nbytes).from_address(address)).cast("B")

    def fill(self, address: int, nbytes: int) -> None:
        """Write to every byte of a part, so that there are pages, and not zero pages."""
        np.frombuffer(self.view(address, nbytes), np.uint8)[:] = 0x5A

    def close(self) -> None:
        """Free everything."""
        lowlevel.munmap(self._start, self._reserved)

    def __enter__(self) -> Area:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_userfaultfd() -> int:
    """Open a userfaultfd through whichever door is open, and agree on the API; see userfaultfd(2).

    Raises
    ------
    OSError
        That of the system call, if there is no other door.
    """
    flags = os.O_CLOEXEC | lowlevel.UFFD_USER_MODE_ONLY
    try:
        fd = lowlevel.userfaultfd(flags)
    except OSError as refused:
        try:
            device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
            try:
                fd = lowlevel.userfaultfd_new(device, flags)
            finally:
                os.close(device)
        except OSError:
            raise refused from None
    lowlevel.api(fd)
    return fd


class Chill:
    """Turns the caches over to something else, by reading twice their size."""

    def __init__(self) -> None:
        nbytes = min(max(2 * last_level_cache(), 32 << 20), 256 << 20)
        self._rest = np.ones(nbytes // 8, np.uint64)

    @property
    def nbytes(self) -> int:
        """Bytes that are read."""
        return self._rest.nbytes

    def __call__(self) -> None:
        """Read them."""
        self._rest.max()
