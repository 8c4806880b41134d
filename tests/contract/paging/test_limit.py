"""Point 4: resident bytes of the region plus staging stay within the limit, at every moment.

`support.paging.Peak` samples all anonymous memory of the process. Nothing but the region grows
meanwhile: the threads that touch are in C, and what they need was there before.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pagemove import PAGE_SIZE, PagedMemory
from pagemove.stores import FileStore
from support import child, rss
from support.paging import (
    BLOCKS,
    COUNT,
    KIB,
    MIB,
    MODES,
    RANDOM,
    READ,
    SEQUENTIAL,
    SLACK,
    STRIDED,
    Peak,
    Worker,
    chill,
    make_file,
    paged,
    shared_zeros,
    words,
    wrong_words,
)
from support.selection import few

pytestmark = pytest.mark.needs("paging")

_BLOCK = 64 * KIB
_MOMENTS, _TURNS = 20, 50

ORDERS = {"random": RANDOM, "sequential": SEQUENTIAL, "strided": STRIDED}


def some_orders() -> list[int]:
    """Return all of them; in the lean suite one: others are tried with a cold file."""
    return list(ORDERS.values())[: few(len(ORDERS), 1)]


def _steps(nbytes: int, block: int, order: int) -> int:
    """As many steps as make about three passes, or a few hundred faults."""
    if order == SEQUENTIAL:
        return 3 * nbytes // 64
    return min(800, 6 * nbytes // block)


def _peak(path: Path, mode: str, block: int, limit: int, order: int, cold: bool) -> tuple:
    nbytes = path.stat().st_size
    shadow = shared_zeros(nbytes // 8)
    if cold:
        chill(path)
    with (
        Peak() as peak,
        paged(path, mode, block_size=block, resident_limit=limit) as memory,
    ):
        kind = READ if mode == "r" else COUNT
        steps = _steps(nbytes, block, order)
        # Until there were moments enough to look at: on a busy machine one turn has few.
        for turn in range(_TURNS):
            threads = [
                Worker(
                    memory,
                    kind,
                    order,
                    number=n,
                    of=2,
                    shadow=shadow,
                    steps=steps,
                    seed=2 * turn + n,
                )
                for n in (0, 1)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            if peak.samples > _MOMENTS:
                break
        stats = memory.stats()
        found = peak.nbytes, peak.samples, stats.resident_nbytes, stats.evicted
        return *found, wrong_words(words(memory), shadow=shadow)


def check(found: tuple, limit: int) -> None:
    peak, samples, resident, evicted, wrong = found
    assert wrong is None
    assert samples > _MOMENTS
    assert evicted > 0
    assert resident <= limit
    assert peak <= limit + SLACK, f"{peak} bytes at one of {samples} moments, limit {limit}"


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("mode", MODES)
def test_four_blocks_of_any_size(file, block, mode):
    path = file(max(16 * block, 2 * MIB))
    for order in some_orders():
        make_file(path, path.stat().st_size)
        found = child(_peak, path, mode, block, 4 * block, order, False, deadline=60)
        check(found, 4 * block)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("frames", [5, 7, 32, 48])
def test_limits_of_any_number_of_blocks(file, mode, frames):
    limit = frames * _BLOCK + 5000  # a limit need not be whole blocks
    path = file(8 * MIB)
    for order in some_orders():
        make_file(path, 8 * MIB)
        check(child(_peak, path, mode, _BLOCK, limit, order, False, deadline=60), limit)


@pytest.mark.parametrize("block", [PAGE_SIZE, _BLOCK, 2 * MIB])
@pytest.mark.parametrize("order", ORDERS)
def test_with_a_cold_file(file, block, order):
    found = child(
        _peak, file(max(16 * block, 8 * MIB)), "r", block, 4 * block, ORDERS[order], True,
        deadline=60,
    )  # fmt: skip
    check(found, 4 * block)


def _peak_of_calls(path: Path, mode: str, block: int, limit: int) -> tuple[int, int, str | None]:
    with Peak() as peak, paged(path, mode, block_size=block, resident_limit=limit) as memory:
        memory.prefetch()
        memory.prefetch(wait=True)
        if mode != "r":
            Worker(memory, COUNT, shadow=shared_zeros(memory.nbytes // 8), steps=300).start().join()
        memory.flush()
        memory.prefetch(memory.nbytes // 2, memory.nbytes // 2, wait=True)
        memory.evict(0, memory.nbytes // 3)
        memory.flush()
        memory.prefetch(wait=True)
        resident = memory.stats().resident_nbytes
        return peak.nbytes, resident, None


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("mode", MODES)
def test_prefetch_flush_and_evict_keep_to_it(file, block, mode):
    limit = 6 * block
    peak, resident, _ = child(_peak_of_calls, file(24 * block), mode, block, limit)
    assert resident <= limit
    assert peak <= limit + SLACK


def _peak_of_reading(path: Path, limit: int | None) -> int:
    with Peak() as peak, paged(path, block_size=_BLOCK, resident_limit=limit) as memory:
        Worker(memory, READ, SEQUENTIAL, steps=memory.nbytes // 64).start().join()
        return peak.nbytes


def test_an_overrun_would_be_seen(file):
    path = file(8 * MIB)
    # Older kernels count in batches for each CPU, so that a few hundred pages may be missing.
    assert child(_peak_of_reading, path, None) >= 8 * MIB - SLACK
    assert child(_peak_of_reading, path, 4 * MIB) >= 3 * MIB


def _counted(path: Path) -> tuple[int, int, bool]:
    with paged(path, block_size=_BLOCK) as memory:
        words(memory)[: 8 * _BLOCK : _BLOCK // 8].sum()
        memory.prefetch(0, 8 * _BLOCK, wait=True)
        return memory.stats().resident_nbytes, rss(memory.address), memory.moves


def test_stats_count_what_smaps_counts(file):
    resident, seen, moves = child(_counted, file(32 * _BLOCK))
    assert seen >= 8 * _BLOCK
    # Staging is another mapping: blocks read ahead may be there.
    # Frames that were copied from, where pages cannot be moved, are kept for the next blocks.
    assert seen <= resident <= (32 if moves else 48) * _BLOCK


class TestArguments:
    def test_as_a_string(self, file):
        path = file(64 * _BLOCK)
        with paged(path, resident_limit="1MiB", block_size=_BLOCK) as memory:
            int(words(memory).sum())
            assert memory.stats().resident_nbytes <= MIB

    @pytest.mark.parametrize("limit", [1, _BLOCK, 4 * _BLOCK - 1, "1KiB"])
    def test_below_four_blocks(self, file, limit):
        with FileStore(file(64 * _BLOCK)) as store, pytest.raises(ValueError, match=r"four|\b4\b"):
            PagedMemory(store, resident_limit=limit, block_size=_BLOCK)

    @pytest.mark.parametrize("limit", ["", "x", "12 parsecs", "-5MiB", -1, 0, 1.5, b"1MiB"])
    def test_nonsense(self, file, limit):
        with FileStore(file(64 * _BLOCK)) as store, pytest.raises((ValueError, TypeError)):
            PagedMemory(store, resident_limit=limit, block_size=_BLOCK)

    def test_larger_than_the_region(self, file):
        with paged(file(5 * _BLOCK), resident_limit="1TiB", block_size=_BLOCK) as memory:
            assert wrong_words(words(memory)) is None
            assert memory.stats().evicted == 0


def _hot(path: Path, hot: int) -> int:
    """Reads of a hot set that a scan over everything pushed out."""
    with paged(path, block_size=_BLOCK, resident_limit=32 * _BLOCK) as memory:
        array = words(memory)
        step = _BLOCK // 8
        for _ in range(4):
            int(array[: hot * step : step].sum())
        rng = np.random.default_rng(1)
        missed = 0
        for block in range(hot, memory.nbytes // _BLOCK):
            int(array[block * step : (block + 1) * step].sum())
            # In between the hot set is used, as it is in whatever has one.
            before = memory.stats().bytes_read
            place = int(rng.integers(0, hot)) * step
            array[place].item()
            missed += memory.stats().bytes_read - before >= _BLOCK
        del array
        return missed


def test_a_scan_does_not_push_out_a_hot_set(file):
    scanned = 240
    missed = child(_hot, file((16 + scanned) * _BLOCK), 16)
    # Read-ahead of the scan also counts as bytes read, so this is an upper bound, and lax.
    assert missed <= scanned
