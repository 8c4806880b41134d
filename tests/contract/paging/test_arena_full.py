"""Arrays of `paged_allocations` where the store fills up: MemoryError, and what there is stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import pagemove
from pagemove._native import pager
from support import child

pytestmark = [
    pytest.mark.needs("paging"),
    pytest.mark.skipif(pager.codec() is None, reason="no liblz4.so.1 nor libzstd.so.1"),
]

_MIB = 1 << 20
_WORDS = _MIB // 8
Words = npt.NDArray[np.float64]


def _fill(most: int = 200) -> list[Words]:
    """Return arrays of noise, as many as there is room for."""
    random = np.random.default_rng(0)
    kept: list[Words] = []
    try:
        while len(kept) < most:
            array = np.empty(_WORDS)
            array[:] = 0
            array[:] = random.random(_WORDS)
            kept.append(array)
    except MemoryError:
        pass
    return kept


def _in_a_budget_that_was_resized(before: str, after: str) -> int:
    budget = pagemove.Budget(before)
    with pagemove.paged_allocations(budget, store_limit="16MiB"):
        np.ones(2 * _WORDS)
        budget.resize(after)
        return len(_fill())


@pytest.mark.parametrize(
    ("before", "after", "least"), [("64MiB", "16MiB", 16), ("16MiB", "64MiB", 50)]
)
def test_a_budget_counts_as_it_is_now(before: str, after: str, least: int) -> None:
    made = child(_in_a_budget_that_was_resized, before, after, deadline=60)
    assert least <= made < 16 + 64


def _beside_another(path: Path) -> int:
    budget = pagemove.Budget("64MiB")
    other = pagemove.open_array(path, resident_limit=budget)
    with pagemove.pinned(other), pagemove.paged_allocations(budget, store_limit="16MiB"):
        return len(_fill())


def test_what_others_have_pinned_of_the_budget_is_not_counted(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(44 * _WORDS))
    assert 20 <= child(_beside_another, tmp_path / "a.npy", deadline=60) < 16 + 20


def _read_back() -> bool:
    with pagemove.paged_allocations("16MiB", store_limit="16MiB"):
        kept = _fill()
    # Of what is resident and dirty a quarter finds room in the store yet.
    assert len(kept) < 16 + 16 - 2
    sums = [float(array.sum()) for array in kept]
    for _ in range(4):
        assert [float(array.sum()) for array in kept] == sums
    random = np.random.default_rng(0)
    return all(np.array_equal(array, random.random(_WORDS)) for array in kept)


def test_what_there_is_can_be_read_after_the_memory_error() -> None:
    for _ in range(4):
        assert child(_read_back, deadline=60)
