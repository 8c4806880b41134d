"""paging/available.py: how much memory there is, and what a region without a limit may take."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import pagemove
from pagemove.paging import available
from pagemove.paging.available import LEAST, SHARE, automatic
from pagemove.paging.sizes import text_of
from pagemove.stores import FileStore
from support import child
from support.paging import expected, make_file
from support.threads import together
from support.trees import make_tree

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
MACHINE = {"proc/meminfo": f"MemTotal: {16 << 20} kB\nMemAvailable: {8 << 20} kB\nCached: 1 kB\n"}
V1_ENDLESS = str(2**63 - 4096)


def group_files(version: int, limit: str, used: int, **stat: int) -> dict[str, str]:
    names = ("memory.max", "memory.current")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    lines = "".join(f"{name} {value}\n" for name, value in stat.items())
    return {names[0]: f"{limit}\n", names[1]: f"{used}\n", "memory.stat": lines}


def grouped(root: Path, version: int, group: str, files: dict[str, str]) -> None:
    make_tree(root, MACHINE, version=version, controller="memory", group=group, files=files)


class TestAvailable:
    def test_of_this_machine(self):
        found = available.available()
        assert found is not None
        total = re.search(r"MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text())
        assert total
        assert 0 <= found <= int(total[1]) << 10

    def test_without_groups(self, tmp_path):
        make_tree(tmp_path, MACHINE)
        assert available.available(tmp_path) == 8 * GIB

    def test_nothing_is_known(self, tmp_path):
        assert available.available(tmp_path) is None

    @pytest.mark.parametrize("version", [1, 2])
    def test_a_group_comes_first(self, tmp_path, version):
        grouped(tmp_path, version, "a", group_files(version, str(200 * MIB), 50 * MIB))
        assert available.available(tmp_path) == 150 * MIB

    @pytest.mark.parametrize(("version", "limit"), [(1, V1_ENDLESS), (2, "max")])
    def test_a_group_without_a_limit(self, tmp_path, version, limit):
        grouped(tmp_path, version, "a", group_files(version, limit, 50 * MIB))
        assert available.available(tmp_path) == 8 * GIB

    def test_what_can_be_taken_back(self, tmp_path):
        stat = {"inactive_file": 30 * MIB, "active_file": 20 * MIB, "slab_reclaimable": MIB}
        files = group_files(2, str(200 * MIB), 150 * MIB, anon=99 * MIB, shmem=9 * MIB, **stat)
        grouped(tmp_path, 2, "a", files)
        assert available.available(tmp_path) == 101 * MIB
        # Of version 1 the numbers of the group alone are not those of what is in it.
        stat = {"inactive_file": MIB, "total_inactive_file": 30 * MIB, "total_active_file": MIB}
        grouped(tmp_path, 1, "a", group_files(1, str(200 * MIB), 150 * MIB, **stat))
        assert available.available(tmp_path) == 81 * MIB

    @pytest.mark.parametrize("version", [1, 2])
    def test_any_group_around(self, tmp_path, version):
        grouped(tmp_path, version, "a", group_files(version, str(300 * MIB), 290 * MIB))
        grouped(tmp_path, version, "a/b/c", group_files(version, str(200 * MIB), 50 * MIB))
        assert available.available(tmp_path) == 10 * MIB

    def test_a_group_that_is_slowed_down(self, tmp_path):
        files = group_files(2, "max", 50 * MIB) | {"memory.high": str(80 * MIB)}
        grouped(tmp_path, 2, "a", files)
        assert available.available(tmp_path) == 30 * MIB

    def test_never_negative(self, tmp_path):
        grouped(tmp_path, 2, "a", group_files(2, str(MIB), 2 * MIB))
        assert available.available(tmp_path) == 0
        grouped(tmp_path, 2, "a", group_files(2, str(9 * MIB), MIB, inactive_file=2 * MIB))
        assert available.available(tmp_path) == 9 * MIB

    def test_files_that_are_missing(self, tmp_path):
        grouped(tmp_path, 2, "a", {"memory.max": str(MIB)})
        assert available.available(tmp_path) == 8 * GIB


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch):
    """Say how much memory there is, to a process without regions."""
    monkeypatch.setattr(available, "_promised", type(available._promised)())
    monkeypatch.setattr(available, "_automatic", None)
    monkeypatch.setattr(available, "_granted", 0)
    monkeypatch.setattr(available, "_opening", type(available._opening)())

    def say(nbytes: int | None) -> None:
        monkeypatch.setattr(available, "available", lambda: nbytes)

    return say


def _limit_for(nbytes: int, least: int = 0) -> int:
    """Ask for the limit, not for what was granted without a look."""
    available._granted = 0
    return available._limit_for(nbytes, least)


class TestDefault:
    def test_only_where_the_store_is_larger(self, memory):
        memory(GIB)
        assert _limit_for(GIB // SHARE) == 0
        assert _limit_for(GIB // SHARE + 1) == GIB // SHARE
        memory(None)
        assert _limit_for(1 << 50) == 0
        assert automatic(1 << 50, 0).budget is None

    def test_at_any_amount(self, memory):
        memory(0)
        assert _limit_for(1) == LEAST
        assert _limit_for(GIB) == LEAST
        assert _limit_for(GIB, 2 * LEAST) == 2 * LEAST

    def test_small_ones_are_granted_a_part_without_a_look(self, memory):
        memory(GIB)
        assert automatic(MIB, 0).budget is None
        memory(0)
        granted = 0
        while automatic(MIB, 0).budget is None:
            granted += MIB
        assert 0 < granted <= GIB // SHARE // 8
        available._granted_at -= 1
        available._granted = GIB
        assert automatic(MIB, 0).budget is not None

    def test_a_region_has_it_and_says_so(self, memory, tmp_path):
        memory(2 * LEAST)
        nbytes = LEAST + MIB
        path = make_file(tmp_path / "file", nbytes)
        array = pagemove.open_array(path, dtype=np.uint64)
        region = pagemove.region_of(array)
        assert region.resident_limit == LEAST
        said = (
            f"at most {text_of(LEAST)} resident with all others of its budget (by default: half of "
            "the memory available)"
        )
        assert said in repr(region)
        assert np.array_equal(array, expected(nbytes))
        stats = region.stats()
        assert stats.evicted > 0
        assert stats.resident_nbytes <= LEAST

    @pytest.mark.parametrize("limit", [None, "auto", " AUTO "])
    def test_a_small_one_has_none(self, memory, tmp_path, limit):
        memory(GIB)
        path = make_file(tmp_path / "file", MIB)
        with FileStore(path) as store, pagemove.PagedMemory(store, resident_limit=limit) as region:
            assert region.resident_limit is None
            assert "default" not in repr(region)

    def test_unlimited(self, memory, tmp_path):
        memory(0)
        path = make_file(tmp_path / "file", LEAST + MIB)
        with (
            FileStore(path) as store,
            pagemove.PagedMemory(store, resident_limit="unlimited") as region,
        ):
            assert region.resident_limit is None
            assert "resident" not in repr(region)
            with memoryview(region) as view:
                bytes(view)
            assert region.stats().evicted == 0

    def test_a_chosen_limit_stays(self, memory, tmp_path):
        memory(0)
        path = make_file(tmp_path / "file", LEAST + MIB)
        with FileStore(path) as store, pagemove.PagedMemory(store, resident_limit=MIB) as region:
            assert region.resident_limit == MIB
            assert "at most 1 MiB resident" in repr(region)
            assert "default" not in repr(region)

    def test_many_small_ones_have_a_limit_together(self, memory, tmp_path):
        """Of which each alone would fit."""
        memory(4 * LEAST)
        path = make_file(tmp_path / "file", LEAST - MIB)
        arrays = [pagemove.open_array(path, dtype=np.uint64) for _ in range(6)]
        budgets = [array.region.budget for array in arrays]
        assert budgets[:2] == [None, None]
        assert len(set(budgets[2:])) == 1
        assert budgets[2] is not None
        for array in arrays:
            assert np.array_equal(array, expected(LEAST - MIB))
        assert budgets[2].limit == LEAST + MIB
        assert sum(array.region.stats().resident_nbytes for array in arrays[2:]) <= LEAST + MIB

    def test_there_is_always_room_for_the_next(self, memory, tmp_path):
        memory(0)
        path = make_file(tmp_path / "file", MIB)
        count = LEAST // (4 * 64 * KIB) + 6
        arrays = [pagemove.open_array(path, dtype=np.uint64) for _ in range(count)]
        assert {array.region.resident_limit for array in arrays} == {count * 4 * 64 * KIB}
        assert all(int(array[-1]) == int(expected(MIB)[-1]) for array in arrays)

    def test_threads_that_open_at_once_count_each_other(self, memory, tmp_path):
        memory(4 * LEAST)
        path = make_file(tmp_path / "file", 2 * LEAST)
        arrays = together(*[lambda: pagemove.open_array(path, dtype=np.uint64)] * 8)
        budgets = [array.region.budget for array in arrays]
        assert budgets.count(None) == 1
        assert len(set(budgets)) == 2

    def test_threads_that_open_at_once_find_room(self, memory, tmp_path):
        memory(0)
        path = make_file(tmp_path / "file", LEAST)
        block = 2 * MIB
        for _ in range(3):
            arrays = together(
                *[lambda: pagemove.open_array(path, dtype=np.uint64, block_size=block)] * 8
            )
            assert arrays[0].region.resident_limit >= 8 * 4 * block
            del arrays

    def test_what_was_not_opened_is_promised_nothing(self, memory, tmp_path):
        memory(4 * LEAST)
        path = make_file(tmp_path / "file", 2 * LEAST)
        for _ in range(3):
            with pytest.raises(ValueError, match="working set"):
                pagemove.open_array(path, dtype=np.uint64, replay=path)
        assert pagemove.open_array(path, dtype=np.uint64).region.budget is None

    def test_a_forked_child_has_a_budget_of_its_own(self, memory, tmp_path):
        memory(0)
        path = make_file(tmp_path / "file", LEAST + MIB)
        array = pagemove.open_array(path, dtype=np.uint64)
        assert array.region.budget is not None
        assert child(_own_budget, path, array.region.budget, deadline=60) == (True, LEAST)

    def test_memory_without_a_store(self, memory):
        memory(2 * LEAST)
        with pagemove.PagedMemory(nbytes=LEAST + MIB) as region:
            assert region.resident_limit == LEAST
            words = region.asarray(np.uint64)
            words[:] = np.arange(words.size) % 97
            assert np.array_equal(words, np.arange(words.size) % 97)
            del words
            assert region.stats().resident_nbytes <= LEAST


class TestAutomatic:
    def test_all_share_one_half(self, memory, tmp_path):
        memory(8 * LEAST)
        path = make_file(tmp_path / "file", 5 * LEAST)
        with FileStore(path) as store:
            with (
                pagemove.PagedMemory(store, resident_limit="auto") as first,
                pagemove.PagedMemory(store, resident_limit=" AUTO") as second,
            ):
                assert first.budget is second.budget is not None
                assert first.resident_limit == second.resident_limit == 4 * LEAST
                said = (
                    f"at most {text_of(4 * LEAST)} resident with all others of its budget (by "
                    "default: half of the memory available)"
                )
                assert said in repr(second)
                # What they may still take is promised once.
                assert _limit_for(GIB) == (8 * LEAST - 4 * LEAST) // SHARE + (
                    first.budget.stats().leased_nbytes // SHARE
                )
            memory(6 * LEAST)
            with pagemove.PagedMemory(store, resident_limit="auto") as third:
                assert third.resident_limit == 3 * LEAST
                # It is the default.
                with pagemove.PagedMemory(store) as fourth:
                    assert fourth.budget is third.budget


def _own_budget(path: Path, parents: pagemove.Budget) -> tuple[bool, int | None]:
    own = pagemove.open_array(path, dtype=np.uint64).region
    return own.budget is not None and own.budget is not parents, own.resident_limit
