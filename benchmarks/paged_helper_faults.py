"""Random faults on 4 KiB blocks of a store in Python, against a fault handler all in Python."""

from __future__ import annotations

import mmap
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks._baselines import touch_each
from benchmarks._measure import Effort, Finding
from benchmarks._paging import Chunks, Way, cost, in_turn
from benchmarks._report import run_alone
from benchmarks._stores import Instant, elapsing, warmed
from pagemove import PagedMemory, lowlevel

_BLOCK = 4096
_TOUCHES = 256
_TARGET = 1.0
_PROT, _FLAGS = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def _handle(fd: int, base: int, store: Instant) -> None:
    """Serve faults forever: read an event, ask the store, copy."""
    page = mmap.mmap(-1, _BLOCK)
    view = memoryview(page)
    source = np.frombuffer(page, np.uint8).ctypes.data
    while True:
        for _, _, address, _ in lowlevel.read_events(fd, 1):
            start = address & -_BLOCK
            store.read_into(start - base, view)
            lowlevel.copy(fd, start, source, _BLOCK)


@contextmanager
def _handled(store: Instant) -> Iterator[int]:
    """Map memory that another process serves in Python; return its address."""
    fd = lowlevel.userfaultfd(os.O_CLOEXEC | lowlevel.UFFD_USER_MODE_ONLY)
    lowlevel.api(fd)
    address = lowlevel.mmap(0, store.nbytes, _PROT, _FLAGS)
    lowlevel.madvise(address, store.nbytes, mmap.MADV_DONTFORK)
    lowlevel.register(fd, address, store.nbytes, lowlevel.UFFDIO_REGISTER_MODE_MISSING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        try:
            _handle(fd, address, store)
        finally:
            os._exit(1)
    try:
        yield address
    finally:
        lowlevel.munmap(address, store.nbytes)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(fd)


def _way(name: str, address: int, chunks: Chunks) -> Way:
    def measure() -> float:
        return float(np.median(touch_each(address, chunks.take(_TOUCHES))))

    return Way(name, measure)


def measure(effort: Effort) -> list[Finding]:
    findings = []
    # One more round warms up; and the block that warms the helper up is touched again.
    store = Instant(_BLOCK * _TOUCHES * (effort.rounds + 1))
    baseline = "Python: read_events, store, UFFDIO_COPY"
    for place in elapsing():
        subject = f"a fault; {place.name}"
        with (
            place.here(),
            _handled(store) as address,
            PagedMemory(store, block_size=_BLOCK) as region,
        ):
            warmed(region)
            samples = in_turn(
                [
                    _way(baseline, address, Chunks(store.nbytes, _BLOCK, 1)),
                    _way(subject, region.address, Chunks(store.nbytes, _BLOCK, 2)),
                ],
                effort.rounds,
            )
            share = region.stats().faults * _BLOCK / store.nbytes
        note = f"{share:.0%} of the touches were faults"
        findings.append(cost(samples, subject, baseline, _TARGET, note))
    return findings


if __name__ == "__main__":
    run_alone(measure)
