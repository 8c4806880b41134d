"""Point 1: a thread may fault holding the GIL, and nothing that resolves the fault needs it.

Each way of touching runs in the only thread that could run Python, in a child that is killed if it
hangs: with the interpreter on the fault path none of them would come back.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support import child, together
from support.paging import KIB, MODES, chill, expected, load, paged, store, words, wrong_words

pytestmark = pytest.mark.needs("paging")

_BLOCK = 64 * KIB
_COUNT = 24
_NBYTES = _COUNT * _BLOCK
_LIMIT = 8 * _BLOCK


def _scalar_index(memory):
    array = words(memory)
    return [int(array[i]) for i in range(0, len(array), 4096)]


def _item(memory):
    array = words(memory)
    return [array.item(i) for i in range(0, len(array), 4096)]


def _fancy_index(memory):
    array = words(memory)
    return array[np.arange(0, len(array), 4096)[::-1]][::-1].tolist()


def _boolean_index(memory):
    array = words(memory)
    mask = np.zeros(len(array), bool)
    mask[::4096] = True
    return array[mask].tolist()


def _slice(memory):
    return words(memory)[::4096].tolist()


def _memoryview_index(memory):
    with memoryview(memory) as view, view.cast("Q") as cast:
        return [cast[i] for i in range(0, len(cast), 4096)]


def _bytes(memory):
    with memoryview(memory) as view:
        return np.frombuffer(bytes(view), np.uint64)[::4096].tolist()


def _c_holding_the_gil(memory):
    return [
        int.from_bytes(load(memory.address + at, gil=True), "little")
        for at in range(0, memory.nbytes, 4096 * 8)
    ]


def _find(memory):
    # bytes.find and friends of a buffer hold the GIL from end to end.
    with memoryview(memory) as view:
        found = b"".join([b"", view]).find(bytes(16))
    assert found == -1
    return _slice(memory)


READS = [
    _scalar_index,
    _item,
    _fancy_index,
    _boolean_index,
    _slice,
    _memoryview_index,
    _bytes,
    _c_holding_the_gil,
    _find,
]


def _read(path: Path, mode: str, how: Callable, limit: int | None, cold: bool) -> list[int]:
    if cold:
        chill(path)
    with paged(path, mode, resident_limit=limit, block_size=_BLOCK) as memory:
        return how(memory)


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("cold", [False, True], ids=["cached", "cold"])
@pytest.mark.parametrize("limit", [None, _LIMIT], ids=["unlimited", "limit"])
def test_reading_in_the_only_thread(file, how, limit, cold):
    found = child(_read, file(_NBYTES), "r", how, limit, cold)
    assert found == expected(_NBYTES)[::4096].tolist()


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("mode", ["r+", "c"])
def test_reading_in_the_writable_modes(file, how, mode):
    found = child(_read, file(_NBYTES), mode, how, _LIMIT, False)
    assert found == expected(_NBYTES)[::4096].tolist()


def _scalar_store(memory, places, values):
    array = words(memory)
    for place, value in zip(places.tolist(), values.tolist(), strict=True):
        array[place] = value


def _fancy_store(memory, places, values):
    words(memory)[places] = values


def _c_store_holding_the_gil(memory, places, values):
    for place, value in zip(places.tolist(), values, strict=True):
        store(memory.address + 8 * place, value.tobytes(), gil=True)


def _slice_store(memory, places, values):
    words(memory)[places[0] :: places[1] - places[0]] = values


def _in_place(memory, places, values):
    array = words(memory)
    array[places] ^= array[places] ^ values


WRITES = [_scalar_store, _fancy_store, _c_store_holding_the_gil, _slice_store, _in_place]


def _write(path: Path, mode: str, how: Callable, read_first: bool) -> str | None:
    with paged(path, mode, resident_limit=_LIMIT, block_size=_BLOCK) as memory:
        # A block that is there and clean answers its first store with another kind of fault.
        if read_first:
            assert _slice(memory) == expected(_NBYTES)[::4096].tolist()
        places = np.arange(5, memory.nbytes // 8, 4096)
        values = np.arange(1, len(places) + 1, dtype=np.uint64) << np.uint64(40)
        wanted = expected(_NBYTES).copy()
        wanted[places] = values
        how(memory, places, values)
        return None if (words(memory) == wanted).all() else "the region has other contents"


@pytest.mark.parametrize("how", WRITES)
@pytest.mark.parametrize("mode", ["r+", "c"])
@pytest.mark.parametrize("read_first", [False, True], ids=["absent", "clean"])
def test_writing_in_the_only_thread(file, how, mode, read_first):
    assert child(_write, file(_NBYTES), mode, how, read_first) is None


def _stuck_switches(path: Path, mode: str) -> list[int]:
    # Another thread wants the GIL all the time, and would not give it back for an hour.
    sys.setswitchinterval(3600)
    with paged(path, mode, resident_limit=_LIMIT, block_size=_BLOCK) as memory:
        stop = threading.Event()
        other = threading.Thread(target=stop.wait)
        other.start()
        found = _scalar_index(memory)
        stop.set()
        other.join()
        return found


@pytest.mark.parametrize("mode", MODES)
def test_with_a_gil_that_is_never_handed_over(file, mode):
    found = child(_stuck_switches, file(_NBYTES), mode)
    assert found == expected(_NBYTES)[::4096].tolist()


def _on_one_cpu(path: Path, mode: str) -> list[int]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return _read(path, mode, _scalar_index, _LIMIT, False)


@pytest.mark.parametrize("mode", MODES)
def test_on_one_cpu(file, mode):
    """A thread that waits for the pager must not keep the CPU from it."""
    assert child(_on_one_cpu, file(_NBYTES), mode) == expected(_NBYTES)[::4096].tolist()


def _storm(path: Path, mode: str) -> tuple[str | None, int]:
    """Touch under signals with handlers: each interrupts a wait, which is then begun again."""
    struck = 0

    def handle(number, frame):
        nonlocal struck
        struck += 1

    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
    try:
        with paged(path, mode, resident_limit=_LIMIT, block_size=_BLOCK) as memory:
            for _ in range(20):
                _scalar_index(memory)
            found = wrong_words(words(memory))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return found, struck


@pytest.mark.parametrize("mode", MODES)
def test_under_a_storm_of_signals(file, mode):
    found, struck = child(_storm, file(_NBYTES), mode)
    assert found is None
    assert struck > 5


def _several(path: Path, mode: str) -> list[int]:
    with paged(path, mode, resident_limit=_LIMIT, block_size=_BLOCK) as memory:
        # numpy lets go of the GIL while it sums: these fault at the same time, in the same blocks.
        return [int(total) for total in together(*[lambda: words(memory).sum()] * 4)]


@pytest.mark.parametrize("mode", MODES)
def test_summing_in_several_threads(file, mode):
    assert child(_several, file(_NBYTES), mode) == [int(expected(_NBYTES).sum())] * 4


def _sliced(path: Path) -> list[int]:
    with paged(path, "r", resident_limit=4 * _BLOCK, block_size=_BLOCK) as memory:
        pieces = np.array_split(np.arange(memory.nbytes // 8), 8)
        return together(
            *[lambda p=piece: int(words(memory)[p[0] : p[-1] + 1].sum()) for piece in pieces]
        )


def test_more_threads_than_blocks_may_be_resident(file):
    pieces = np.array_split(expected(_NBYTES), 8)
    assert child(_sliced, file(_NBYTES)) == [int(piece.sum()) for piece in pieces]


def _calls_meanwhile(path: Path) -> str | None:
    """Fault holding the GIL while other threads of Python are inside every call of the region."""
    with paged(path, "r+", resident_limit=_LIMIT, block_size=_BLOCK) as memory:
        stop = threading.Event()

        def again(call):
            while not stop.is_set():
                call()

        calls = [memory.flush, memory.evict, memory.stats, lambda: memory.prefetch(wait=True)]
        threads = [threading.Thread(target=again, args=(call,), daemon=True) for call in calls]
        for thread in threads:
            thread.start()
        try:
            for _ in range(10):
                _scalar_index(memory)
                _scalar_store(memory, *(np.zeros(1, np.uint64), expected(8)))
        finally:
            stop.set()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        return wrong_words(words(memory))


def test_while_other_threads_are_in_its_calls(file):
    assert child(_calls_meanwhile, file(_NBYTES), deadline=60) is None
