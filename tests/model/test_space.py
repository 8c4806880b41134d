"""Mappings, page states and huge pages in the model, without a kernel."""

from __future__ import annotations

import errno

import pytest

from . import HUGE, PAGE, AddressSpace, Impossible, Kind, State, unshare
from .helpers import COUNT, A, B, fill, refused, remap, tokens

# Discarding, mapping, protecting.


def test_discard(space: AddressSpace) -> None:
    fill(space, A, 11, 12, 13)
    space.guard(A + 2, 1)
    space.discard(A, 3)
    assert tokens(space, A, 2) == [None, None]
    assert space.pages[A + 2].kind is Kind.GUARD
    space.lock(B, COUNT)
    fill(space, B, 21)
    refused(errno.EINVAL, space.discard, B, 1)
    assert tokens(space, B, 1) == [21]


def test_discard_reports_a_gap_at_the_end(space: AddressSpace) -> None:
    fill(space, A, 11, 12, 13)
    space.unmap(A + 1, 1)
    refused(errno.ENOMEM, space.discard, A, 3)
    assert tokens(space, A, 3) == [None, None, None]


def test_mapping_over_takes_the_pages_away(space: AddressSpace) -> None:
    fill(space, A, 11, 12)
    space.map(A, 1)
    assert tokens(space, A, 2) == [None, 12]


def test_bounds_are_where_attributes_differ(space: AddressSpace) -> None:
    space.protect(A + 2, 3, "r")
    assert [(v.start, v.length, v.mapping.prot) for v in space.vmas(A, COUNT)] == [
        (A, 2, "rw"),
        (A + 2, 3, "r"),
        (A + 5, 3, "rw"),
    ]
    space.protect(A + 2, 3, "rw")
    assert len(space.vmas(A, COUNT)) == 1


def test_only_bounds_that_can_be_are_adopted(space: AddressSpace) -> None:
    space.protect(A + 2, 1, "r")
    with pytest.raises(Impossible):
        space.adopt_bounds(A, COUNT, [A, A + 2, A + COUNT])
    with pytest.raises(Impossible):
        space.adopt_bounds(A, COUNT, [A, A + 1, A + 2, A + 3, A + COUNT])
    space.protect(A + 2, 1, "rw")
    space.adopt_bounds(A, COUNT, [A, A + 2, A + COUNT])
    assert [vma.length for vma in space.vmas(A, COUNT)] == [2, 6]


def test_what_the_kernel_chose_can_be_told_after_several_changes(space: AddressSpace) -> None:
    space.protect(A + 2, 1, "r")
    space.protect(A + 2, 1, "rw")
    space.lock(A, COUNT)
    assert len(space.vmas(A, COUNT)) == 1
    space.adopt_bounds(A, COUNT, [A, A + 2, A + 3, A + COUNT])
    assert len(space.vmas(A, COUNT)) == 3


# Page states.


def test_states(space: AddressSpace) -> None:
    fill(space, A, 11, 12)
    space.touch_read(A + 2)
    space.guard(A + 3, 1)
    space.page_out([A + 1])
    words = [word for word, unsure in space.states(A, 5) if not unsure]
    assert words == [
        State.PRESENT | State.EXCLUSIVE,
        State.SWAPPED,
        State.PRESENT | State.ZERO,
        State.GUARD,
        0,
    ]
    child = space.fork()
    assert space.states(A, 1) == [(State.PRESENT, 0)]
    space.end_child(child)
    assert space.states(A, 1) == [(State.PRESENT | State.EXCLUSIVE, 0)]
    with pytest.raises(Impossible):
        space.adopt_states(A, [0])


# Huge pages.

HA, HB = 100 * HUGE, 200 * HUGE


@pytest.fixture
def huge() -> AddressSpace:
    space = AddressSpace()
    space.map(HA, 2 * HUGE)
    space.map(HB, 2 * HUGE)
    space.touch_write(HA + 5, 11, huge=True)
    return space


def marks(space: AddressSpace, first: int, count: int = HUGE) -> set[bool | None]:
    run = range(first, first + count)
    return {space.pages[page].huge for page in run if page in space.pages}


def test_a_huge_page_moves_whole(huge: AddressSpace) -> None:
    assert remap(huge, HB + HUGE, HA, HUGE) == HUGE
    assert marks(huge, HB + HUGE) == {True}
    assert huge.pages[HB + HUGE + 5].token == 11
    assert not any(page in huge.pages for page in range(HA, HA + HUGE))


def test_a_page_table_at_the_destination_may_split_it(huge: AddressSpace) -> None:
    huge.touch_read(HB)
    huge.discard(HB, 1)
    assert remap(huge, HB, HA, HUGE) == HUGE
    assert marks(huge, HB) == {None}


@pytest.mark.parametrize(("source", "number"), [("hole", errno.ENOENT), ("guard", errno.EFAULT)])
def test_a_failed_move_may_leave_a_page_table(huge: AddressSpace, source: str, number: int) -> None:
    if source == "guard":
        huge.guard(HA + HUGE, 1)
    refused(number, remap, huge, HB, HA + HUGE, 1)
    assert remap(huge, HB, HA, HUGE) == HUGE
    assert marks(huge, HB) == {None}


def test_page_tables_go_with_the_mapping(huge: AddressSpace) -> None:
    huge.touch_read(HB)
    huge.map(HB, HUGE - 1)
    assert huge.has_table(HB)
    huge.map(HB, HUGE + 1)
    assert not huge.has_table(HB)


@pytest.mark.parametrize(("dst", "count"), [(HB + 1, HUGE), (HB, HUGE - 1), (HB, 6)])
def test_anything_else_splits_it(huge: AddressSpace, dst: int, count: int) -> None:
    assert remap(huge, dst, HA, count) == count
    assert marks(huge, dst, count) == {False}
    assert marks(huge, HA) <= {False}
    assert huge.pages[dst + 5].token == 11


def test_an_occupied_destination_stops_a_huge_page(huge: AddressSpace) -> None:
    huge.touch_write(HB + 3, 21)
    assert remap(huge, HB, HA, HUGE) == 3
    assert tokens(huge, HB, 4) == [0, 0, 0, 21]
    assert tokens(huge, HA, 6) == [None, None, None, 0, 0, 11]


def test_a_shared_huge_page(huge: AddressSpace) -> None:
    child = huge.fork()
    refused(errno.EBUSY, remap, huge, HB, HA, HUGE)
    assert marks(huge, HA) == {True}
    huge.end_child(child)
    assert unshare(huge, HA * PAGE, HUGE * PAGE) == HUGE
    assert remap(huge, HB, HA, HUGE) == HUGE


@pytest.mark.parametrize("gone", [0, 1])
def test_a_huge_page_breaks_up_unless_its_first_page_is_shared(
    huge: AddressSpace, gone: int
) -> None:
    huge.discard(HA + gone, 1)
    huge.fork()
    refused(errno.EBUSY, remap, huge, HB, HA + 5, 1)
    assert huge.pages[HA + 7].perhaps_zero is (gone == 0)
    assert not huge.pages[HA + 5].perhaps_zero


def test_where_no_huge_page_can_be(huge: AddressSpace) -> None:
    with pytest.raises(Impossible):
        huge.touch_write(HA + 5 + HUGE - 5 - 1 + HUGE + HUGE, 1, huge=True)
    huge.touch_write(HB, 1)
    with pytest.raises(Impossible):
        huge.touch_write(HB + 1, 1, huge=True)


@pytest.mark.parametrize("change", ["discard", "guard", "protect", "map"])
def test_what_splits_a_huge_page(huge: AddressSpace, change: str) -> None:
    arguments = ("r",) if change == "protect" else ()
    getattr(huge, change)(HA + 3, 2, *arguments)
    assert True not in marks(huge, HA)


def test_a_page_of_zeros_in_a_broken_huge_page(huge: AddressSpace) -> None:
    remap(huge, HB + 1, HA, 1)
    zero = int(State.PRESENT | State.ZERO)
    huge.adopt_states(HA + 1, [zero])
    assert huge.pages[HA + 1].kind is Kind.ZERO
    with pytest.raises(Impossible):
        huge.adopt_states(HA + 5, [zero])
