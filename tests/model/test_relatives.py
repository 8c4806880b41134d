"""Sharing by fork, `unshare`, `move` and `move_many` in the model, without a kernel."""

from __future__ import annotations

import errno

import pytest

from . import PAGE, AddressSpace, CallError, Claim, move, move_many, remap_anon_pages, unshare
from .helpers import COUNT, A, B, fill, refused, remap, tokens

# Fork.


def test_a_living_child_and_one_that_exited(space: AddressSpace) -> None:
    fill(space, A, 11)
    child = space.fork()
    refused(errno.EBUSY, remap, space, B, A, 1)
    space.end_child(child)
    refused(errno.EBUSY, remap, space, B, A, 1)
    assert unshare(space, A * PAGE, PAGE) == 1
    assert remap(space, B, A, 1) == 1


def test_writing_ends_the_sharing(space: AddressSpace) -> None:
    fill(space, A, 11, 12)
    child = space.fork()
    space.touch_write(A, 13)
    assert remap(space, B, A, 2) == 1
    space.end_child(child)
    space.touch_write(A + 1, 14)
    assert remap(space, B + 1, A + 1, 1) == 1


def test_unshare_refuses_while_the_child_lives(space: AddressSpace) -> None:
    fill(space, A, 11, 12)
    space.fork()
    refused(errno.EBUSY, unshare, space, A * PAGE, 2 * PAGE)
    assert unshare(space, A * PAGE, 2 * PAGE, copy=True) == 2
    assert tokens(space, A, 2) == [11, 12]
    assert remap(space, B, A, 2) == 2


def test_the_last_child_counts(space: AddressSpace) -> None:
    fill(space, A, 11)
    first, second = space.fork(), space.fork()
    space.end_child(first)
    assert space.pages[A].claim is Claim.SHARED
    space.end_child(second)
    assert space.pages[A].claim is Claim.LEFT


def test_what_is_not_inherited_is_not_shared(space: AddressSpace) -> None:
    space.map(A, COUNT, inherited=False)
    fill(space, A, 11)
    space.touch_read(B + 1)
    space.fork()
    assert remap(space, B, A, 1) == 1
    assert remap(space, A, B + 1, 1) == 1  # a zero page is nobody's


def test_only_the_kernel_knows(space: AddressSpace) -> None:
    fill(space, A, 11)
    space.end_child(space.fork())
    space.page_out([A])
    assert space.touch_read(A) == 11
    with pytest.raises(ValueError, match="only the kernel"):
        remap(space, B, A, 1)
    refused(errno.EBUSY, remap_anon_pages, space, B * PAGE, A * PAGE, PAGE, happened=0)
    space.pages[A].claim = Claim.UNKNOWN
    assert remap_anon_pages(space, B * PAGE, A * PAGE, PAGE, happened=PAGE) == PAGE


# Relatives.


def test_move_is_all_or_says_how_much(space: AddressSpace) -> None:
    fill(space, A, 11, 12, 0, 14)
    with pytest.raises(CallError) as caught:
        move(space, B * PAGE, A * PAGE, 4 * PAGE)
    assert (caught.value.errno, caught.value.moved) == (errno.ENOENT, 2 * PAGE)
    assert tokens(space, B, 4) == [11, 12, None, None]
    move(space, (B + 2) * PAGE, (A + 2) * PAGE, 2 * PAGE, holes=True)
    assert tokens(space, B, 4) == [11, 12, None, 14]


def test_move_many_in_order(space: AddressSpace) -> None:
    fill(space, A, 11, 12, 13)
    moved = move_many(space, B * PAGE, A * PAGE, [2, 0, 1], [0, 1, 2])
    assert moved == 3 * PAGE
    assert tokens(space, B, 3) == [12, 13, 11]


def test_move_many_in_one_buffer_is_a_chain(space: AddressSpace) -> None:
    fill(space, A, 11)
    assert move_many(space, A * PAGE, A * PAGE, [1, 2, 3], [0, 1, 2]) == 3 * PAGE
    assert tokens(space, A, 4) == [None, None, None, 11]


@pytest.mark.parametrize(
    ("dst", "src", "number"),
    [
        ([0, 0], [0, 1], errno.EEXIST),
        ([0, 1], [0, 0], errno.ENOENT),
    ],
)
def test_move_many_with_an_index_twice(
    space: AddressSpace, dst: list[int], src: list[int], number: int
) -> None:
    fill(space, A, 11, 12)
    with pytest.raises(CallError) as caught:
        move_many(space, B * PAGE, A * PAGE, dst, src)
    assert (caught.value.errno, caught.value.moved, caught.value.index) == (number, PAGE, 1)


def test_move_many_onto_itself(space: AddressSpace) -> None:
    fill(space, A, 11)
    refused(errno.EINVAL, move_many, space, A * PAGE, A * PAGE, [0], [0])


def test_move_many_of_larger_pages(space: AddressSpace) -> None:
    fill(space, A, 11, 12, 13, 14)
    moved = move_many(space, B * PAGE, A * PAGE, [1, 0], [0, 1], page_size=2 * PAGE)
    assert moved == 4 * PAGE
    assert tokens(space, B, 4) == [13, 14, 11, 12]


def test_move_many_stops_inside_a_larger_page(space: AddressSpace) -> None:
    fill(space, A, 11, 12, 13)
    with pytest.raises(CallError) as caught:
        move_many(space, B * PAGE, A * PAGE, [0, 1], [0, 1], page_size=2 * PAGE)
    assert (caught.value.moved, caught.value.index) == (3 * PAGE, 1)
