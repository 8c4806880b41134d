"""paging/available.py: how much memory there is, and what a region without a limit may take."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import numpy as np
import pytest

import pagemove
from pagemove.paging import available
from pagemove.paging.available import LEAST, SHARE, default_limit
from pagemove.paging.sizes import text_of
from pagemove.stores import FileStore
from support.paging import expected, make_file
from support.trees import make_tree

MIB, GIB = 1 << 20, 1 << 30
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
    """Say how much memory there is."""
    monkeypatch.setattr(available, "_promised", type(available._promised)())

    def say(nbytes: int | None) -> None:
        monkeypatch.setattr(available, "available", lambda: nbytes)

    return say


class TestDefault:
    def test_only_where_the_store_is_larger(self, memory):
        memory(GIB)
        assert default_limit(GIB // SHARE, 0) == 0
        assert default_limit(GIB // SHARE + 1, 0) == GIB // SHARE
        memory(None)
        assert default_limit(1 << 50, 0) == 0

    def test_at_any_amount(self, memory):
        memory(0)
        assert default_limit(LEAST, 0) == 0
        assert default_limit(GIB, 0) == LEAST
        assert default_limit(GIB, 2 * LEAST) == 2 * LEAST

    def test_a_region_has_it_and_says_so(self, memory, tmp_path):
        memory(2 * LEAST)
        nbytes = LEAST + MIB
        path = make_file(tmp_path / "file", nbytes)
        array = pagemove.open_array(path, dtype=np.uint64)
        region = pagemove.region_of(array)
        assert region.resident_limit == LEAST
        said = f"at most {text_of(LEAST)} resident (by default: half of the memory available)"
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

    def test_what_others_may_still_take_is_not_there(self, memory, tmp_path):
        """Each of many takes half of what is left, so that together they never take all."""
        memory(8 * LEAST)
        path = make_file(tmp_path / "file", 5 * LEAST)
        with FileStore(path) as store:
            first = pagemove.PagedMemory(store)
            assert first.resident_limit == 4 * LEAST
            second = pagemove.PagedMemory(store)
            assert second.resident_limit == 2 * LEAST
            # What it has taken is not available, so it is not counted twice.
            second.prefetch(0, LEAST, wait=True)
            assert default_limit(GIB, 0) == (8 - 4 - 1) * LEAST // SHARE
            second.close()
            assert default_limit(GIB, 0) == 2 * LEAST
            first.close()
            del first, second
            gc.collect()
            assert default_limit(GIB, 0) == 4 * LEAST

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
    @pytest.fixture(autouse=True)
    def _alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(available, "_automatic", None)

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
                assert default_limit(GIB, 0) == (8 * LEAST - 4 * LEAST) // SHARE + (
                    first.budget.stats().leased_nbytes // SHARE
                )
            memory(6 * LEAST)
            with pagemove.PagedMemory(store, resident_limit="auto") as third:
                assert third.resident_limit == 3 * LEAST
            # Without the word each has its own.
            with pagemove.PagedMemory(store) as own:
                assert own.budget is None
                assert own.resident_limit == 3 * LEAST
