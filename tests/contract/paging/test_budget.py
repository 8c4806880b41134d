"""Regions that share a `Budget`: the limit of one region, held by all of them together.

Bytes of each region are compared with what is in its store; that the limit holds is sampled by
`support.paging.Peak`, and that leases never add up to more by a thread that asks all the time.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import threading
from pathlib import Path

import numpy as np
import pytest

import pagemove
from pagemove import Budget, PagedMemory
from pagemove.stores import FileStore
from support import child, wait_for
from support.budgets import BLOCK, leased, never_more, regions, touch, touch_until
from support.children import fork
from support.helpers import numbered, reined, stored
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

pytestmark = pytest.mark.needs("paging")


def _everything_at_once(folder: Path) -> tuple[int, int, int, str | None]:
    """Load regions of different blocks, modes and stores, while others fail, hang, go and fork."""
    nbytes, limit = 4 * MIB, 3 * MIB
    budget = Budget(limit)
    blocks = [(4 * KIB, "r+"), (16 * KIB, "c"), (BLOCK, "r"), (BLOCK, "r+")]
    paths = [make_file(folder / f"{n}", nbytes) for n in range(len(blocks) + 1)]
    slow, failing = (reined(folder, numbered(16 * BLOCK)) for _ in range(2))
    shadows = [shared_zeros(nbytes // 8) for _ in blocks]
    wrong = None
    with contextlib.ExitStack() as stack:
        others = [
            stack.enter_context(
                PagedMemory(store, mode="r+", block_size=BLOCK, resident_limit=budget)
            )
            for store in (slow, failing)
        ]
        memories = [
            stack.enter_context(paged(path, mode, block_size=block, resident_limit=budget))
            for path, (block, mode) in zip(paths, blocks, strict=False)
        ]
        closing = PagedMemory(FileStore(paths[-1]), block_size=BLOCK, resident_limit=budget)
        stack.enter_context(never_more(budget))
        # The threads and tables of all of them are there: only blocks are counted from here on.
        peak = stack.enter_context(Peak())
        slow.reins.delay = 20_000
        for memory in others:
            words(memory)[:: BLOCK // 8] += np.uint64(1)
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
                touch(closing)
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
        assert np.count_nonzero(stored(store) != numbered(16 * BLOCK)) == 16
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
            touch(first)
            assert leased(budget, first) >= 3 * MIB
            touch_until(lambda: leased(budget, second) >= 3 * MIB, second)
            assert leased(budget, first) >= 4 * BLOCK
            # And back.
            touch_until(lambda: leased(budget, first) >= 3 * MIB, first)
            assert budget.stats().moved_nbytes >= 4 * MIB

    def test_two_that_are_equally_busy_have_about_as_much(self, files):
        budget = Budget(4 * MIB)
        with regions(budget, files(2, 8 * MIB)) as (first, second):
            touch(first)  # has all of it to begin with
            rng = np.random.default_rng(1)
            found, wanted = [words(first), words(second)], expected(8 * MIB)
            for at in rng.integers(0, len(wanted), 3000):
                assert found[0][at] == found[1][at] == wanted[at]
            del found
            shares = sorted((leased(budget, first), leased(budget, second)))
            assert shares[1] < 2 * shares[0], shares
            # They do not pass it to and fro: what moved is little beside what was read.
            moved = budget.stats().moved_nbytes
            read = first.stats().bytes_read + second.stats().bytes_read
            assert moved < read / 4

    def test_what_is_used_again_is_not_lost_to_what_is_read_once(self, files):
        """Most of a hot set stays, though only the scan misses to begin with."""
        budget = Budget(4 * MIB)
        with regions(budget, files(2, 16 * MIB)) as (hot, scan):
            touch(hot, 0, 32)
            found, before = words(hot), hot.stats().bytes_read
            for block in range(4 * 256):
                assert words(scan)[block % 256 * (BLOCK // 8)] is not None
                for at in range(0, 32 * BLOCK // 8, BLOCK // 8):
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
                touch(many)
            assert leased(budget, many) >= 20 * MIB
            for _ in range(2):
                touch(few)
            assert leased(budget, few) >= 14 * MIB
            assert leased(budget, many) == 4 * 2 * MIB
            assert contents(many) == bytes(expected(32 * MIB))

    def test_a_region_alone_has_all_of_it(self, files):
        budget = Budget(8 * MIB)
        with regions(budget, files(1, 4 * MIB)) as (memory,):
            touch(memory)
            touch(memory)
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


class TestOpening:
    def test_one_region_too_many(self, files):
        paths = files(3, 4 * MIB)
        budget = Budget(512 * KIB)
        with regions(budget, paths[:2]) as memories:
            for memory in memories:
                touch(memory)
            with FileStore(paths[2]) as store, pytest.raises(OSError, match="budget") as caught:
                PagedMemory(store, resident_limit=budget)
            assert caught.value.errno == errno.ENOMEM
            for said in (*map(str, paths[:2]), "512 KiB", "256 KiB", "Budget.resize"):
                assert said in str(caught.value)
            assert budget.stats().members == 2
            budget.resize("1MiB")
            with paged(paths[2], resident_limit=budget) as third:
                touch(third)

    def test_others_return_what_a_new_one_needs(self, files):
        paths = files(9, 2 * MIB)
        budget = Budget(9 * 4 * BLOCK)
        with regions(budget, paths[:1]) as (first,):
            touch(first)
            assert budget.limit - leased(budget, first) < 8 * 4 * BLOCK
            with regions(budget, paths[1:]) as others, never_more(budget):
                for memory in (first, *others):
                    assert leased(budget, memory) == 4 * BLOCK
                    touch(memory)

    def test_statistics_are_of_one_moment(self, files):
        """Blocks that go from one region to another meanwhile are not counted twice."""
        budget = Budget(24 * BLOCK)
        paths = files(5, 2 * MIB)
        with regions(budget, paths) as several, never_more(budget) as asked:
            done = threading.Event()

            def sweep(memory: PagedMemory) -> None:
                while not done.is_set():
                    touch(memory)

            threads = [threading.Thread(target=sweep, args=(each,)) for each in several]
            for thread in threads:
                thread.start()
            wait_for(lambda: asked[0] > 5_000, 120)
            done.set()
            for thread in threads:
                thread.join()
            assert budget.stats().moved_nbytes > 0

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


class TestPins:
    def test_others_return_what_is_to_be_pinned(self, files):
        budget = Budget(4 * MIB)
        with regions(budget, files(2, 8 * MIB)) as (first, second), never_more(budget):
            touch(first)
            with pagemove.pinned(words(second)[: 2 * MIB // 8]):
                stats = second.stats()
                assert stats.pinned_nbytes == 2 * MIB
                for _ in range(3):
                    touch(first)
                # What is pinned has stayed.
                assert (second.stats() - stats).bytes_read == 0
                assert second.stats().pinned_nbytes == 2 * MIB
                assert leased(budget, second) >= 2 * MIB + 4 * BLOCK
                assert budget.stats().least_nbytes == 2 * MIB + 8 * BLOCK
            assert budget.stats().least_nbytes == 8 * BLOCK
            for _ in range(3):
                touch(first)
            assert leased(budget, first) >= 3 * MIB

    def test_more_than_all_have(self, files):
        budget = Budget(2 * MIB)
        with regions(budget, files(2, 8 * MIB)) as (first, second):
            assert first.pinnable == 2 * MIB - 8 * BLOCK
            with (
                pytest.raises(ValueError, match=r"at most 1\.5 MiB can be pinned"),
                pagemove.pinned(words(first)[: 2 * MIB // 8]),
            ):
                pass
            assert budget.stats().least_nbytes == 8 * BLOCK
            with pagemove.pinned(words(first)[: first.pinnable // 8]):
                touch(second)
