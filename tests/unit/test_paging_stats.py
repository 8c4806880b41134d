"""paging/stats.py: percentiles from a histogram, and what happened between two looks."""

from __future__ import annotations

import dataclasses
import errno
import pickle

import numpy as np
import pytest

from pagemove import PagedMemory, PagingStats, StoreError
from pagemove.stores import FileStore


def failure(number: int) -> StoreError:
    return StoreError(errno.EIO, f"failure {number}", store="x", operation="read", offset=number)


class TestPercentiles:
    def test_upper_bounds_of_the_histogram(self):
        stats = PagingStats(histogram=((1000, 50), (2000, 48), (9000, 1), (70_000, 1)))
        assert (stats.p50_ns, stats.p99_ns) == (1000, 9000)
        assert stats.percentile(51) == 2000
        assert stats.percentile(100) == 70_000
        assert stats.percentile(0) == 1000

    def test_of_one_fault(self):
        stats = PagingStats(histogram=((5000, 1),))
        assert stats.p50_ns == stats.p99_ns == 5000

    def test_of_none(self):
        assert PagingStats().p50_ns == PagingStats().p99_ns == 0


class TestDifference:
    EARLIER = PagingStats(
        faults=10,
        bytes_read=1000,
        errors=1,
        resident_nbytes=500,
        dirty_nbytes=100,
        failures=(failure(0),),
        histogram=((1000, 7), (2000, 3)),
    )
    LATER = PagingStats(
        faults=15,
        bytes_read=1600,
        errors=3,
        resident_nbytes=400,
        dirty_nbytes=50,
        failures=(failure(0), failure(1), failure(2)),
        histogram=((1000, 9), (2000, 3), (4000, 3)),
    )

    def test_counts_are_subtracted_and_levels_are_the_later_ones(self):
        between = self.LATER - self.EARLIER
        assert (between.faults, between.bytes_read, between.errors) == (5, 600, 2)
        assert (between.resident_nbytes, between.dirty_nbytes) == (400, 50)
        assert between.histogram == ((1000, 2), (4000, 3))
        assert between.p50_ns == 4000

    def test_only_the_new_failures(self):
        assert [each.offset for each in (self.LATER - self.EARLIER).failures] == [1, 2]
        assert (self.LATER - self.LATER).failures == ()

    def test_more_failures_than_are_kept(self):
        kept = dataclasses.replace(self.LATER, errors=100)
        assert (kept - self.EARLIER).failures == kept.failures

    def test_every_count_is_subtracted(self):
        names = {each.name for each in dataclasses.fields(PagingStats)}
        levels = {"resident_nbytes", "dirty_nbytes", "pinned_nbytes"}
        counts = names - levels - {"failures", "histogram", "io", "store"}
        high = PagingStats(**dict.fromkeys(counts, 7))
        low = PagingStats(**dict.fromkeys(counts, 4))
        assert {getattr(high - low, name) for name in counts} == {3}

    def test_from_something_else(self):
        with pytest.raises(TypeError):
            self.LATER - 1


@pytest.mark.needs("move")
def test_everything_that_the_pager_counts_is_in_it(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with FileStore(tmp_path / "file") as store, PagedMemory(store) as region:
        names = {name: f"{name}_nbytes" for name in ("resident", "dirty", "pinned")}
        counted = {names.get(name, name) for name in region.counters()}
        fields = {each.name for each in dataclasses.fields(PagingStats)}
        assert counted - {"leased"} == fields - {"failures", "histogram", "io", "store"}
        assert memoryview(region)[0] == ord("x")
        stats = region.stats()
        assert (stats.faults, stats.bytes_read, stats.resident_nbytes) == (1, 1, region.block_size)
        assert [count for _, count in stats.histogram] == [1]


@pytest.mark.needs("move", "zstandard")
def test_what_the_store_says_of_itself():
    with PagedMemory(nbytes=1 << 20, resident_limit="256KiB") as region:
        array = region.asarray(np.uint8)
        array[:] = 7
        region.evict()
        store = region.stats().store
        assert store["ratio"] > 100
        assert (array == 7).all()
        del array


def test_frozen_and_travels_between_processes():
    stats = TestDifference.LATER
    with pytest.raises(AttributeError):
        stats.faults = 1
    other = pickle.loads(pickle.dumps(stats))
    assert other == stats
    assert [str(each) for each in other.failures] == [str(each) for each in stats.failures]
