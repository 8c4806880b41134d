"""How much another thread, faulting in unrelated memory, is slowed while pages are moved."""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

import pagemove
from pagemove import PAGE_SIZE, lowlevel
from pagemove.compare import methods
from pagemove.compare.plan import Bench
from pagemove.compare.verdicts import Finding
from pagemove.measuring.endings import Stopped, Unmeasurable
from pagemove.measuring.machine import Area, open_userfaultfd
from pagemove.measuring.timing import Spread, below, spread

_STARTED = 64
_LEAST_ROUNDS = 3
_LEAST_SHARE = 0.8
# Room for this many times the faults of one window, as the rate varies.
_MARGIN = 4

Bounce = Callable[[int, int, int], object]


@dataclass(frozen=True, slots=True)
class Disturbance:
    """One measured effect on the faulting thread.

    Attributes
    ----------
    method : str
        What the measuring thread did meanwhile, as often as it could.
    pages : int
        Pages that each of its operations brought to another place.
    fault : Spread
        Nanoseconds from one fault of the other thread to the next.
    lost : Spread
        Nanoseconds of the other thread's time lost to one operation: how often the operations
        come, which differs much, is taken out of it.
    operations : Spread
        Operations in a millisecond.
    """

    method: str
    pages: int
    fault: Spread
    lost: Spread
    operations: Spread


@dataclass(frozen=True, slots=True)
class Contention:
    """All of them, and the faults while nothing was moved."""

    undisturbed: Spread
    disturbances: tuple[Disturbance, ...]

    def find(self, name: str, pages: int) -> Disturbance:
        """Return one of them."""
        return next(d for d in self.disturbances if (d.method, d.pages) == (name, pages))

    def pages(self) -> list[int]:
        """List the numbers of pages that one operation moved."""
        return sorted({disturbance.pages for disturbance in self.disturbances})

    def slowdown(self, disturbance: Disturbance) -> float:
        """Return how many times as long a fault takes as undisturbed."""
        return disturbance.fault.median / self.undisturbed.median


class _Faulter:
    """A thread that touches page after page of fresh memory, without the GIL, on its own CPU."""

    def __init__(self, pages: int, cpu: int) -> None:
        self._area = Area(pages * PAGE_SIZE)
        self.pages = pages
        self._cpu = cpu
        view = self._area.view(self._area.address, pages * PAGE_SIZE)
        self._first_bytes = np.frombuffer(view, np.uint8)[::PAGE_SIZE]
        self._thread: threading.Thread | None = None
        self._clock = 0

    def _touch(self) -> None:
        os.sched_setaffinity(0, {self._cpu})
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        self._first_bytes.fill(1)

    def reached(self) -> int:
        """Count the pages touched so far: they are touched in order."""
        low, high = 0, self.pages
        while low < high:
            middle = (low + high) // 2
            if lowlevel.mincore(self._area.address + middle * PAGE_SIZE, PAGE_SIZE)[0] & 1:
                low = middle + 1
            else:
                high = middle
        return low

    def ran(self) -> int | None:
        """Return the nanoseconds of CPU time the thread has had; None once it has ended."""
        try:
            return time.clock_gettime_ns(self._clock)
        except OSError:  # EINVAL: on a busy machine it can end before this thread runs again
            return None

    def start(self) -> None:
        """Begin, and return when it is on its way."""
        self._thread = threading.Thread(target=self._touch, name="pagemove-faults", daemon=True)
        self._thread.start()
        alive = True
        while self.reached() < _STARTED:
            if not alive:
                raise OSError(errno.EINVAL, f"no thread can be kept on CPU {self._cpu}")
            alive = self._thread.is_alive()
            time.sleep(0.0001)

    def finish(self) -> None:
        """Wait until all is touched, and discard it."""
        if self._thread:
            self._thread.join()
        self._thread = None
        lowlevel.madvise(self._area.address, self.pages * PAGE_SIZE, mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Free the memory."""
        self._area.close()


def _there_and_back(call: Bounce) -> Bounce:
    def bounce(one: int, other: int, length: int) -> None:
        call(other, one, length)
        call(one, other, length)

    return bounce


def _remapping(flags: int) -> Bounce:
    return _there_and_back(lambda to, at, length: lowlevel.mremap(at, length, length, flags, to))


def _copying(one: Area, other: Area, length: int, *, discard: bool) -> Bounce:
    first, second = one.view(one.address, length), other.view(other.address, length)

    def bounce(one: int, other: int, length: int) -> None:
        second[:] = first
        if discard:
            lowlevel.madvise(one, length, mmap.MADV_DONTNEED)
        first[:] = second
        if discard:
            lowlevel.madvise(other, length, mmap.MADV_DONTNEED)

    return bounce


def _uffdio_copying(fd: int, one: Area, other: Area) -> Bounce:
    for area in (one, other):
        mode = lowlevel.UFFDIO_REGISTER_MODE_WP
        lowlevel.register(fd, area.address, area.nbytes, mode)

    def copy(to: int, at: int, length: int) -> None:
        lowlevel.copy(fd, to, at, length)
        lowlevel.madvise(at, length, mmap.MADV_DONTNEED)

    return _there_and_back(copy)


@contextmanager
def _bouncing(name: str, pages: int) -> Iterator[Callable[[], object]]:
    """Return a function that moves `pages` pages to another place and back."""
    length = pages * PAGE_SIZE
    remap = lowlevel.MREMAP_MAYMOVE | lowlevel.MREMAP_FIXED
    with ExitStack() as stack:
        one, other = (stack.enter_context(Area(length)) for _ in range(2))
        one.fill(one.address, length)
        if name == methods.RemapAnonPages.name:
            bounce = _there_and_back(pagemove.remap_anon_pages)
        elif name == methods.Mremap.name:
            bounce = _remapping(remap)
        elif name == methods.MremapKeepSource.name:
            bounce = _remapping(remap | lowlevel.MREMAP_DONTUNMAP)
        elif name == methods.UffdioCopy.name:
            fd = open_userfaultfd()
            stack.callback(os.close, fd)
            bounce = _uffdio_copying(fd, one, other)
        else:
            bounce = _copying(one, other, length, discard=name == methods.MemcpyFresh.name)
        yield lambda: bounce(one.address, other.address, length)


_NAMES = (
    methods.RemapAnonPages.name,
    methods.Mremap.name,
    methods.MremapKeepSource.name,
    methods.Memcpy.name,
    methods.MemcpyFresh.name,
    methods.UffdioCopy.name,
)


class _Sample(NamedTuple):
    """What one window showed: ns a fault, steps a millisecond, CPU share of the other thread."""

    fault: float
    steps: float
    share: float


def _sample(faulter: _Faulter, window: float, step: Callable[[], object] | None) -> _Sample | None:
    """Take steps for `window` seconds; None if the other thread came to its end in that time."""
    clock = time.perf_counter_ns
    faulter.start()
    try:
        steps = 0
        before, ran_before, started = faulter.reached(), faulter.ran(), clock()
        deadline = started + int(window * 1e9)
        while (now := clock()) < deadline:
            if step:
                step()
                steps += 1
        ran, after = faulter.ran(), faulter.reached()
        if ran is None or ran_before is None or after == faulter.pages:
            return None
    finally:
        faulter.finish()
    elapsed = now - started
    share = (ran - ran_before) / elapsed
    return _Sample(elapsed / max(after - before, 1), steps * 1e6 / elapsed, share)


def _fault_cost(cpu: int) -> float:
    pages = 4096
    faulter = _Faulter(pages, cpu)
    try:
        started = time.perf_counter_ns()
        faulter.start()
        faulter.finish()
        return (time.perf_counter_ns() - started) / pages
    finally:
        faulter.close()


def _lost(undisturbed: float, disturbed: float, operations: float) -> float:
    """Return the nanoseconds lost to one operation, of the 1e6 of each millisecond."""
    return (1 - undisturbed / disturbed) * 1e6 / operations


def measure(bench: Bench) -> Contention:
    """Let another thread fault while each method works, in turn, round after round."""
    plan, cpu = bench.plan, bench.sibling_cpu
    if cpu is None:
        raise Unmeasurable("it takes two CPUs, and only one may be used")
    # The first time, memory may have to come from the host.
    fault = min(_fault_cost(cpu) for _ in range(3))
    faulter = _Faulter(int(_MARGIN * plan.fault_window * 1e9 / fault) + _STARTED, cpu)
    keys = [(name, pages) for pages in plan.fault_pages for name in _NAMES]
    undisturbed: list[_Sample] = []
    samples: dict[tuple[str, int], list[tuple[float, float, float]]] = {key: [] for key in keys}
    stopped = False
    try:
        with ExitStack() as stack:
            steps = {key: stack.enter_context(_bouncing(*key)) for key in keys}
            for number in range(plan.fault_rounds):
                if number >= _LEAST_ROUNDS and time.monotonic() > bench.deadline:
                    break
                bench.tick("another thread faults meanwhile", number / plan.fault_rounds)
                free = _sample(faulter, plan.fault_window, None)
                if not free:
                    continue
                undisturbed.append(free)
                first = number % len(keys)
                for key in [*keys[first:], *keys[:first]]:
                    if found := _sample(faulter, plan.fault_window, steps[key]):
                        # A step goes there and back: two operations.
                        operations = 2 * found.steps
                        lost = _lost(free.fault, found.fault, operations)
                        samples[key].append((found.fault, lost, operations))
    except KeyboardInterrupt:
        if not all(samples.values()):
            raise
        stopped = True
    finally:
        faulter.close()
    if not all(samples.values()):
        raise Unmeasurable("the speed of the other thread's faults varies too much")
    share = spread([sample.share for sample in undisturbed]).median
    if share < _LEAST_SHARE and stopped:
        raise KeyboardInterrupt
    if share < _LEAST_SHARE:
        raise Unmeasurable(
            "other processes are busy: the faulting thread, alone and undisturbed, had its CPU for "
            f"only {share:.0%} of the time"
        )
    contention = Contention(
        spread([sample.fault for sample in undisturbed]),
        tuple(
            Disturbance(*key, *(spread(column) for column in zip(*samples[key], strict=True)))
            for key in keys
        ),
    )
    if stopped:
        raise Stopped(contention)
    return contention


def judge(data: Contention) -> Finding:
    """Ask whether one mremap costs the other thread more than one move of pages does."""
    slower = []
    parts = []
    for pages in data.pages():
        ours = data.find(methods.RemapAnonPages.name, pages)
        theirs = data.find(methods.Mremap.name, pages)
        discarding = data.find(methods.MemcpyFresh.name, pages)
        slower.append(below(ours.lost, theirs.lost))
        parts.append(
            f"{pages} page{'s' if pages > 1 else ''} at a time: {ours.lost.median / 1000:.1f} us "
            f"for remap_anon_pages, {theirs.lost.median / 1000:.1f} us for mremap (and "
            f"{discarding.lost.median / 1000:.1f} us for a copy and madvise, which changes no "
            f"mapping); a fault takes {data.slowdown(ours):.2f} and {data.slowdown(theirs):.2f} "
            "times as long while they follow each other"
        )
    why = f"One operation costs the faulting thread, {'; '.join(parts)}."
    return Finding.of(slower, why)
