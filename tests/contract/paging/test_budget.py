"""Regions that share a `Budget`: the limit of one region, held by all of them together.

Bytes of each region are compared with what is in its store; that the limit holds is sampled by
`support.paging.Peak`, and that leases never add up to more by a thread that asks all the time.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import gc
import os
import pickle
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import pagemove
from pagemove import Budget, PagedMemory
from pagemove.stores import FileStore
from support import child
from support.children import fork
from support.helpers import numbered, reined, reined_region, stored
from support.paging import (
    COUNT,
    KIB,
    MIB,
    RANDOM,
    READ,
    SEQUENTIAL,
    SLACK,
    Peak,
    Worker,
    contents,
    expected,
    make_file,
    paged,
    shared_zeros,
    words,
    wrong_words,
)
from support.threads import wait_for

pytestmark = pytest.mark.needs("paging")

_BLOCK = 64 * KIB


def _touch(memory: PagedMemory, first: int = 0, count: int | None = None) -> None:
    """Touch blocks one after the other, and check what is in each."""
    number = -(-memory.nbytes // memory.block_size)
    found, each = words(memory), memory.block_size // 8
    for block in range(first, number if count is None else first + count):
        at = block * each
        assert found[at] == expected(memory.nbytes)[at]


def _leased(budget: Budget, memory: PagedMemory) -> int:
    shares = [each for each in budget.stats().regions if each.label == str(memory.store.path)]
    assert len(shares) == 1
    return shares[0].leased_nbytes


@contextlib.contextmanager
def never_more(budget: Budget) -> Iterator[list[int]]:
    """Ask all the time whether leases are within the limit, and bytes within leases."""
    over, asked, stop = [], [0], threading.Event()

    def ask() -> None:
        while not stop.is_set():
            stats = budget.stats()
            asked[0] += 1
            if stats.leased_nbytes > stats.limit:
                over.append(stats)
            over.extend(each for each in stats.regions if each.resident_nbytes > each.leased_nbytes)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield asked
    finally:
        stop.set()
        thread.join()
    assert asked[0] > 10
    assert not over, over[:3]


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., list[Path]]:
    def make(count: int, nbytes: int) -> list[Path]:
        return [make_file(tmp_path / f"{n}.bin", nbytes) for n in range(count)]

    return make


@contextlib.contextmanager
def regions(budget: Budget, paths: list[Path], **paging: object) -> Iterator[list[PagedMemory]]:
    how = {"block_size": _BLOCK, "prefetch": "off", "resident_limit": budget} | paging
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(paged(path, **how)) for path in paths]


def _everything_at_once(folder: Path) -> tuple[int, int, int, str | None]:
    """Load regions of different blocks, modes and stores, while others fail, hang, go and fork."""
    nbytes, limit = 4 * MIB, 3 * MIB
    budget = Budget(limit)
    blocks = [(4 * KIB, "r+"), (16 * KIB, "c"), (_BLOCK, "r"), (_BLOCK, "r+")]
    paths = [make_file(folder / f"{n}", nbytes) for n in range(len(blocks) + 1)]
    slow, failing = (reined(folder, numbered(16 * _BLOCK)) for _ in range(2))
    shadows = [shared_zeros(nbytes // 8) for _ in blocks]
    wrong = None
    with contextlib.ExitStack() as stack:
        others = [
            stack.enter_context(
                PagedMemory(store, mode="r+", block_size=_BLOCK, resident_limit=budget)
            )
            for store in (slow, failing)
        ]
        memories = [
            stack.enter_context(paged(path, mode, block_size=block, resident_limit=budget))
            for path, (block, mode) in zip(paths, blocks, strict=False)
        ]
        closing = PagedMemory(FileStore(paths[-1]), block_size=_BLOCK, resident_limit=budget)
        stack.enter_context(never_more(budget))
        # The threads and tables of all of them are there: only blocks are counted from here on.
        peak = stack.enter_context(Peak())
        slow.reins.delay = 20_000
        for memory in others:
            words(memory)[:: _BLOCK // 8] += np.uint64(1)
        failing.reins.failing = errno.EIO
        stack.callback(setattr, failing.reins, "failing", 0)
        for turn in range(2):
            workers = [
                Worker(
                    memory,
                    READ if mode == "r" else COUNT,
                    (RANDOM, SEQUENTIAL)[n % 2],
                    shadow=shadow,
                    steps=600 if n % 2 == 0 else nbytes // 64,
                    seed=turn + 1,
                )
                for n, (memory, (_, mode), shadow) in enumerate(
                    zip(memories, blocks, shadows, strict=True)
                )
            ]
            for worker in workers:
                worker.start()
            if turn == 0:
                _touch(closing)
                closing.close()
                pid = fork()
                if not pid:
                    # Neither the regions nor what they hold are there.
                    os._exit(0 if budget.stats().leased_nbytes == 0 else 1)
                assert os.waitpid(pid, 0)[1] == 0
            for worker in workers:
                worker.join(60)
        stats = budget.stats()
        failing.reins.failing = slow.reins.delay = 0
        for memory, shadow in zip(memories, shadows, strict=True):
            wrong = wrong or wrong_words(words(memory), shadow=shadow)
        most, samples = peak.nbytes, peak.samples
        del memory, memories, others
        gc.collect()
    for store in (slow, failing):
        assert np.count_nonzero(stored(store) != numbered(16 * _BLOCK)) == 16
    assert stats.members == 6
    return most, samples, limit, wrong


def test_the_limit_holds_whatever_others_do(tmp_path):
    most, samples, limit, wrong = child(_everything_at_once, tmp_path, deadline=120)
    assert wrong is None
    assert samples > 20
    assert most <= limit + SLACK, f"{most} bytes at one of {samples} moments, limit {limit}"


class TestSharing:
    def test_an_idle_region_loses_memory_to_a_busy_one(self, files):
        budget = Budget(4 * MIB)
        with regions(budget, files(2, 8 * MIB)) as (first, second), never_more(budget):
            _touch(first)
            assert _leased(budget, first) >= 3 * MIB
            for _ in range(4):
                _touch(second)
            assert _leased(budget, second) >= 3 * MIB
            assert _leased(budget, first) >= 4 * _BLOCK
            # And back.
            for _ in range(4):
                _touch(first)
            assert _leased(budget, first) >= 3 * MIB
            assert budget.stats().moved_nbytes >= 4 * MIB

    def test_two_that_are_equally_busy_have_about_as_much(self, files):
        budget = Budget(4 * MIB)
        with regions(budget, files(2, 8 * MIB)) as (first, second):
            _touch(first)  # has all of it to begin with
            rng = np.random.default_rng(1)
            found, wanted = [words(first), words(second)], expected(8 * MIB)
            for at in rng.integers(0, len(wanted), 3000):
                assert found[0][at] == found[1][at] == wanted[at]
            del found
            shares = sorted((_leased(budget, first), _leased(budget, second)))
            assert shares[1] < 2 * shares[0], shares
            # They do not pass it to and fro: what moved is little beside what was read.
            moved = budget.stats().moved_nbytes
            read = first.stats().bytes_read + second.stats().bytes_read
            assert moved < read / 4

    def test_what_is_used_again_is_not_lost_to_what_is_read_once(self, files):
        """Most of a hot set stays, though only the scan misses to begin with."""
        budget = Budget(4 * MIB)
        with regions(budget, files(2, 16 * MIB)) as (hot, scan):
            _touch(hot, 0, 32)
            found, before = words(hot), hot.stats().bytes_read
            for block in range(4 * 256):
                assert words(scan)[block % 256 * (_BLOCK // 8)] is not None
                for at in range(0, 32 * _BLOCK // 8, _BLOCK // 8):
                    assert found[at] == expected(16 * MIB)[at]
            del found
            read = hot.stats().bytes_read - before
            assert read < scan.stats().bytes_read / 5

    def test_blocks_of_different_sizes(self, files):
        budget = Budget(24 * MIB)
        small, large = files(2, 32 * MIB)
        with (
            paged(small, block_size=4 * KIB, prefetch="off", resident_limit=budget) as few,
            paged(large, block_size=2 * MIB, prefetch="off", resident_limit=budget) as many,
            never_more(budget),
        ):
            for _ in range(3):
                _touch(many)
            assert _leased(budget, many) >= 20 * MIB
            for _ in range(2):
                _touch(few)
            assert _leased(budget, few) >= 14 * MIB
            assert _leased(budget, many) == 4 * 2 * MIB
            assert contents(many) == bytes(expected(32 * MIB))

    def test_a_region_alone_has_all_of_it(self, files):
        budget = Budget(8 * MIB)
        with regions(budget, files(1, 4 * MIB)) as (memory,):
            _touch(memory)
            _touch(memory)
            stats = memory.stats()
        assert (stats.evicted, stats.bytes_read) == (0, 4 * MIB)

    def test_prefetch_brings_what_the_budget_has_room_for(self, files):
        budget = Budget(8 * MIB)
        with regions(budget, files(2, 4 * MIB)) as (first, second):
            for memory in (first, second):
                memory.prefetch(0, 2 * MIB, wait=True)
                assert memory.stats().resident_nbytes >= 2 * MIB

    def test_compressed_memory(self):
        def inside() -> None:
            budget = Budget(2 * MIB)
            with (
                PagedMemory(nbytes=8 * MIB, resident_limit=budget) as one,
                PagedMemory(nbytes=8 * MIB, resident_limit=budget) as other,
                never_more(budget),
            ):
                for number, memory in enumerate((one, other)):
                    words(memory)[:] = np.arange(MIB, dtype=np.uint64) + np.uint64(number)
                for number, memory in enumerate((one, other)):
                    assert np.array_equal(
                        words(memory), np.arange(MIB, dtype=np.uint64) + np.uint64(number)
                    )

        child(inside, deadline=60)


class TestResize:
    def test_down_and_up_under_load(self, files):
        budget = Budget(8 * MIB)
        shadows = [shared_zeros(MIB) for _ in range(2)]
        with regions(budget, files(2, 8 * MIB), mode="r+", lock=False) as memories:
            workers = [
                Worker(memory, COUNT, RANDOM, shadow=shadow)
                for memory, shadow in zip(memories, shadows, strict=True)
            ]
            with contextlib.ExitStack() as stack:
                for worker in workers:
                    stack.enter_context(worker)
                for limit in (2 * MIB, 6 * MIB, MIB, 512 * KIB, 8 * MIB) * 2:
                    done = [worker.done for worker in workers]
                    budget.resize(limit, timeout=60)
                    stats = budget.stats()
                    assert stats.limit == budget.limit == limit
                    assert stats.leased_nbytes <= limit
                    assert stats.resident_nbytes <= limit
                    wait_for(
                        lambda done=done: all(
                            worker.done > before + 50
                            for worker, before in zip(workers, done, strict=True)
                        )
                    )
            for memory, shadow in zip(memories, shadows, strict=True):
                assert wrong_words(words(memory), shadow=shadow) is None

    def test_memory_is_gone_when_it_returns(self, files):
        def resized(paths: list[Path]) -> list[int]:
            budget = Budget(16 * MIB)
            with regions(budget, paths) as memories, Peak():
                for memory in memories:
                    _touch(memory)
                most = []
                for limit in (8 * MIB, 2 * MIB):
                    budget.resize(limit)
                    most.append(sum(each.stats().resident_nbytes for each in memories))
            return most

        assert child(resized, files(2, 8 * MIB), deadline=60) <= [8 * MIB, 2 * MIB]

    def test_beyond_what_it_was_when_a_region_was_opened(self, files):
        budget = Budget(MIB)
        with regions(budget, files(1, 8 * MIB)) as (memory,):
            _touch(memory)
            budget.resize("16MiB")
            _touch(memory)
            before = memory.stats()
            assert before.resident_nbytes >= 8 * MIB
            _touch(memory)
            assert (memory.stats() - before).bytes_read == 0

    def test_less_than_the_regions_cannot_do_without(self, files):
        budget = Budget(8 * MIB)
        with regions(budget, files(2, 4 * MIB)) as (first, _):
            said = (
                "a budget of 256 KiB is less than the 512 KiB that its 2 regions cannot do "
                "without, four blocks each and what is pinned: close some, or unpin arrays; it "
                "stays 8 MiB"
            )
            with pytest.raises(ValueError, match=re.escape(said)):
                budget.resize("256KiB")
            assert budget.limit == 8 * MIB
            with pagemove.pinned(words(first)[: MIB // 8]), pytest.raises(ValueError, match="pin"):
                budget.resize(MIB)
            budget.resize(512 * KIB)
            assert budget.stats().leased_nbytes <= 512 * KIB

    def test_what_its_store_does_not_take_stays(self, tmp_path):
        """Who cannot write keeps what it has, says so, and returns it when it can."""

        def inside() -> None:
            budget = Budget(2 * MIB)
            store, memory = reined_region(tmp_path, _BLOCK, mode="r+", resident_limit=budget)
            with store, memory:
                words(memory)[:: _BLOCK // 8] += np.uint64(1)
                store.reins.failing = errno.EIO
                with pytest.raises(TimeoutError, match=r"have not returned enough in 0\.3 s"):
                    budget.resize(512 * KIB, timeout=0.3)
                assert budget.limit == 512 * KIB
                assert budget.stats().leased_nbytes >= MIB
                assert budget.stats().refused > 0
                # Nobody gets more meanwhile.
                with pytest.raises(OSError, match="have not returned so much in time") as caught:
                    PagedMemory(nbytes=MIB, resident_limit=budget, store_timeout=0)
                assert caught.value.errno == errno.ENOMEM
                store.reins.failing = 0
                budget.resize(512 * KIB, timeout=60)
                assert budget.stats().leased_nbytes <= 512 * KIB
                assert np.array_equal(
                    words(memory)[:: _BLOCK // 8], numbered(MIB)[:: _BLOCK // 8] + np.uint64(1)
                )

        child(inside, deadline=60)


class TestOpening:
    def test_one_region_too_many(self, files):
        paths = files(3, 4 * MIB)
        budget = Budget(512 * KIB)
        with regions(budget, paths[:2]) as memories:
            for memory in memories:
                _touch(memory)
            with FileStore(paths[2]) as store, pytest.raises(OSError, match="budget") as caught:
                PagedMemory(store, resident_limit=budget)
            assert caught.value.errno == errno.ENOMEM
            for said in (*map(str, paths[:2]), "512 KiB", "256 KiB", "Budget.resize"):
                assert said in str(caught.value)
            assert budget.stats().members == 2
            budget.resize("1MiB")
            with paged(paths[2], resident_limit=budget) as third:
                _touch(third)

    def test_others_return_what_a_new_one_needs(self, files):
        paths = files(9, 2 * MIB)
        budget = Budget(9 * 4 * _BLOCK)
        with regions(budget, paths[:1]) as (first,):
            _touch(first)
            assert budget.limit - _leased(budget, first) < 8 * 4 * _BLOCK
            with regions(budget, paths[1:]) as others, never_more(budget):
                for memory in (first, *others):
                    assert _leased(budget, memory) == 4 * _BLOCK
                    _touch(memory)

    def test_a_limit_of_less_than_four_blocks(self, files):
        (path,) = files(1, MIB)
        with FileStore(path) as store, pytest.raises(ValueError, match="less than four blocks"):
            PagedMemory(store, resident_limit=Budget(128 * KIB))

    @pytest.mark.parametrize("limit", [1, "3kB", 2**63])
    def test_not_a_limit(self, limit):
        with pytest.raises(ValueError, match="limit of a budget must be from"):
            Budget(limit)
        budget = Budget(MIB)
        with pytest.raises(ValueError, match="limit of a budget must be from"):
            budget.resize(limit)
        assert budget.limit == MIB

    def test_everything_takes_one(self, tmp_path):
        budget = Budget("1MiB")
        path = tmp_path / "numbers.npy"
        np.save(path, np.arange(MIB))
        array = pagemove.open_array(path, resident_limit=budget)
        mapped = pagemove.memmap(path, np.int64, "r", offset=128, resident_limit=budget)
        assert np.array_equal(array, mapped)
        for each in (array, mapped):
            region = pagemove.region_of(each)
            assert region.budget is budget
            assert region.resident_limit == MIB
            assert "at most 1 MiB resident with all others of its budget" in repr(region)
        assert budget.stats().members == 2
        assert repr(budget) == "<Budget of 1 MiB, 1 MiB of it leased to 2 regions>"


class TestLives:
    def test_a_region_returns_all_when_it_is_closed(self, files):
        budget = Budget(2 * MIB)
        with regions(budget, files(1, 4 * MIB)) as (memory,):
            _touch(memory)
            assert budget.stats().leased_nbytes == 2 * MIB
        stats = budget.stats()
        assert (stats.leased_nbytes, stats.least_nbytes, stats.members) == (0, 0, 0)
        assert stats.grown_nbytes == stats.returned_nbytes

    def test_regions_outlive_the_object(self, files):
        with regions(Budget(MIB), files(2, 4 * MIB)) as (first, second):
            gc.collect()
            for memory in (first, second):
                _touch(memory)
                assert memory.stats().resident_nbytes <= MIB
                assert memory.budget is first.budget

    def test_one_that_fails_to_open_leaves_nothing(self, tmp_path):
        def inside() -> None:
            budget = Budget(2 * MIB)
            store = reined(tmp_path, numbered(MIB))
            store._path.unlink()
            with store, pytest.raises((OSError, pagemove.StoreError)):
                PagedMemory(store, resident_limit=budget)
            assert (budget.stats().members, budget.stats().leased_nbytes) == (0, 0)

        child(inside, deadline=60)

    def test_closed_while_it_is_to_shrink(self, tmp_path, files):
        """What it had is there for others then, though it never returned any of it itself."""

        def inside() -> None:
            (path,) = files(1, 4 * MIB)
            budget = Budget(2 * MIB)
            store, memory = reined_region(
                tmp_path, _BLOCK, mode="r+", resident_limit=budget, store_timeout=0.2
            )
            words(memory)[:: _BLOCK // 8] += np.uint64(1)
            store.reins.failing = errno.EIO
            with (
                store,
                paged(path, block_size=_BLOCK, prefetch="off", resident_limit=budget) as other,
            ):
                for _ in range(3):
                    _touch(other)
                assert budget.stats().refused > 0
                assert budget.stats().regions
                store.reins.failing = 0
                memory.close()
                _touch(other)
                _touch(other)
                assert _leased(budget, other) == 2 * MIB
            assert stored(store)[0] == numbered(MIB)[0] + np.uint64(1)

        child(inside, deadline=60)

    def test_a_child_has_one_of_its_own(self, files):
        (path,) = files(1, 4 * MIB)

        def both() -> bool:
            budget = Budget(MIB)
            with paged(path, resident_limit=budget) as memory:
                _touch(memory)
                pid = fork()
                if not pid:
                    stats = budget.stats()
                    right = (stats.limit, stats.leased_nbytes, stats.regions) == (MIB, 0, ())
                    with paged(path, resident_limit=budget) as own:
                        _touch(own)
                        right = right and budget.stats().members == 1
                        budget.resize("2MiB")
                    os._exit(0 if right and budget.limit == 2 * MIB else 1)
                _touch(memory)
                status = os.waitpid(pid, 0)[1]
                return status == 0 and budget.limit == MIB and budget.stats().members == 1

        assert child(both, deadline=60)

    def test_it_is_not_pickled(self):
        budget = Budget(MIB)
        for way in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match=re.escape("make one there, Budget(1048576)")):
                way(budget)


class TestPins:
    def test_others_return_what_is_to_be_pinned(self, files):
        budget = Budget(4 * MIB)
        with regions(budget, files(2, 8 * MIB)) as (first, second), never_more(budget):
            _touch(first)
            with pagemove.pinned(words(second)[: 2 * MIB // 8]):
                stats = second.stats()
                assert stats.pinned_nbytes == 2 * MIB
                for _ in range(3):
                    _touch(first)
                # What is pinned has stayed.
                assert (second.stats() - stats).bytes_read == 0
                assert second.stats().pinned_nbytes == 2 * MIB
                assert _leased(budget, second) >= 2 * MIB + 4 * _BLOCK
                assert budget.stats().least_nbytes == 2 * MIB + 8 * _BLOCK
            assert budget.stats().least_nbytes == 8 * _BLOCK
            for _ in range(3):
                _touch(first)
            assert _leased(budget, first) >= 3 * MIB

    def test_more_than_all_have(self, files):
        budget = Budget(2 * MIB)
        with regions(budget, files(2, 8 * MIB)) as (first, second):
            assert first.pinnable == 2 * MIB - 8 * _BLOCK
            with (
                pytest.raises(ValueError, match=r"at most 1\.5 MiB can be pinned"),
                pagemove.pinned(words(first)[: 2 * MIB // 8]),
            ):
                pass
            assert budget.stats().least_nbytes == 8 * _BLOCK
            with pagemove.pinned(words(first)[: first.pinnable // 8]):
                _touch(second)
