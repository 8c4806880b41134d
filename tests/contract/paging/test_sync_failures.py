"""A sync that fails: what it was to cover is written again, or that is an error for good.

What `Store.flush` promises when it fails, and what `Store.flush_retryable` adds to that.
"""

from __future__ import annotations

import errno
import itertools
import random
import threading
from pathlib import Path

import numpy as np
import pytest

from pagemove import PagedMemory, PageState, StoreError, pinned
from pagemove.introspect import states_at
from support import child, wait_for
from support.helpers import kill_helper, numbered
from support.lossy import durable, lossy
from support.paging import KIB, Fault, expected, paged, words

pytestmark = pytest.mark.needs("paging")

_BLOCK = 64 * KIB
_WORDS = _BLOCK // 8
_COUNT = 64
_NBYTES = _COUNT * _BLOCK
_HOW = {"block_size": _BLOCK, "prefetch": "off", "mode": "r+"}


def _there(memory: PagedMemory, block: int) -> bool:
    found = states_at(memory.address + block * _BLOCK, 1)[0]
    return bool(found & (PageState.PRESENT | PageState.SWAPPED))


def _outcome(memory: PagedMemory) -> str:
    try:
        memory.flush()
    except StoreError as error:
        if error.operation != "flush":
            return str(error)
        return "for good" if "no flush of this region" in str(error) else "raised"
    return "returned"


def _in_memory(folder: Path, keeps: bool, times: int) -> tuple[str, int, bool]:
    """All that the failed sync should have covered is in the region still."""
    contents = numbered(_NBYTES)
    with lossy(folder, contents, keeps=keeps) as source:
        with PagedMemory(source, store_timeout=10.0, **_HOW) as memory:
            array = words(memory)
            array[::_WORDS] += np.uint64(1)
            contents[::_WORDS] += np.uint64(1)
            source.fail(times)
            outcome = _outcome(memory)
            flushes = source.flushes
            del array
        return outcome, flushes, bool((durable(source) == contents).all())


@pytest.mark.parametrize("keeps", [False, True], ids=["drops", "keeps"])
@pytest.mark.parametrize("times", [1, 3])
def test_what_is_in_memory_is_written_again(tmp_path, keeps, times):
    assert child(_in_memory, tmp_path, keeps, times, deadline=40) == ("returned", times + 1, True)


def _has_left(folder: Path, keeps: bool) -> tuple[list[str], bool]:
    """A part of it is in memory no more."""
    contents = numbered(_NBYTES)
    source = lossy(folder, contents, keeps=keeps)
    memory = PagedMemory(source, store_timeout=10.0, **_HOW)
    words(memory)[::_WORDS] += np.uint64(1)
    contents[::_WORDS] += np.uint64(1)
    memory.evict(0, 4 * _BLOCK)
    source.fail(1)
    outcomes = [_outcome(memory), _outcome(memory)]
    words(memory)[5 * _WORDS] += np.uint64(1)
    contents[5 * _WORDS] += np.uint64(1)
    outcomes.append(_outcome(memory))
    rest = durable(source) == contents
    return outcomes, bool(rest[4 * _WORDS :].all()), bool(rest.all())


def test_what_has_left_memory_is_an_error_for_good(tmp_path):
    outcomes, rest, _ = child(_has_left, tmp_path, False, deadline=40)
    assert "returned" not in outcomes
    assert outcomes[1:] == ["for good", "for good"]
    assert rest, "what is in memory was not saved for that"


def test_what_has_left_memory_is_there_where_a_failed_flush_loses_nothing(tmp_path):
    outcomes, _, whole = child(_has_left, tmp_path, True, deadline=40)
    assert outcomes == ["returned"] * 3
    assert whole


def _late(folder: Path, end: str, evicted: bool) -> tuple[list[str], int, bool]:
    """A flush takes longer than it may, and then it ends after all: well, badly, or never."""
    contents = numbered(_NBYTES)
    source = lossy(folder, contents)
    memory = PagedMemory(source, store_timeout=1.0, **_HOW)
    words(memory)[::_WORDS] += np.uint64(1)
    contents[::_WORDS] += np.uint64(1)
    if evicted:
        memory.evict(0, 4 * _BLOCK)
    source.hold(flushes=True)
    source.fail(int(end == "fails"))
    outcomes = [_outcome(memory)]
    if evicted:
        memory.evict(4 * _BLOCK, 4 * _BLOCK)
    if end == "dies":
        kill_helper()
    source.hold()
    if end == "dies":
        # Another one is started when it is asked for something, and a Python may need longer for
        # that than a flush has time.
        wait_for(lambda: memory.store_stats() and memory.counters()["restarts"])
    outcomes += [_outcome(memory), _outcome(memory)]
    return outcomes, source.flushes, bool((durable(source) == contents).all())


@pytest.mark.parametrize("evicted", [False, True])
def test_a_flush_that_is_late_and_ends_well_has_lost_nothing(tmp_path, evicted):
    found = child(_late, tmp_path, "returns", evicted, deadline=40)
    assert found == (["raised", "returned", "returned"], 2, True)


@pytest.mark.parametrize("end", ["fails", "dies"])
def test_a_flush_that_is_late_and_fails_is_no_success(tmp_path, end):
    """What it should have covered is in memory: it is written again."""
    found = child(_late, tmp_path, end, False, deadline=60)
    assert found == (["raised", "returned", "returned"], 2, True)


@pytest.mark.parametrize("end", ["fails", "dies"])
def test_a_flush_that_is_late_and_fails_is_an_error_for_good(tmp_path, end):
    """A part of that has left memory."""
    outcomes, _, _ = child(_late, tmp_path, end, True, deadline=60)
    assert "returned" not in outcomes
    assert outcomes[2] == "for good"


def _written_meanwhile(folder: Path) -> tuple[list[str], bool]:
    """A block is written while a flush fails, and the write returns only after that."""
    contents = numbered(_NBYTES)
    source = lossy(folder, contents, concurrency=4)
    memory = PagedMemory(source, store_timeout=20.0, **_HOW)
    array = words(memory)
    array[0] += np.uint64(1)
    source.hold(flushes=True)
    outcomes: list[str] = []
    flushing = threading.Thread(target=lambda: outcomes.append(_outcome(memory)))
    flushing.start()
    wait_for(lambda: source.held == 1)
    array[5 * _WORDS] += np.uint64(1)
    contents[:: 5 * _WORDS][:2] += np.uint64(1)
    source.hold(flushes=True, writes=True)
    evicting = threading.Thread(target=lambda: memory.evict(5 * _BLOCK, _BLOCK))
    evicting.start()
    wait_for(lambda: source.held == 2)
    source.fail(1)
    source.hold(writes=True)
    # What was in memory is written again, and held.
    wait_for(lambda: source.held == 3)
    source.hold()
    flushing.join()
    evicting.join()
    outcomes.append(_outcome(memory))
    return outcomes, bool((durable(source) == contents).all())


def test_what_was_written_while_a_flush_failed_is_written_again(tmp_path):
    """The failure may have dropped it, though its own write has returned."""
    found = child(_written_meanwhile, tmp_path, deadline=40)
    assert found == (["returned", "returned"], True)


def _back_meanwhile(folder: Path) -> list[str]:
    """A block leaves and is written while a sync is under way, and is back before that ends."""
    source = lossy(folder, numbered(_NBYTES), concurrency=4)
    memory = PagedMemory(source, store_timeout=20.0, resident_limit=16 * _BLOCK, **_HOW)
    array = words(memory)
    array[0] += np.uint64(1)
    source.hold(flushes=True)
    outcomes: list[str] = []
    flushing = threading.Thread(target=lambda: outcomes.append(_outcome(memory)))
    flushing.start()
    wait_for(lambda: source.held == 1)
    array[5 * _WORDS] += np.uint64(1)
    source.hold(flushes=True, writes=True)
    # In no order: sequences leave before others.
    others = itertools.cycle(random.Random(1).sample(range(8, _COUNT), _COUNT - 8))

    def push_out() -> None:
        while source.held < 2:
            array[next(others) * _WORDS].item()

    # The block that the sync is for stays: one that leaves before it is durable counts as lost.
    with pinned(array[:1], write=False):
        pushing = threading.Thread(target=push_out)
        pushing.start()
        wait_for(lambda: source.held == 2)
        pushing.join()
    soft = memory.counters()["soft_faults"]
    touching = threading.Thread(target=lambda: array[5 * _WORDS].item())
    touching.start()
    wait_for(lambda: memory.counters()["soft_faults"] > soft)
    source.hold(flushes=True)
    touching.join()
    wait_for(lambda: memory.counters()["written_back"] == 2)
    source.hold()
    flushing.join()
    assert _there(memory, 5)
    source.fail(1)
    outcomes += [_outcome(memory), _outcome(memory)]
    return outcomes


def test_a_sync_covers_nothing_that_was_written_while_it_was_under_way(tmp_path):
    """That block is clean, and durable only with the next sync: if it fails, that is for good."""
    outcomes = child(_back_meanwhile, tmp_path, deadline=40)
    assert outcomes == ["returned", "raised", "for good"]


def _roll_back(path: Path) -> None:
    """Reset a file to the contents that its device has: nothing of what was to be made durable."""
    contents = expected(path.stat().st_size)
    with path.open("r+b") as file:
        file.write(contents.tobytes())


def _on_standby(path: Path) -> tuple[list[int], list[str], bool]:
    """Blocks leave for their slots while the sync that is to cover them fails."""
    faults = [Fault("flush", 0, 1, delay=2.0), Fault("flush", 0, 1, errno=errno.EIO)]
    how = {"block_size": _BLOCK, "prefetch": "off", "resident_limit": 64 * _BLOCK}
    # What is written after the sync has failed is not lost with it.
    how["writeback_interval"] = None
    # In no order: sequences leave before others.
    order = iter(random.Random(1).sample(range(8, 8 * _COUNT), 7 * _COUNT))
    with paged(path, "r+", faults=faults, store_timeout=3.0, **how) as memory:
        array = words(memory)
        for block in itertools.islice(order, 4):  # the oldest, which are forgotten first
            array[block * _WORDS].item()
        for block in range(8):
            array[block * _WORDS] = 1000 + block
        outcomes: list[str] = []
        flushing = threading.Thread(target=lambda: outcomes.append(_outcome(memory)))
        flushing.start()
        wait_for(lambda: memory.stats().dirty_nbytes == 0)
        while all(_there(memory, block) for block in range(8)):
            array[next(order) * _WORDS].item()
        gone = [block for block in range(8) if not _there(memory, block)]
        flushing.join(20)
        _roll_back(path)
        outcomes.append(_outcome(memory))
        found = np.fromfile(path, np.uint64)[: 8 * _WORDS : _WORDS]
        del array
    return gone, outcomes, bool((found == np.arange(1000, 1008)).all())


def test_blocks_on_standby_are_written_again(file):
    gone, outcomes, stored = child(_on_standby, file(8 * _NBYTES), deadline=60)
    assert gone, "no block has left: this has shown nothing"
    assert outcomes == ["raised", "returned"]
    assert stored
