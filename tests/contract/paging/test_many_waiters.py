"""Many threads that wait at once, and stores that fail with what once meant something inside."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pagemove import StoreError, pinned
from support import child, wait_for
from support.paging import (
    COUNT,
    KIB,
    RANDOM,
    Fault,
    Struck,
    Worker,
    expected,
    load,
    outside,
    paged,
    shared_zeros,
    store,
    words,
    wrong_words,
)

pytestmark = pytest.mark.needs("paging")

_BLOCK = 4 * KIB
_WORDS = _BLOCK // 8


def _crowd(path: Path, threads: int) -> tuple[int, int, bool]:
    """Each thread stores into another block, and the first write takes its time."""
    late = [Fault("write", first=0, count=1, delay=1.5)]
    how = {"block_size": _BLOCK, "resident_limit": 16 * _BLOCK, "prefetch": "off"}
    wanted = expected(path.stat().st_size).copy()
    wanted[: threads * _WORDS : _WORDS] = np.arange(threads)
    failed: list[Struck] = []
    with paged(path, "r+", faults=late, store_timeout=30.0, **how) as memory:

        def touch(block: int) -> None:
            try:
                store(memory.address + block * _BLOCK, block.to_bytes(8, "little"))
            except Struck as struck:
                failed.append(struck)

        crowd = [threading.Thread(target=touch, args=(n,)) for n in range(threads)]
        for one in crowd:
            one.start()
        for one in crowd:
            one.join(60)
        errors = memory.stats().errors
    return len(failed), errors, bool((np.fromfile(path, np.uint64) == wanted).all())


def test_more_threads_wait_than_there_was_room_for_in_a_queue(file):
    assert child(_crowd, file(512 * _BLOCK), 400, deadline=90) == (0, 0, True)


def _beside_touches(path: Path, call: str) -> tuple[float, str | None]:
    """Calls wait for blocks that a touch is bringing already; nothing else goes on."""
    late = [Fault("read", count=0, delay=0.05)]
    took = []
    how = {"block_size": 16 * _BLOCK, "prefetch": "off", "store_timeout": 3.0}
    with paged(path, "r", faults=late, **how) as memory:
        for at in range(0, 5 * memory.block_size, memory.block_size):
            faults = memory.stats().faults
            toucher = threading.Thread(target=load, args=(memory.address + at,))
            toucher.start()
            assert wait_for(lambda before=faults: memory.stats().faults > before, 20)
            begin = time.monotonic()
            if call == "prefetch":
                memory.prefetch(at, 1, wait=True)
            else:
                with pinned(memory.asarray(np.uint8)[at : at + 1]):
                    pass
            took.append(time.monotonic() - begin)
            toucher.join()
        return min(took), wrong_words(words(memory))


@pytest.mark.parametrize("call", ["prefetch", "pin"])
def test_a_call_that_waits_for_what_a_touch_brings_goes_on_when_it_is_there(file, call):
    """Not when it looks by itself, which it does ten times a second."""
    took, wrong = child(_beside_touches, file(128 * _BLOCK), call, deadline=40)
    assert took < 0.095
    assert wrong is None


def _flush_among(path: Path, blocks: int, block: int, threads: int) -> list[str]:
    """Flush again and again while threads store; what was stored before is in the file."""
    nbytes = path.stat().st_size
    shadow = shared_zeros(nbytes // 8)
    failed: list[str] = []
    how = {"block_size": block, "resident_limit": blocks * block, "store_timeout": 3.0}
    slow = [Fault("write", count=0, delay=0.003)]  # so that somebody waits for a frame all the time
    with paged(path, "r+", faults=slow, **how) as memory, contextlib.ExitStack() as stack:
        for number in range(threads):
            share = {"number": number, "of": threads, "shadow": shadow, "seed": number + 1}
            stack.enter_context(Worker(memory, COUNT, RANDOM, **share))
        for turn in range(3):
            before = shadow.copy()
            try:
                memory.flush()
            except StoreError as error:
                failed.append(f"flush {turn}: {error}")
                continue
            found = outside(np.fromfile(path, np.uint64), before, shadow)
            if found:
                failed.append(f"after flush {turn}: {found}")
    return failed


@pytest.mark.parametrize("threads", [1, 8, 24])
@pytest.mark.parametrize(("blocks", "block"), [(4, 4 * KIB), (4, 64 * KIB), (256, 64 * KIB)])
def test_a_flush_gets_its_turn_among_threads_that_store(file, blocks, block, threads):
    path = file(4 * blocks * block)
    assert child(_flush_among, path, blocks, block, threads, deadline=60) == []


CODES = [errno.EAGAIN, errno.ETIMEDOUT, errno.EPIPE, errno.ENOMEM, errno.EBUSY, errno.ENOENT]


def _raises(path: Path, operation: str, code: int) -> tuple[list[int | None], bool, int]:
    fault = Fault(operation, count=0, errno=code)
    nbytes = path.stat().st_size
    wanted = expected(nbytes).copy()
    how = {"block_size": _BLOCK, "store_timeout": 0.05, "prefetch": "off"}
    codes: list[int | None] = []
    context = paged(path, "r+", faults=[fault], **how)
    memory = context.__enter__()
    if operation == "read":
        with contextlib.suppress(Struck):
            load(memory.address)
        codes = [failure.errno for failure in memory.stats().failures]
        return codes, True, memory.stats().dirty_nbytes
    array = words(memory)
    array[:: 2 * _WORDS] += np.uint64(1)
    wanted[:: 2 * _WORDS] += np.uint64(1)
    for call in (memory.evict, memory.flush):
        try:
            call()
            codes.append(None)
        except StoreError as error:
            codes.append(error.errno)
    return codes, bool((array == wanted).all()), memory.stats().dirty_nbytes


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_what_a_store_says_of_a_write_is_what_evict_and_flush_raise(file, code):
    codes, kept, dirty = child(_raises, file(16 * _BLOCK), "write", code)
    assert codes == [code, code]
    assert kept
    assert dirty == 8 * _BLOCK


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_what_a_store_says_of_a_read_is_what_is_noted(file, code):
    codes, _, _ = child(_raises, file(16 * _BLOCK), "read", code)
    assert codes == [code]


def _overdue(path: Path) -> tuple[list[str], list[int]]:
    """Reads take longer than `store_timeout`; others wait behind them."""
    slow = [Fault("read", count=0, delay=1.5)]
    how = {"block_size": _BLOCK, "store_timeout": 0.2, "prefetch": "off"}
    outcomes = []

    def touch(block: int) -> None:
        try:
            load(memory.address + block * _BLOCK)
            outcomes.append("read")
        except Struck:
            outcomes.append("struck")

    with paged(path, "r", faults=slow, **how) as memory:
        threads = [threading.Thread(target=touch, args=(block,)) for block in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return sorted(outcomes), [failure.errno for failure in memory.stats().failures]


def test_blocks_behind_a_slow_read_fail_for_what_they_wait_for(file, capfd):
    outcomes, codes = child(_overdue, file(16 * _BLOCK))
    said = capfd.readouterr().err
    assert outcomes == ["read"] * 2 + ["struck"] * 4
    assert codes == [errno.ETIMEDOUT] * 4
    assert said.count("the store has not answered in time") == 4
    assert "no room" not in said
    assert "4294967295" not in said


@pytest.mark.parametrize("seconds", [2.0**32 / 1000 + 1, 9.2e9])
def test_a_timeout_beyond_32_bits_of_milliseconds_is_not_cut(file, seconds):
    assert child(_patient, file(64 * _BLOCK), seconds) == (None, 0)


def _patient(path: Path, seconds: float) -> tuple[str | None, int]:
    """A store that fails for a while, and all frames dirty for a while."""
    faults = [
        Fault("read", first=2, count=6, errno=errno.EIO),
        Fault("write", first=0, count=6, errno=errno.EIO),
        Fault("write", first=7, count=1, delay=0.4),
    ]
    how = {"block_size": _BLOCK, "resident_limit": 4 * _BLOCK, "store_timeout": seconds}
    shadow = np.zeros(path.stat().st_size // 8, np.uint32)
    with paged(path, "r+", faults=faults, **how) as memory:
        array = words(memory)
        array[::_WORDS] += np.uint64(1)
        shadow[::_WORDS] += 1
        found = wrong_words(array, shadow=shadow)
        begin = time.monotonic()
        memory.flush()
        assert time.monotonic() - begin < 20
        errors = memory.stats().errors
        del array
    return found, errors
