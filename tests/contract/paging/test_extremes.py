"""Points 2 to 5 where there is much of something, or next to nothing of it."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pagemove import PagedMemory
from pagemove.stores import FileStore
from support import child, wait_for
from support.paging import (
    KIB,
    MIB,
    MODES,
    READ,
    SEQUENTIAL,
    Fault,
    Worker,
    expected,
    paged,
    words,
    wrong_words,
)
from support.threads import passing_threads, thread_names

pytestmark = pytest.mark.needs("move")

_BLOCK = 64 * KIB
_MANY = 400  # more than the pager has places for threads that wait


def _many_waiters(
    path: Path, mode: str, fault: Fault, limit: int | None, timeout: float
) -> list[str]:
    """So many threads at once, each waiting for a block of its own; return what became of them."""
    how = {"block_size": 4 * KIB, "resident_limit": limit, "prefetch": "off"}
    how["store_timeout"] = timeout
    outcomes = []
    with paged(path, mode, faults=[fault], **how) as memory:
        workers = [
            Worker(memory, READ, SEQUENTIAL, steps=1, span=(memory.address + n * 4 * KIB, 64))
            for n in range(_MANY)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            try:
                worker.join(30)
                outcomes.append("read")
            except AssertionError as error:
                outcomes.append("SIGBUS" if "signal 7" in str(error) else str(error))
    return outcomes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("limit", [None, 16 * KIB, MIB])
def test_hundreds_of_threads_that_wait(file, mode, limit):
    late = Fault("read", count=0, delay=0.004)
    # For as long as it takes: with four blocks for all of them, on a machine that others use too.
    found = child(_many_waiters, file(_MANY * 4 * KIB), mode, late, limit, 100.0, deadline=60)
    assert set(found) == {"read"}


@pytest.mark.needs("poison")
@pytest.mark.parametrize("mode", MODES)
def test_hundreds_of_threads_that_wait_in_vain(file, mode):
    broken = Fault("read", count=0, errno=errno.EIO)
    begin = time.monotonic()
    found = child(_many_waiters, file(_MANY * 4 * KIB), mode, broken, None, 1.0, deadline=60)
    assert set(found) == {"SIGBUS"}
    # Each is given up at its own time, not one after the other.
    assert time.monotonic() - begin < 20


def _huge(path: Path, mode: str) -> dict[str, float]:
    took = {}

    def timed(name: str, call):
        begin = time.monotonic()
        result = call()
        took[name] = time.monotonic() - begin
        return result

    context = paged(path, mode, resident_limit=MIB, block_size=4 * KIB)
    memory = timed("open", context.__enter__)
    array = words(memory)
    for place in np.random.default_rng(1).integers(0, len(array), 500).tolist():
        if mode == "r":
            array[place].item()
        else:
            array[place] = 1
    del array
    timed("flush", memory.flush)
    timed("evict", memory.evict)
    timed("stats", memory.stats)
    timed("close", lambda: context.__exit__(None, None, None))
    return took


@pytest.mark.parametrize("mode", MODES)
def test_a_tebibyte_of_small_blocks_costs_no_more_than_what_was_touched(tmp_path, mode):
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    took = child(_huge, path, mode, deadline=60)
    assert took["open"] < 1.0
    assert max(took.values()) < 10.0, took


def _descriptors_and_threads() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), len(passing_threads())


def _failing_opens(path: Path, mode: str, kind: int, room: list[int]) -> tuple[int, int, int]:
    """Open with less and less of a resource; return lost descriptors and threads, and failures."""
    soft, hard = resource.getrlimit(kind)
    failed = 0
    with paged(path, "r"):
        pass  # what a process makes once is there from here on
    wait_for(lambda: "pagemove-faults" not in thread_names().values())
    before = _descriptors_and_threads()
    for more in room:
        with FileStore(path, writable=mode == "r+") as store:
            used = len(os.listdir("/proc/self/fd")) - 1
            if kind == resource.RLIMIT_AS:
                used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
            resource.setrlimit(kind, (used + more, hard))
            try:
                with PagedMemory(store, mode=mode, block_size=_BLOCK) as memory:
                    resource.setrlimit(kind, (soft, hard))
                    wrong = wrong_words(words(memory))
                    assert wrong is None, wrong
            except (OSError, MemoryError):
                failed += 1
            finally:
                resource.setrlimit(kind, (soft, hard))
    # A thread that has been joined is listed until the kernel has closed its files.
    with contextlib.suppress(AssertionError):
        wait_for(lambda: _descriptors_and_threads() <= before)
    after = _descriptors_and_threads()
    return after[0] - before[0], after[1] - before[1], failed


@pytest.mark.parametrize("mode", MODES)
def test_an_open_without_descriptors_leaves_nothing(file, mode):
    room = list(range(-3, 9))
    lost = child(_failing_opens, file(4 * _BLOCK), mode, resource.RLIMIT_NOFILE, room)
    assert lost[:2] == (0, 0)
    assert 0 < lost[2] < len(room)


@pytest.mark.parametrize("mode", MODES)
def test_an_open_without_address_space_leaves_nothing(file, mode):
    room = [n * 512 * KIB for n in range(24)]
    lost = child(_failing_opens, file(4 * _BLOCK), mode, resource.RLIMIT_AS, room)
    assert lost[:2] == (0, 0)
    assert lost[2] > 3


def _evicted_then_flushed(path: Path) -> int | None:
    """What evictions have written is not durable before a flush has made it so."""
    fault = [Fault("flush", count=0, errno=errno.EIO)]
    how = {"block_size": _BLOCK, "resident_limit": 4 * _BLOCK, "store_timeout": 0.1}
    context = paged(path, "r+", faults=fault, **how)
    memory = context.__enter__()
    words(memory)[:: _BLOCK // 8] += np.uint64(1)
    memory.evict()
    assert memory.stats().dirty_nbytes == 0
    try:
        memory.flush()
    except OSError as error:
        return error.errno
    return None


def test_a_flush_makes_durable_what_evictions_have_written(file):
    assert child(_evicted_then_flushed, file(16 * _BLOCK)) == errno.EIO


def _interrupted(path: Path) -> str:
    """Control-C while the main thread is in a call that takes long, and in a fault."""
    late = [Fault("write", count=0, delay=0.02), Fault("read", count=0, delay=0.02)]
    seen = "nothing"
    with paged(path, "r+", faults=late, block_size=_BLOCK) as memory:
        words(memory)[::64] += np.uint64(1)
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            while True:
                memory.flush()
                words(memory)[::64] += np.uint64(0)
        except KeyboardInterrupt:
            seen = "KeyboardInterrupt"
        timer.join()
        words(memory)[::64] -= np.uint64(1)
        wrong = wrong_words(words(memory))
    return wrong or seen


def test_control_c_during_a_flush(file):
    assert child(_interrupted, file(8 * _BLOCK)) == "KeyboardInterrupt"


def _small_stacks(path: Path) -> str | None:
    """Threads of the smallest stack touch and store; the pager's own do not depend on it."""
    resource.setrlimit(resource.RLIMIT_STACK, (64 * KIB, resource.getrlimit(3)[1]))
    with paged(path, "r+", block_size=_BLOCK, resident_limit=4 * _BLOCK) as memory:
        words(memory)[::64] += np.uint64(1)
        memory.flush()
        words(memory)[::64] -= np.uint64(1)
    return wrong_words(np.fromfile(path, np.uint64))


def test_with_small_stacks(file):
    assert child(_small_stacks, file(8 * _BLOCK)) is None


def test_many_regions_at_once(file):
    path = file(8 * _BLOCK)

    def many() -> int:
        stores = [FileStore(path) for _ in range(40)]
        regions = [PagedMemory(s, block_size=_BLOCK, resident_limit=4 * _BLOCK) for s in stores]
        good = sum(bool((words(m) == expected(8 * _BLOCK)).all()) for m in regions * 2)
        for each in regions + stores:
            each.close()
        return good

    assert child(many, deadline=60) == 80
