"""The contract of `remap_anon_pages`, asked of the model alone: no kernel takes part."""

from __future__ import annotations

import errno

import pytest

from . import PAGE, RAP_ALLOW_SRC_HOLES, AddressSpace, Kind, Registration, State, remap_anon_pages
from .helpers import COUNT, A, B, fill, refused, remap, tokens

# What a success does.


def test_pages_change_places_and_leave_holes(space: AddressSpace) -> None:
    fill(space, A, 11, 12, 13)
    assert remap(space, B + 2, A, 3) == 3
    assert tokens(space, A) == [None] * COUNT
    assert tokens(space, B) == [None, None, 11, 12, 13, None, None, None]


def test_it_is_the_same_page(space: AddressSpace) -> None:
    fill(space, A, 11)
    page = space.pages[A]
    remap(space, B, A, 1)
    assert space.pages[B] is page


def test_mappings_stay_as_they_were(space: AddressSpace) -> None:
    fill(space, A, 11, 12)
    before = [(vma.start, vma.length) for vma in space.vmas(0, 5000)]
    remap(space, B + 3, A, 2)
    assert [(vma.start, vma.length) for vma in space.vmas(0, 5000)] == before
    vma = space.vma_at(B)
    assert vma is not None
    assert vma.mapping.registered is Registration.OURS


def test_left_source_reads_as_zero_and_takes_a_fresh_page(space: AddressSpace) -> None:
    fill(space, A, 11)
    remap(space, B, A, 1)
    assert space.touch_read(A) == 0
    assert space.pages[A].kind is Kind.ZERO
    space.touch_write(A, 12)
    assert tokens(space, A, 1) == [12]
    assert tokens(space, B, 1) == [11]


def test_a_zero_page_moves(space: AddressSpace) -> None:
    space.touch_read(A)
    assert remap(space, B, A, 1) == 1
    assert space.pages[B].kind is Kind.ZERO


def test_a_swapped_page_moves(space: AddressSpace) -> None:
    fill(space, A, 11)
    space.page_out([A])
    assert remap(space, B, A, 1) == 1
    assert space.states(B, 1) == [(State.SWAPPED, 0)]
    assert space.touch_read(B) == 11


# Arguments.


@pytest.mark.parametrize(
    ("dst", "src", "length", "flags"),
    [
        (B * PAGE + 1, A * PAGE, PAGE, 0),
        (B * PAGE, A * PAGE + 8, PAGE, 0),
        (B * PAGE, A * PAGE, PAGE - 1, 0),
        (B * PAGE, A * PAGE, 0, 0),
        (B * PAGE, A * PAGE, -PAGE, 0),
        (B * PAGE, A * PAGE, PAGE, 2),
        (B * PAGE, A * PAGE, PAGE, 3),
        (B * PAGE, A * PAGE, PAGE, -1),
        ((1 << 64) - PAGE, A * PAGE, 2 * PAGE, 0),
        (B * PAGE, (1 << 64) - PAGE, 2 * PAGE, 0),
        (B * PAGE, A * PAGE, (1 << 64) - PAGE, 0),
    ],
    ids=str,
)
def test_wrong_arguments(space: AddressSpace, dst: int, src: int, length: int, flags: int) -> None:
    fill(space, A, 11)
    refused(errno.EINVAL, remap_anon_pages, space, dst, src, length, flags)
    assert tokens(space, A, 1) == [11]


@pytest.mark.parametrize("flags", [0, RAP_ALLOW_SRC_HOLES])
@pytest.mark.parametrize("shift", [0, 1, 2])
def test_forward_overlap_is_refused(space: AddressSpace, shift: int, flags: int) -> None:
    fill(space, A, 11, 12, 13)
    refused(errno.EINVAL, remap, space, A + shift, A, 3, flags)
    assert tokens(space, A, 3) == [11, 12, 13]


def test_next_to_each_other_is_no_overlap(space: AddressSpace) -> None:
    fill(space, A, 11, 12, 13)
    assert remap(space, A + 3, A, 3) == 3
    assert tokens(space, A, 6) == [None] * 3 + [11, 12, 13]


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_backward_overlap_is_memmove_by_pages(space: AddressSpace, shift: int) -> None:
    fill(space, A + shift, 11, 12, 13)
    assert remap(space, A, A + shift, 3) == 3
    assert tokens(space, A) == [11, 12, 13] + [None] * 5


def test_backward_overlap_with_holes(space: AddressSpace) -> None:
    fill(space, A + 1, 11, 0, 13)
    assert remap(space, A, A + 1, 3, RAP_ALLOW_SRC_HOLES) == 3
    assert tokens(space, A, 4) == [11, None, 13, None]


# Mappings.


@pytest.mark.parametrize("count", [1, 2])
def test_unmapped(space: AddressSpace, count: int) -> None:
    fill(space, A, 11, 12)
    refused(errno.EINVAL, remap, space, B + COUNT + 1 - count, A, count)
    refused(errno.EINVAL, remap, space, B, A + COUNT + 1 - count, count)


def test_two_mappings_are_not_one(space: AddressSpace) -> None:
    fill(space, A, 11, 12, 13)
    space.protect(A + 1, 1, "r")
    refused(errno.EINVAL, remap, space, B, A, 2)
    space.protect(A + 1, 1, "rw")
    space.adopt_bounds(A, COUNT, [A, A + 1, A + 2, A + COUNT])
    refused(errno.EINVAL, remap, space, B, A, 2)
    assert remap(space, B, A, 1) == 1


@pytest.mark.parametrize("area", [A, B])
def test_other_kinds_of_mapping(space: AddressSpace, area: int) -> None:
    space.map(area, COUNT, anonymous=False)
    refused(errno.EINVAL, remap, space, B, A, 1)


@pytest.mark.parametrize("prot", ["r", ""])
@pytest.mark.parametrize("area", [A, B])
def test_protections_must_agree(space: AddressSpace, area: int, prot: str) -> None:
    fill(space, A, 11)
    space.protect(area, COUNT, prot)
    refused(errno.EINVAL, remap, space, B, A, 1)


@pytest.mark.parametrize("prot", ["r", ""])
def test_both_must_be_writable(space: AddressSpace, prot: str) -> None:
    fill(space, A, 11)
    space.protect(A, COUNT, prot)
    space.protect(B, COUNT, prot)
    refused(errno.EINVAL, remap, space, B, A, 1)


@pytest.mark.parametrize("area", [A, B])
def test_both_locked_or_neither(space: AddressSpace, area: int) -> None:
    fill(space, A, 11)
    space.lock(area, COUNT)
    refused(errno.EINVAL, remap, space, B, A, 1)
    space.lock(A + B - area, COUNT)
    assert remap(space, B, A, 1) == 1


def test_destination_of_another_userfaultfd(space: AddressSpace) -> None:
    fill(space, A, 11)
    space.register_elsewhere(B, COUNT)
    refused(errno.EINVAL, remap, space, B, A, 1)
    space.unregister(B, COUNT)
    assert remap(space, B, A, 1) == 1
    refused(errno.EBUSY, space.register_elsewhere, B, COUNT)


def test_source_of_another_userfaultfd(space: AddressSpace) -> None:
    fill(space, A, 11)
    space.register_elsewhere(A, COUNT)
    assert remap(space, B, A, 1) == 1


# Page by page.


def test_hole_in_the_source(space: AddressSpace) -> None:
    refused(errno.ENOENT, remap, space, B, A, 1)
    fill(space, A + 1, 12)
    refused(errno.ENOENT, remap, space, B, A, 2)
    assert tokens(space, A, 2) == [None, 12]


def test_short_count_up_to_a_hole(space: AddressSpace) -> None:
    fill(space, A, 11, 12, 0, 14)
    assert remap(space, B, A, 4) == 2
    assert tokens(space, B, 4) == [11, 12, None, None]
    assert tokens(space, A, 4) == [None, None, None, 14]
    refused(errno.ENOENT, remap, space, B + 2, A + 2, 2)


def test_holes_are_skipped_and_counted(space: AddressSpace) -> None:
    fill(space, A, 11, 0, 0, 14)
    assert remap(space, B, A, 5, RAP_ALLOW_SRC_HOLES) == 5
    assert tokens(space, B, 5) == [11, None, None, 14, None]


@pytest.mark.parametrize("there", ["page", "zero", "swapped", "guard", "poison"])
@pytest.mark.parametrize("source", ["page", "hole"])
@pytest.mark.parametrize("flags", [0, RAP_ALLOW_SRC_HOLES])
def test_occupied_destination(space: AddressSpace, there: str, source: str, flags: int) -> None:
    if there == "zero":
        space.touch_read(B)
    elif there == "guard":
        space.guard(B, 1)
    elif there == "poison":
        space.poison(B, 1)
    else:
        fill(space, B, 21)
        if there == "swapped":
            space.page_out([B])
    if source == "page":
        fill(space, A, 11)
    state = space.states(B, 1)
    refused(errno.EEXIST, remap, space, B, A, 1, flags)
    assert space.states(B, 1) == state


def test_short_count_up_to_an_occupied_page(space: AddressSpace) -> None:
    fill(space, A, 11, 12, 13)
    fill(space, B + 2, 21)
    assert remap(space, B, A, 3) == 2
    assert tokens(space, A, 3) == [None, None, 13]
    assert tokens(space, B, 3) == [11, 12, 21]
    refused(errno.EEXIST, remap, space, B + 2, A + 2, 1)


def test_marked_source(space: AddressSpace) -> None:
    space.guard(A, 1)
    refused(errno.EFAULT, remap, space, B, A, 1)
    refused(errno.EFAULT, remap, space, B, A, 1, RAP_ALLOW_SRC_HOLES)
    space.unguard(A, 1)
    space.poison(A, 1)
    refused(errno.EFAULT, remap, space, B, A, 1)
