"""Point 5: nothing deadlocks, whatever happens at the same time, down to a limit of four blocks.

Each case runs in a child that is killed at its deadline.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pagemove import PAGE_SIZE, PagedMemory, StoreError
from support import child, together
from support.paging import (
    BLOCKS,
    COUNT,
    KIB,
    MODES,
    RANDOM,
    READ,
    SEQUENTIAL,
    Fault,
    Struck,
    Worker,
    expected,
    load,
    move_word,
    paged,
    words,
    wrong_words,
)
from support.selection import few

pytestmark = pytest.mark.needs("paging")

_BLOCK = 64 * KIB
_COUNT = 16
_NBYTES = _COUNT * _BLOCK
_FOUR = {"block_size": _BLOCK, "resident_limit": 4 * _BLOCK}


def _many_threads(path: Path, mode: str, block: int) -> str | None:
    """Three times as many threads as blocks may be resident, each wanting another block."""
    with paged(path, mode, block_size=block, resident_limit=4 * block) as memory:
        shadow = np.zeros(memory.nbytes // 8, np.uint32)
        kind, steps = READ if mode == "r" else COUNT, few(60, 20)
        threads = [
            Worker(memory, kind, RANDOM, number=n, of=12, shadow=shadow, steps=steps, seed=n)
            for n in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return wrong_words(words(memory), shadow=shadow)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("block", [PAGE_SIZE, _BLOCK, 2048 * KIB])
def test_more_threads_than_blocks(file, mode, block):
    assert child(_many_threads, file(_COUNT * block), mode, block, deadline=40) is None


def _four_at_once(path: Path, mode: str, block: int) -> str | None:
    """One instruction that needs four blocks: it makes no progress while one of them is absent."""
    with paged(path, mode, block_size=block, resident_limit=4 * block) as memory:
        wanted = bytearray(path.read_bytes())
        for turn in range(30):
            of, to = ((7 * turn + k) % (_COUNT - 1) + 1 for k in (0, 4))
            if abs(of - to) < 2:
                continue
            source, target = of * block - 4, to * block - 4
            if mode == "r":
                buffer = ctypes.create_string_buffer(8)
                move_word(ctypes.addressof(buffer), memory.address + source)
                assert buffer.raw == wanted[source : source + 8]
            else:
                move_word(memory.address + target, memory.address + source)
                wanted[target : target + 8] = wanted[source : source + 8]
        with memoryview(memory) as view:
            return None if bytes(view) == wanted else "other contents"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("block", BLOCKS)
def test_an_instruction_that_needs_four_blocks_at_once(file, mode, block):
    assert child(_four_at_once, file(_COUNT * block), mode, block) is None


def _copies(path: Path) -> str | None:
    """Threads that copy between blocks: each needs two at once, and all of them eight."""
    with paged(path, "r+", **_FOUR) as memory:
        step = _BLOCK // 8

        def copy(number: int) -> None:
            array = words(memory)
            for turn in range(20):
                of = 4 * number + turn % 2
                to = 4 * number + 2 + turn % 2
                array[to * step : (to + 1) * step] = array[of * step : (of + 1) * step]

        together(*[lambda n=n: copy(n) for n in range(4)])
        whole = words(memory).reshape(_COUNT, -1)
        original = expected(_NBYTES).reshape(_COUNT, -1)
        good = all(
            (whole[4 * n + k] == original[4 * n + k % 2]).all() for n in range(4) for k in range(4)
        )
        del whole
        return None if good else "other contents"


def test_threads_that_copy_between_blocks(file):
    assert child(_copies, file(_NBYTES), deadline=40) is None


def _everything_at_once(path: Path, mode: str, how: dict) -> str | None:
    with paged(path, mode, **how) as memory:
        shadow = np.zeros(memory.nbytes // 8, np.uint32)
        kind = READ if mode == "r" else COUNT
        threads = [
            Worker(memory, kind, order, number=n, of=2, shadow=shadow, seed=n)
            for n, order in enumerate((RANDOM, SEQUENTIAL))
        ]
        for thread in threads:
            thread.start()
        rng = np.random.default_rng(1)
        limit = time.monotonic() + 0.6
        calls = [
            memory.flush,
            memory.evict,
            memory.prefetch,
            memory.stats,
            lambda: memory.prefetch(wait=True),
            lambda: memory.evict(int(rng.integers(0, _NBYTES)), 1),
            lambda: memory.prefetch(int(rng.integers(0, _NBYTES)), 1, wait=True),
            lambda: memory.prefetch(_NBYTES // 2, _NBYTES // 4),
        ]

        def again(call) -> None:
            while time.monotonic() < limit:
                call()

        together(*[lambda c=call: again(c) for call in calls])
        for thread in threads:
            thread.stop()
        return wrong_words(words(memory), shadow=shadow)


LATE = [Fault(operation, count=0, delay=0.002) for operation in ("read", "write", "flush")]
FAILING = [
    Fault(operation, first=call, count=1, errno=5)
    for operation in ("read", "write")
    for call in range(0, 600, 3)
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "how",
    [
        {},
        _FOUR,
        _FOUR | {"faults": LATE},
        _FOUR | {"faults": FAILING, "store_timeout": 20.0},
        {"block_size": 4 * KIB, "resident_limit": 16 * KIB},
        {"prefetch": "off"} | _FOUR,
    ],
    ids=["unlimited", "four blocks", "late", "failing", "four pages", "no read-ahead"],
)
def test_all_calls_at_once(file, mode, how):
    assert child(_everything_at_once, file(_NBYTES), mode, how, deadline=60) is None


def _close_with_pending(path: Path, mode: str) -> tuple[bool, bool]:
    """Close while a thread, which holds no view, waits for a block that is late."""
    late = [Fault("read", count=0, delay=0.6)]
    context = paged(path, mode, faults=late, **_FOUR)
    memory = context.__enter__()
    worker = Worker(memory, READ, SEQUENTIAL, steps=1).start()
    time.sleep(0.2)
    begin = time.monotonic()
    memory.close()
    took = time.monotonic() - begin
    # What it gets, the block or a signal, is its own fault; but it must not sleep forever.
    try:
        worker.join(10)
    except AssertionError as error:
        return "stuck" not in str(error), took < 5
    return True, took < 5


@pytest.mark.parametrize("mode", MODES)
def test_close_while_a_thread_waits_for_a_block(file, mode):
    assert child(_close_with_pending, file(_NBYTES), mode) == (True, True)


def _close_while_reading_ahead(path: Path, mode: str) -> bool:
    late = [Fault("read", count=0, delay=0.3)]
    for _ in range(3):
        with paged(path, mode, faults=late, **_FOUR) as memory:
            memory.prefetch()
            begin = time.monotonic()
        # Not for what has not begun, which would be some 20 seconds.
        assert time.monotonic() - begin < 10
    return True


@pytest.mark.parametrize("mode", MODES)
def test_close_while_reading_ahead(file, mode):
    assert child(_close_while_reading_ahead, file(_NBYTES), mode, deadline=60)


def _close_after(memory: PagedMemory, pause: float) -> None:
    time.sleep(pause)
    while not memory.closed:
        try:
            memory.close()
        except BufferError:
            time.sleep(0.0005)


def _close_in_threads(path: Path, mode: str) -> list[str]:
    """Close, in the middle of calls of other threads: each ends, done or refused."""
    outcomes: list[str] = []
    for turn in range(few(10, 4)):
        context = paged(path, mode, **_FOUR)
        memory = context.__enter__()
        if mode != "r":
            words(memory)[:: _BLOCK // 8] = turn

        def use(call) -> None:
            try:
                for _ in range(200):
                    call()
            except (ValueError, BufferError):
                outcomes.append("refused")

        calls = [memory.flush, memory.stats, lambda m=memory: m.prefetch(wait=True), memory.evict]
        together(
            *[lambda call=call: use(call) for call in calls],
            lambda m=memory, t=turn: _close_after(m, 0.001 * t),
        )
    return outcomes


@pytest.mark.parametrize("mode", MODES)
def test_close_during_calls_of_other_threads(file, mode):
    child(_close_in_threads, file(_NBYTES), mode, deadline=120)


def _two_regions(path: Path, modes: tuple[str, str]) -> str | None:
    """Two regions over one file; a thread copies from one to the other, and threads scan both."""
    how = {**_FOUR, "lock": False}
    with paged(path, modes[0], **how) as one, paged(path, modes[1], **how) as other:
        readers = [Worker(memory, READ, order) for memory in (one, other) for order in (0, 1)]
        for reader in readers:
            reader.start()
        for turn in range(5):
            if modes[1] != "r":
                words(other)[:] = words(one)
            one.flush()
            other.flush()
            (one if turn % 2 else other).evict()
        for reader in readers:
            reader.stop()
        return wrong_words(words(one)) or wrong_words(words(other))


@pytest.mark.parametrize("modes", [("r", "r"), ("r", "r+"), ("r", "c"), ("c", "c"), ("r+", "r+")])
def test_two_regions_over_one_file(file, modes):
    path = file(_NBYTES)
    assert child(_two_regions, path, modes, deadline=40) is None
    assert wrong_words(np.fromfile(path, np.uint64)) is None


def _signals(path: Path) -> str | None:
    """SIGSTOP and SIGCONT of all threads, and handlers, while threads fault and flush."""
    signal.signal(signal.SIGUSR1, lambda *_: None)
    with paged(path, "r+", **_FOUR) as memory:
        shadow = np.zeros(_NBYTES // 8, np.uint32)
        writers = [Worker(memory, COUNT, number=n, of=2, shadow=shadow) for n in (0, 1)]
        for writer in writers:
            writer.start()
        pid = os.getpid()
        stopper = os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", f"for i in 1 2 3 4 5 6 7 8 9; do kill -STOP {pid}; kill -CONT {pid}; "
             f"kill -USR1 {pid}; sleep 0.03; done"],
            os.environ,
        )  # fmt: skip
        while not os.waitpid(stopper, os.WNOHANG)[0]:
            memory.flush()
        for writer in writers:
            writer.stop()
        return wrong_words(words(memory), shadow=shadow)


def test_stopped_and_continued(file):
    assert child(_signals, file(_NBYTES)) is None


def _threads_block_signals(path: Path) -> list[str]:
    """The region's own threads take no signal that is the program's."""
    before = set(os.listdir("/proc/self/task"))
    found = []
    with paged(path, "r+", **_FOUR):
        for task in set(os.listdir("/proc/self/task")) - before:
            with open(f"/proc/self/task/{task}/status") as status:
                blocked = next(line for line in status if line.startswith("SigBlk"))
            found.append(blocked.split()[1])
    return found


def test_its_threads_take_no_signals(file):
    masks = child(_threads_block_signals, file(_NBYTES))
    assert masks
    for mask in masks:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD):
            assert int(mask, 16) >> (number - 1) & 1, f"{number.name} is not blocked"


def _flush_in_parallel(path: Path) -> str | None:
    with paged(path, "r+", **_FOUR) as memory:
        for turn in range(20):
            words(memory)[::64] = turn
            together(*[memory.flush] * 4)
            found = np.fromfile(path, np.uint64)
            if not (found[::64] == turn).all():
                return f"turn {turn} is not in the file"
    return None


def test_several_flushes_at_once_each_wait_for_all_of_it(file):
    assert child(_flush_in_parallel, file(_NBYTES)) is None


def _evicted_under_a_late_write(path: Path) -> tuple[str | None, bool]:
    """A touch of a block whose write-back is slow waits for it, and not forever."""
    late = [Fault("write", count=0, delay=0.3)]
    with paged(path, "r+", faults=late, **_FOUR) as memory:
        words(memory)[5] += np.uint64(1)
        evicting = threading.Thread(target=memory.evict)
        evicting.start()
        time.sleep(0.1)
        begin = time.monotonic()
        seen = int.from_bytes(load(memory.address + 40), "little")
        took = time.monotonic() - begin
        evicting.join(20)
        right = seen == int(expected(48)[5]) + 1
        return None if right else f"saw {seen:#x}", took < 5


def test_a_touch_of_a_block_that_is_being_written(file):
    assert child(_evicted_under_a_late_write, file(_NBYTES)) == (None, True)


def _raising(path: Path, mode: str) -> int:
    """A store of which nothing works, used by all means."""
    bad = [Fault(operation, count=0, errno=5) for operation in ("read", "write")]
    told = 0
    with paged(path, mode, faults=bad, store_timeout=0.05, **_FOUR) as memory:
        workers = [Worker(memory, READ, RANDOM, number=n, seed=n).start() for n in range(6)]
        for call in (lambda: memory.prefetch(wait=True), memory.flush, memory.evict):
            try:
                call()
            except StoreError:
                told += 1
        for at in range(0, _NBYTES, _BLOCK):
            with pytest.raises(Struck):
                load(memory.address + at)
        for worker in workers:
            with pytest.raises(AssertionError, match="signal 7"):
                worker.stop()
    return told


@pytest.mark.needs("poison")
@pytest.mark.parametrize("mode", MODES)
def test_a_store_of_which_nothing_works(file, mode):
    assert child(_raising, file(_NBYTES), mode, deadline=40) >= 1
