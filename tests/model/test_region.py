"""The model of a region, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from .region import Region


def numbers(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


@pytest.fixture(params=["r+", "c"])
def region(request: pytest.FixtureRequest) -> Region:
    return Region(np.arange(10, dtype=np.uint64), request.param, 4)


def test_has_the_contents_of_its_store(region):
    assert region.blocks == 3
    assert region.read(2, 5).tolist() == [2, 3, 4, 5, 6]
    assert region.check_region(2, numbers(2, 3)) is None
    assert "first 3: 0x9 instead of 0x3" in region.check_region(2, numbers(2, 9))


def test_touches_blocks(region):
    assert list(region.touched(3, 1)) == [0]
    assert list(region.touched(3, 2)) == [0, 1]
    assert list(region.touched(0, 10)) == [0, 1, 2]
    assert list(region.touched(5, 0)) == []


def test_reads_what_was_written(region):
    region.write(3, numbers(70, 80))
    assert region.read(0, 10).tolist() == [0, 1, 2, 70, 80, 5, 6, 7, 8, 9]
    assert not region.is_clean(0, 1)
    assert region.is_clean(8, 2)


def test_its_store_may_be_of_any_version_since_the_flush():
    region = Region(np.zeros(8, np.uint64), "r+", 4)
    for value in (1, 2, 3):
        region.write(0, numbers(value, value))
    for seen in ([0, 0], [1, 1], [3, 3], [1, 2]):
        assert region.check_store(numbers(*seen, 0, 0, 0, 0, 0, 0)) is None
    assert region.check_store(numbers(4, 0, 0, 0, 0, 0, 0, 0)) is not None
    assert region.check_store(numbers(0, 0, 1, 0, 0, 0, 0, 0)) is not None
    assert region.check_store(numbers(0, 0, 0, 0, 1, 0, 0, 0)) is not None
    region.flush()
    assert region.is_clean(0, 8)
    assert region.check_store(numbers(3, 3, 0, 0, 0, 0, 0, 0)) is None
    assert region.check_store(numbers(2, 3, 0, 0, 0, 0, 0, 0)) is not None


def test_private_changes_are_never_in_the_store():
    region = Region(np.zeros(8, np.uint64), "c", 4)
    region.write(0, numbers(1))
    region.flush()
    assert region.check_store(np.zeros(8, np.uint64)) is None
    assert region.check_store(numbers(1, 0, 0, 0, 0, 0, 0, 0)) is not None
    assert not region.is_clean(0, 1)


def test_a_changed_store_is_what_is_read():
    region = Region(np.zeros(8, np.uint64), "r", 4)
    region.change_store(4, numbers(5, 6))
    assert region.read(4, 2).tolist() == [5, 6]
    assert region.check_store(numbers(0, 0, 0, 0, 5, 6, 0, 0)) is None
