"""Which tests run: nothing that a parameter can be is left out of the lean suite."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.selection import MOST_SETS, choose, cover, few, in_lean, spread

_ROWS = st.lists(
    st.fixed_dictionaries({name: st.integers(0, 4) for name in "abc"}), min_size=1, max_size=60
)


def _combinations(rows: list[dict[str, int]], strength: int) -> set[tuple[tuple[str, int], ...]]:
    return {some for row in rows for some in itertools.combinations(sorted(row.items()), strength)}


@settings(deadline=None)
@given(_ROWS, st.integers(1, 3))
def test_every_combination_is_chosen(rows, strength):
    chosen = [rows[number] for number in cover(rows, strength)]
    assert _combinations(chosen, strength) == _combinations(rows, strength)


@pytest.mark.parametrize(("strength", "most"), [(1, 10), (2, 40), (3, 240)])
def test_few_of_a_product_suffice(strength, most):
    product = itertools.product(range(10), range(3), range(8))
    rows = [dict(zip("abc", values, strict=True)) for values in product]
    assert len(cover(rows, strength)) <= most * 2
    assert cover(rows, strength) == cover(rows, strength)


def test_a_list_written_by_hand_is_chosen_whole():
    assert cover([{"a": number, "b": -number} for number in range(30)], 1) == list(range(30))


def test_without_parameters():
    assert cover([{}], 2) == [0]


@pytest.mark.parametrize(
    ("count", "most", "expected"), [(3, 8, [0, 1, 2]), (9, 3, [0, 4, 8]), (8, 8, list(range(8)))]
)
def test_spread(count, most, expected):
    assert spread(range(count), most) == expected


def test_what_is_tried_again_is_tried_less_often_in_the_lean_suite(monkeypatch):
    monkeypatch.delenv("PAGEMOVE_TEST_LEAN", raising=False)
    assert few(30, 6) == 30
    monkeypatch.setenv("PAGEMOVE_TEST_LEAN", "1")
    assert few(30, 6) == 6


class _Item:
    """As much of a test with parameters as is looked at."""

    def __init__(self, name: str, number: int, marks: tuple[str, ...]) -> None:
        self.nodeid = f"{name}[{number}]"
        self.path = Path("tests/unit/test_x.py")
        self.callspec = SimpleNamespace(params={"number": object()})
        self._marks = marks

    def get_closest_marker(self, name: str) -> str | None:
        return name if name in self._marks else None

    def iter_markers(self, _: str) -> list[Any]:
        return []


def test_of_a_long_list_some_are_in_the_lean_suite_and_all_of_what_is_marked_each():
    some, every = ([_Item("x", n, marks) for n in range(30)] for marks in ((), ("each",)))
    chosen: Any = choose(some, "lean")
    assert len(chosen) == MOST_SETS
    assert {some[0], some[-1]} <= chosen
    assert choose(every, "lean") == set(every)


class TestInLean:
    @pytest.mark.slow
    @pytest.mark.lean
    def test_slow_ones_are_not(self, request):
        assert not in_lean(request.node)

    @pytest.mark.needs("redis")
    def test_nor_those_with_a_server(self, request):
        assert not in_lean(request.node)

    @pytest.mark.needs("redis")
    @pytest.mark.lean
    def test_unless_they_are_marked(self, request):
        assert in_lean(request.node)

    def test_all_others_are(self, request):
        assert in_lean(request.node)
