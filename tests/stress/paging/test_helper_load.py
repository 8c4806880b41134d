"""Stores in Python with as little room as can be, many threads at once, and late answers."""

from __future__ import annotations

import ctypes
import gc
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pagemove import PagedMemory
from support import child, together, wait_for
from support.helpers import Reined, numbered, reined, stored, touch, touch_at_last

from .load import BLOCKS, COUNT, MODES, STEPS, THREADS, K, Load

pytestmark = pytest.mark.needs("paging", "fork")


def _four_blocks(folder: Path, mode: str, block: int) -> dict[str, Any]:
    original = numbered(COUNT * block)
    store = reined(folder, original)
    limit = 4 * block
    region = PagedMemory(store, mode=mode, block_size=block, resident_limit=limit, store_timeout=20)
    load = Load(region, original, 1)
    peak = [0]

    def watch() -> None:
        while not load.stop.is_set():
            peak[0] = max(peak[0], region.stats().resident_nbytes)

    def run() -> None:
        together(*(lambda me=me: load.run(me, STEPS) for me in range(THREADS)), deadline=60)
        load.stop.set()

    together(run, watch, deadline=90)
    # Across all borders at once: one system call, of a range that is no whole number of pages.
    for first in range(0, COUNT * block - 3 * block, 5 * block):
        got = np.frombuffer(touch(region.address + first + 64, 2 * block + 128), np.uint64)
        rows = np.arange(first // 8 + 8, first // 8 + 8 + len(got))
        want = original[rows] + load.changes[rows * 8 // block]
        assert np.array_equal(got, want)
    load.check()
    if mode == "r+":
        region.flush()
    errors = region.stats().errors
    del load.rows
    gc.collect()
    region.close()
    left = stored(store).reshape(COUNT, -1)
    changed = load.changes[:, None] if mode == "r+" else np.uint64(0)
    assert np.array_equal(left, load.expected + changed)
    return {"peak": peak[0], "errors": errors}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("mode", MODES)
def test_four_blocks_are_enough(tmp_path, mode, block):
    found = child(_four_blocks, tmp_path, mode, block, deadline=120)
    assert 0 < found["peak"] <= 4 * block
    assert found["errors"] == 0


def _throughput(region: PagedMemory, first: int, count: int, threads: int) -> float:
    """Touch blocks once each; return blocks a second."""
    libc = ctypes.CDLL(None)
    parts = np.array_split(np.arange(first, first + count), threads)
    word = (ctypes.c_char * 8)()

    def run(blocks: Any) -> None:
        for block in blocks:
            # By a call that gives up the GIL: the touch waits without it.
            libc.memcpy(word, ctypes.c_void_p(region.address + int(block) * region.block_size), 8)

    before = time.monotonic()
    together(*(lambda part=part: run(part) for part in parts), deadline=60)
    return count / (time.monotonic() - before)


def _sixty_four(folder: Path, block: int) -> tuple[float, float]:
    store = reined(folder, numbered(2048 * block), concurrency=64)
    store.reins.delay = 5000
    with PagedMemory(store, block_size=block, prefetch="off", store_timeout=30) as region:
        one = _throughput(region, 0, 64, 1)
        many = _throughput(region, 64, 1984, 64)
        assert region.stats().errors == 0
        # Nothing was mixed up on the way.
        with memoryview(region) as view:
            assert np.array_equal(np.frombuffer(view, np.uint64), numbered(2048 * block))
    return one, many


@pytest.mark.parametrize("block", [4 * K, 16 * K])
def test_sixty_four_threads_wait_at_the_same_time(tmp_path, block):
    """Over a store that takes 5 ms: of 64 times as fast, at least 8."""
    one, many = child(_sixty_four, tmp_path, block, deadline=120)
    assert many >= 8 * one, f"{one:.0f} and {many:.0f} blocks a second"


def _late_bytes(folder: Path, block: int) -> dict[str, Any]:
    """A read that was given up long ago ends when its block has been changed and has left."""
    store: Reined = reined(folder, numbered(16 * block))
    region = PagedMemory(store, mode="r+", block_size=block, store_timeout=1, prefetch="off")
    store.reins.delay, store.reins.delayed = 1_000_000_000, 1
    with pytest.raises(OSError, match="Bad address"):
        touch(region.address, 8)
    wait_for(lambda: store.reins.offsets == [0])
    store.reins.delayed = 16 * block  # no other read
    if block == 4 * K:
        store.reins.delay = 0  # the helper puts it there itself: nobody else may, until it has
    touch_at_last(region, 0)
    array = region.asarray(np.uint64)
    array[: block // 8] = 7
    region.evict(0, block)
    wait_for(lambda: not region.counters()["resident"])
    store.reins.delay = 0
    wait_for(lambda: store.reins.late)
    # Its answer comes before those of reads that begin now.
    for number in range(8, 16):
        touch_at_last(region, number * block)
    touch_at_last(region, 0)
    found = {"values": sorted(set(map(int, array[: block // 8])))}
    del array
    region.close()
    return found | {"stored": sorted(set(map(int, stored(store)[: block // 8])))}


@pytest.mark.parametrize("block", [4 * K, 64 * K])
def test_a_read_given_up_long_ago_changes_nothing(tmp_path, block):
    assert child(_late_bytes, tmp_path, block, deadline=60) == {"values": [7], "stored": [7]}
