"""A `Budget` over time: it is resized; regions come, fail and go, in forked children too."""

from __future__ import annotations

import contextlib
import copy
import errno
import gc
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

import pagemove
from pagemove import Budget, PagedMemory
from support import child
from support.budgets import BLOCK, leased, regions, touch, touch_until
from support.children import fork
from support.helpers import numbered, reined, reined_region, stored, touch_at_last
from support.paging import (
    COUNT,
    KIB,
    MIB,
    RANDOM,
    Peak,
    Worker,
    paged,
    shared_zeros,
    words,
    wrong_words,
)
from support.threads import wait_for

pytestmark = pytest.mark.needs("paging")


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
                    touch(memory)
                most = []
                for limit in (8 * MIB, 2 * MIB):
                    budget.resize(limit)
                    most.append(sum(each.stats().resident_nbytes for each in memories))
            return most

        assert child(resized, files(2, 8 * MIB), deadline=60) <= [8 * MIB, 2 * MIB]

    def test_beyond_what_it_was_when_a_region_was_opened(self, files):
        budget = Budget(MIB)
        with regions(budget, files(1, 8 * MIB)) as (memory,):
            touch(memory)
            budget.resize("16MiB")
            touch(memory)
            before = memory.stats()
            assert before.resident_nbytes >= 8 * MIB
            touch(memory)
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
            store, memory = reined_region(tmp_path, BLOCK, mode="r+", resident_limit=budget)
            with store, memory:
                words(memory)[:: BLOCK // 8] += np.uint64(1)
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
                    words(memory)[:: BLOCK // 8], numbered(MIB)[:: BLOCK // 8] + np.uint64(1)
                )

        child(inside, deadline=60)


class TestLives:
    def test_a_region_returns_all_when_it_is_closed(self, files):
        budget = Budget(2 * MIB)
        with regions(budget, files(1, 4 * MIB)) as (memory,):
            touch(memory)
            assert budget.stats().leased_nbytes == 2 * MIB
        stats = budget.stats()
        assert (stats.leased_nbytes, stats.least_nbytes, stats.members) == (0, 0, 0)
        assert stats.grown_nbytes == stats.returned_nbytes

    def test_regions_outlive_the_object(self, files):
        with regions(Budget(MIB), files(2, 4 * MIB)) as (first, second):
            gc.collect()
            for memory in (first, second):
                touch(memory)
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
                tmp_path, BLOCK, mode="r+", resident_limit=budget, store_timeout=0.2
            )
            for at in range(0, memory.nbytes, BLOCK):
                touch_at_last(memory, at)
            words(memory)[:: BLOCK // 8] += np.uint64(1)
            store.reins.failing = errno.EIO
            with (
                store,
                paged(path, block_size=BLOCK, prefetch="off", resident_limit=budget) as other,
            ):
                touch_until(lambda: budget.stats().refused, other)
                assert budget.stats().regions
                store.reins.failing = 0
                memory.close()
                touch(other)
                touch(other)
                assert leased(budget, other) == 2 * MIB
            assert stored(store)[0] == numbered(MIB)[0] + np.uint64(1)

        child(inside, deadline=60)

    def test_a_child_has_one_of_its_own(self, files):
        (path,) = files(1, 4 * MIB)

        def both() -> bool:
            budget = Budget(MIB)
            with paged(path, resident_limit=budget) as memory:
                touch(memory)
                pid = fork()
                if not pid:
                    stats = budget.stats()
                    right = (stats.limit, stats.leased_nbytes, stats.regions) == (MIB, 0, ())
                    with paged(path, resident_limit=budget) as own:
                        touch(own)
                        right = right and budget.stats().members == 1
                        budget.resize("2MiB")
                    os._exit(0 if right and budget.limit == 2 * MIB else 1)
                touch(memory)
                status = os.waitpid(pid, 0)[1]
                return status == 0 and budget.limit == MIB and budget.stats().members == 1

        assert child(both, deadline=60)

    def test_it_is_not_pickled(self):
        budget = Budget(MIB)
        for way in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match=re.escape("make one there, Budget(1048576)")):
                way(budget)
