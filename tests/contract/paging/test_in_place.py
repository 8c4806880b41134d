"""Blocks that do not compress stay where they are, and count as stored: contents and counts."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pagemove
from pagemove import PAGE_SIZE, Budget, PagedMemory, StoreError, lowlevel
from pagemove._native import pager
from pagemove.paging.arenas import new_arena
from support import child, fresh_interpreter
from support.paging import Words, noise
from support.slowness import patience

pytestmark = [
    pytest.mark.needs("paging", "fork"),
    pytest.mark.skipif(pager.codec() is None, reason="no liblz4.so.1 nor libzstd.so.1"),
]

MIB = 1 << 20
_BLOCK = 65536
_SLACK = 32 * MIB


def kept(region: PagedMemory) -> dict[str, int]:
    return {name: int(value) for name, value in region.stats().store.items()}


def is_settled(region: PagedMemory, wanted: int) -> bool:
    return region.stats().store["in_place_blocks"] >= wanted


@contextlib.contextmanager
def staying(
    nbytes: int = 8 * MIB, limit: int | Budget = MIB, **options: Any
) -> Iterator[tuple[PagedMemory, Words]]:
    """Provide a region of noise, most of which is in place."""
    with PagedMemory(nbytes=nbytes, resident_limit=limit, **options) as region:
        words = region.asarray("u8")
        words[:] = noise(nbytes)
        assert kept(region)["in_place_blocks"] > 0
        yield region, words
        del words


def _sum_twice(nbytes: int, limit: int, block: int, moves: bool) -> list[int]:
    pager.set_moves(moves)
    before = _rss()
    faults, counts = [], {}
    with staying(nbytes, limit, block_size=block) as (region, words):
        for _ in range(3):
            assert (words == noise(nbytes)).all()
            words += np.uint64(1)
            words -= np.uint64(1)
            stats = region.stats()
            faults.append(stats.faults)
            assert stats.resident_nbytes <= limit
            assert stats.dirty_nbytes <= stats.resident_nbytes
        counts = kept(region)
        assert counts["in_place_blocks"] * block + limit >= nbytes
        assert counts["incompressible_blocks"] == counts["in_place_blocks"]
        assert counts["memory_nbytes"] >= counts["in_place_blocks"] * block
        assert counts["peak_memory_nbytes"] >= counts["memory_nbytes"]
        assert _rss() - before <= limit + counts["memory_nbytes"] + _SLACK
        assert region.stats().errors == 0
        del words
    return faults


def _rss() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) << 10


@pytest.mark.parametrize("moves", [True, False], ids=["moves", "without moves"])
@pytest.mark.parametrize("block", [PAGE_SIZE, _BLOCK, 2 * MIB])
def test_what_stays_is_touched_without_faults(block: int, moves: bool) -> None:
    nbytes, limit = 128 * block, 32 * block
    faults = child(_sum_twice, nbytes, limit, block, moves, deadline=60)
    # The first pass may meet what has just left; from then on all of it is there.
    assert faults[1] <= faults[0] + nbytes // block // 4
    assert faults[2] == faults[1]


def test_what_shrinks_leaves_as_ever() -> None:
    with PagedMemory(nbytes=8 * MIB, resident_limit=MIB) as region:
        words = region.asarray("u8")
        for block in range(0, words.size, _BLOCK // 8):
            shrinks = block // (_BLOCK // 8) % 2
            words[block : block + _BLOCK // 8] = block if shrinks else noise(_BLOCK, block)
        counts = kept(region)
        assert 0 < counts["in_place_blocks"] <= 64
        assert counts["same_value_blocks"] >= 48
        for block in range(0, words.size, _BLOCK // 8):
            shrinks = block // (_BLOCK // 8) % 2
            expected = block if shrinks else noise(_BLOCK, block)
            assert (words[block : block + _BLOCK // 8] == expected).all()
        del words


def test_evict_takes_them_out_of_the_region() -> None:
    with staying() as (region, words):
        region.evict()
        counts = kept(region)
        assert counts["in_place_blocks"] == 0
        assert counts["incompressible_blocks"] == 128
        assert 8 * MIB <= counts["memory_nbytes"] <= 8 * MIB + 2 * 4 * _BLOCK
        assert region.stats().resident_nbytes == region.stats().dirty_nbytes == 0
        assert (words == noise(8 * MIB)).all()
        del words


def test_evict_of_what_has_room_only_where_it_is() -> None:
    """Four blocks at a time have room outside, and the store has none for three more."""
    with PagedMemory(
        nbytes=8 * MIB, resident_limit=MIB, store_limit=8 * MIB - 1, store_timeout=1
    ) as region:
        words = region.asarray("u8")
        words[: 7 * MIB // 8] = noise(7 * MIB)
        before = kept(region)["in_place_blocks"]
        region.evict(0, 6 * MIB)
        assert kept(region)["memory_nbytes"] <= 8 * MIB - 1
        assert (words[: 7 * MIB // 8] == noise(7 * MIB)).all()
        assert before > 0
        del words


def test_flush_leaves_them() -> None:
    with staying() as (region, words):
        region.flush()
        counts = kept(region)
        assert counts["in_place_blocks"] > 0
        assert region.stats().dirty_nbytes == 0
        assert (words == noise(8 * MIB)).all()
        del words


def test_pinned_ones_stay_too() -> None:
    with staying() as (region, words):
        before = kept(region)["in_place_blocks"]
        part = words[: 4 * _BLOCK // 8]
        with pagemove.pinned(part, write=True):
            part += np.uint64(1)
            region.evict()
            assert kept(region)["in_place_blocks"] in range(1, 5)
            assert (part == noise(8 * MIB)[: part.size] + np.uint64(1)).all()
        assert before > 4
        region.evict()
        assert kept(region)["in_place_blocks"] == 0
        assert region.stats().resident_nbytes == 0
        assert (part == noise(8 * MIB)[: part.size] + np.uint64(1)).all()
        del words, part


def _until(condition: Any, deadline: float = 20) -> None:
    end = time.monotonic() + patience(deadline)
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_what_is_overwritten_in_place_shrinks_as_others_leave() -> None:
    with PagedMemory(nbytes=16 * MIB, resident_limit=MIB) as region:
        words = region.asarray("u8")
        half = words.size // 2
        words[:half] = noise(8 * MIB)
        words[half:] = 1
        before = kept(region)
        words[:half] = 0
        end = time.monotonic() + patience(20)
        while kept(region)["in_place_blocks"] and time.monotonic() < end:
            words[half:] += np.uint64(1)
        assert kept(region)["in_place_blocks"] == 0
        assert before["memory_nbytes"] >= 6 * MIB
        assert kept(region)["memory_nbytes"] <= MIB // 2
        assert not words[:half].any()
        assert (words[half:] == words[half]).all()
        del words


def test_those_are_looked_at_before_the_store_is_said_to_be_full() -> None:
    with PagedMemory(
        nbytes=32 * MIB, resident_limit=MIB, store_limit=8 * MIB, store_timeout=20
    ) as region:
        words = region.asarray("u8")
        for turn in range(4):
            part = words[turn * MIB : turn * MIB + 7 * MIB // 8]
            part[:] = noise(7 * MIB, turn)
            assert (part == noise(7 * MIB, turn)).all()
            assert kept(region)["in_place_blocks"] > 64
            assert kept(region)["peak_memory_nbytes"] <= 8 * MIB
            part[:] = turn
        for turn in range(4):
            assert (words[turn * MIB : turn * MIB + 7 * MIB // 8] == turn).all()
        assert region.stats().errors == 0
        del words, part


def test_a_full_store_takes_what_has_come_to_shrink_by_a_little() -> None:
    """For one block of them alone there is no slab, but for some."""
    with PagedMemory(
        nbytes=32 * MIB, resident_limit=MIB, store_limit=8 * MIB, store_timeout=20
    ) as region:
        words = region.asarray("u8")
        words[: 8 * MIB // 8] = noise(8 * MIB)
        blocks = words.reshape(-1, _BLOCK // 8)
        blocks[:128, : _BLOCK // 8 // 2] = 7
        words[8 * MIB // 8 : 12 * MIB // 8] = noise(4 * MIB, 1)
        assert (blocks[:128, : _BLOCK // 8 // 2] == 7).all()
        expected = noise(8 * MIB).reshape(-1, _BLOCK // 8)[:, _BLOCK // 8 // 2 :]
        assert (blocks[:128, _BLOCK // 8 // 2 :] == expected).all()
        assert (words[8 * MIB // 8 : 12 * MIB // 8] == noise(4 * MIB, 1)).all()
        assert kept(region)["memory_nbytes"] <= 8 * MIB
        assert region.stats().errors == 0
        del words, blocks


def test_a_full_store_says_so() -> None:
    with PagedMemory(
        nbytes=8 * MIB, resident_limit=9 * MIB, store_limit="2MiB", store_timeout=0.2
    ) as region:
        words = region.asarray("u8")
        words[:] = noise(8 * MIB)
        with pytest.raises(StoreError, match=r"(?s)store_limit is full.*spill="):
            region.evict()
        assert kept(region)["memory_nbytes"] <= 2 * MIB
        assert (words == noise(8 * MIB)).all()
        del words


def test_pages_that_the_program_discards_are_zeros() -> None:
    with staying() as (region, words):
        pages = words.reshape(-1, PAGE_SIZE // 8)
        count = kept(region)["in_place_blocks"]
        for block in range(0, 8 * MIB, _BLOCK):
            lowlevel.madvise(region.address + block + PAGE_SIZE, PAGE_SIZE, mmap.MADV_DONTNEED)
        expected = noise(8 * MIB).reshape(pages.shape)
        lost = np.arange(len(pages)) % (_BLOCK // PAGE_SIZE) == 1
        assert (pages[~lost] == expected[~lost]).all()
        found = pages[lost]
        assert count >= 96
        assert ((found == 0) | (found == expected[lost])).all()
        assert (found == 0).all(axis=1).sum() >= 96
        pages[lost] = 5
        region.evict()
        assert kept(region)["in_place_blocks"] == 0
        assert (pages[~lost] == expected[~lost]).all()
        assert (pages[lost] == 5).all()
        del words, pages


def test_evict_of_those_with_pages_missing() -> None:
    with staying() as (region, words):
        pages = words.reshape(-1, PAGE_SIZE // 8)
        for block in range(0, 8 * MIB, _BLOCK):
            lowlevel.madvise(region.address + block + PAGE_SIZE, PAGE_SIZE, mmap.MADV_DONTNEED)
        region.evict()
        assert kept(region)["in_place_blocks"] == 0
        assert region.stats().resident_nbytes == 0
        lost = np.arange(len(pages)) % (_BLOCK // PAGE_SIZE) == 1
        assert (pages[~lost] == noise(8 * MIB).reshape(pages.shape)[~lost]).all()
        del words, pages


class TestArena:
    """Arrays of `paged_allocations` come and go in a region."""

    @staticmethod
    def served(limit: int = MIB) -> tuple[Any, Any, Words]:
        arena, memory = new_arena(limit, MIB, None)
        one = np.array([[0, 1]], np.uint32).tobytes()
        memory.pin_blocks(one, False)
        memory.unpin_blocks(one)
        return arena, memory, np.frombuffer(memory, np.uint64)

    def test_what_is_freed_is_counted_no_more(self) -> None:
        arena, memory, whole = self.served()
        for seed in range(3):
            places = [arena.allocate(4 * MIB) for _ in range(2)]
            for number, place in enumerate(places):
                content = whole[(place - memory.address) // 8 :][: 4 * MIB // 8]
                content[:] = noise(4 * MIB, 2 * seed + number)
            assert kept(memory)["in_place_blocks"] > 0
            assert memory.stats().resident_nbytes <= MIB
            arena.release(places[0])
            content = whole[(places[1] - memory.address) // 8 :][: 4 * MIB // 8]
            assert (content == noise(4 * MIB, 2 * seed + 1)).all()
            arena.release(places[1])
            _until(lambda: kept(memory)["memory_nbytes"] == 0)
            assert kept(memory)["blocks"] == 0
            assert memory.stats().resident_nbytes == memory.stats().dirty_nbytes == 0

    def test_what_grows_takes_its_place_along(self) -> None:
        arena, memory, whole = self.served()
        first, behind = arena.allocate(4 * MIB), arena.allocate(MIB)
        content = whole[(first - memory.address) // 8 :][: 4 * MIB // 8]
        content[:] = noise(4 * MIB)
        before = kept(memory)["in_place_blocks"]
        moved = arena.resize(first, 12 * MIB)
        assert moved not in (0, first)
        assert before > 32
        assert kept(memory)["in_place_blocks"] == before
        assert memory.stats().resident_nbytes <= MIB
        content = whole[(moved - memory.address) // 8 :][: 12 * MIB // 8]
        assert (content[: 4 * MIB // 8] == noise(4 * MIB)).all()
        assert not content[4 * MIB // 8 :].any()
        arena.release(behind)
        arena.release(moved)
        _until(lambda: kept(memory)["memory_nbytes"] == 0)
        assert memory.stats().resident_nbytes == memory.stats().dirty_nbytes == 0

    def test_room_is_found_for_an_array_where_others_were_overwritten(self) -> None:
        with pagemove.paged_allocations("4MiB", store_limit="16MiB"):
            arrays = []
            for seed in range(6):
                arrays.append(np.empty(2 * MIB // 8, np.uint64))
                arrays[-1][:] = noise(2 * MIB, seed)
            for array in arrays:
                array[:] = 3
            more = [np.empty(2 * MIB // 8, np.uint64) for _ in range(6)]
            for seed, array in enumerate(more):
                array[:] = noise(2 * MIB, seed)
        assert all((array == noise(2 * MIB, seed)).all() for seed, array in enumerate(more))
        assert all((array == 3).all() for array in arrays)

    def test_no_array_is_refused_before_they_are_looked_at(self) -> None:
        arrays: list[Words] = []
        with pagemove.paged_allocations("8MiB", store_limit="16MiB"):
            with contextlib.suppress(MemoryError):
                while len(arrays) < 64:
                    arrays.append(np.empty(MIB // 8, np.uint64))
                    arrays[-1][:] = noise(MIB, len(arrays))
            for array in arrays:
                array[:] = 3
            # Nothing leaves now, and only if those shrink is there room for as many again.
            more = [np.empty(MIB // 8, np.uint64) for _ in arrays]
            for seed, array in enumerate(more):
                array[:] = noise(MIB, seed)
        assert 16 < len(arrays) < 64
        assert all((array == noise(MIB, seed)).all() for seed, array in enumerate(more))
        assert all((array == 3).all() for array in arrays)


def test_a_budget_has_their_frames_for_others() -> None:
    budget = Budget("4MiB")
    with (
        staying(8 * MIB, budget) as (region, words),
        PagedMemory(nbytes=8 * MIB, resident_limit=budget) as other,
    ):
        numbers = other.asarray("u8")
        wrong: list[str] = []

        def work(mine: Words, seed: int) -> None:
            for turn in range(4):
                mine[:] = noise(8 * MIB, 10 * seed + turn)
                if not (mine == noise(8 * MIB, 10 * seed + turn)).all():
                    wrong.append(f"{seed} {turn}")
                stats = budget.stats()
                if sum(each.resident_nbytes for each in stats.regions) > 4 * MIB:
                    wrong.append(f"resident {stats}")

        threads = [
            threading.Thread(target=work, args=arguments)
            for arguments in ((words, 1), (numbers, 2))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert kept(region)["in_place_blocks"] > 0
        assert kept(other)["in_place_blocks"] > 0
        # Lent to the pins of the other, that of what stays is left where it is.
        with pagemove.pinned(numbers[: 2 * MIB // 8]):
            assert (numbers == noise(8 * MIB, 23)).all()
            assert (words == noise(8 * MIB, 13)).all()
        del words, numbers


def _in_a_child(region: PagedMemory, words: Words, before: dict[str, int]) -> int:
    if kept(region)["in_place_blocks"] != before["in_place_blocks"]:
        return 1
    if kept(region)["memory_nbytes"] != before["memory_nbytes"]:
        return 2
    if region.stats().resident_nbytes > MIB:
        return 3
    if not (words == noise(8 * MIB)).all():
        return 4
    words += np.uint64(1)
    if not (words == noise(8 * MIB) + np.uint64(1)).all():
        return 5
    region.evict()
    counts = kept(region)
    if counts["in_place_blocks"] or counts["incompressible_blocks"] != 128:
        return 6
    words[:] = 0
    region.evict()
    counts = kept(region)
    return 7 if counts["memory_nbytes"] or region.stats().resident_nbytes else 0


def test_a_child_has_them_too() -> None:
    with staying() as (region, words):
        before = kept(region)
        pid = os.fork()
        if not pid:
            status = 99
            try:
                status = _in_a_child(region, words, before)
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert kept(region)["in_place_blocks"] == before["in_place_blocks"]
        assert (words == noise(8 * MIB)).all()
        words += np.uint64(1)
        assert (words == noise(8 * MIB) + np.uint64(1)).all()
        del words


_MERGED = """
import ctypes, numpy as np, pagemove, warnings
warnings.simplefilter("ignore", pagemove.KernelFaultsWarning)
noise = np.random.default_rng(0).integers(0, 2**64, 1 << 20, np.uint64)
with pagemove.PagedMemory(nbytes=8 << 20, resident_limit="1MiB") as region:
    words = region.asarray("u8")
    words[:] = noise
    ctypes.CDLL(None).prctl(67, 1, 0, 0, 0)  # PR_SET_MEMORY_MERGE
    words += np.uint64(1)
    region.evict()
    right = bool((words == noise + np.uint64(1)).all())
    del words
print(right)
"""


def test_memory_that_the_program_has_merged() -> None:
    assert fresh_interpreter(_MERGED).strip() == "True"


def _engaged_by_a_smaller_limit() -> tuple[int, int]:
    arena, memory = new_arena(64 * MIB, MIB, None, follows=True)
    address = arena.allocate(48 * MIB)
    words = np.frombuffer(memory, np.uint64)[(address - memory.address) // 8 :][: 6 * MIB]
    words[:] = np.random.default_rng(0).integers(0, 2**64, len(words), np.uint64)
    follower = memory._follower
    assert follower is not None
    follower.resize(8 * MIB, timeout=20)
    resident = memory.stats().resident_nbytes
    assert (words == np.random.default_rng(0).integers(0, 2**64, len(words), np.uint64)).all()
    return resident, int(memory.stats().store["in_place_blocks"])


def test_a_limit_that_becomes_less_puts_noise_in_place() -> None:
    resident, in_place = child(_engaged_by_a_smaller_limit, deadline=60)
    assert resident <= 8 * MIB
    assert in_place > 0
