"""Huge pages move whole where both sides are 2 MiB aligned, else page by page."""

from __future__ import annotations

import errno
import mmap
from pathlib import Path

import numpy as np
import pytest

import pagemove
from pagemove import (
    HUGE_PAGE_SIZE,
    PAGE_SIZE,
    Memory,
    PageState,
    move,
    move_many,
    remap_anon_pages,
)
from support import Area, at, hole, pattern, read, read_all, write

from .checks import GUARDS, check_moved, look, move_all, refuse

pytestmark = pytest.mark.needs("move", "thp")

_PAGES = HUGE_PAGE_SIZE // PAGE_SIZE


def huge_pages(area: Area) -> list[bool]:
    """Return for each 2 MiB whether it is one huge page."""
    states = area.states()
    return [bool(states[page] & PageState.HUGE) for page in range(0, area.pages, _PAGES)]


def frame(address: int) -> int:
    """Return the page frame number; 0 for anyone but root."""
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        pagemap.seek(address // PAGE_SIZE * 8)
        return int.from_bytes(pagemap.read(8), "little") & (1 << 55) - 1


@GUARDS
@pytest.mark.parametrize("number", [1, 3, 12])
@pytest.mark.parametrize("flags", [0, 1])
def test_both_sides_aligned_moves_whole(huge, guarded, number, flags, guard):
    guarded(guard)
    dst, src = huge(number), huge(number, filled=True)
    frames = [frame(src.page(page)) for page in range(0, src.pages, _PAGES)]
    move_all(dst.address, src.address, dst.nbytes, flags)
    assert huge_pages(dst) == [True] * number
    assert [frame(dst.page(page)) for page in range(0, dst.pages, _PAGES)] == frames


def test_between_memory_with_huge_pages():
    with (
        Memory(2 * HUGE_PAGE_SIZE, huge_pages=True) as dst,
        Memory(2 * HUGE_PAGE_SIZE, huge_pages=True) as src,
    ):
        at(src.address, src.nbytes)[:] = 7
        assert all(src.page_states() & PageState.HUGE)
        move_all(dst.address, src.address, src.nbytes)
        assert all(dst.page_states() & PageState.HUGE)


def test_a_destination_of_small_pages_takes_huge_pages_too(huge, foreign):
    dst, src = foreign(_PAGES, align=HUGE_PAGE_SIZE), huge(1, filled=True)
    move_all(dst.address, src.address, HUGE_PAGE_SIZE)
    assert huge_pages(dst) == [True]


@GUARDS
@pytest.mark.parametrize(("to", "of"), [(1, 0), (0, 1), (3, 5), (7, 7)])
def test_not_aligned_moves_page_by_page(huge, guarded, to, of, guard):
    guarded(guard)
    dst, src = huge(1, extra=8), huge(1, filled=True, extra=8)
    for page in range(_PAGES, src.pages):
        write(src.page(page), page)
    move_all(dst.page(to), src.page(of), HUGE_PAGE_SIZE)


@GUARDS
@pytest.mark.parametrize("page", [0, 9, _PAGES - 1])
def test_one_page_of_a_huge_page(huge, guarded, page, guard):
    guarded(guard)
    dst, src = huge(1), huge(1, filled=True)
    contents = src.contents()
    before = look(dst.page(page), src.page(page), PAGE_SIZE)
    assert remap_anon_pages(dst.page(page), src.page(page), PAGE_SIZE) == PAGE_SIZE
    check_moved(before)
    assert huge_pages(src) == [False]
    src.discard(page, 1)
    assert [bool(s) for s in src.states()] == [other != page for other in range(_PAGES)]
    for other in set(range(_PAGES)) - {page}:
        assert read(src.page(other)) == contents[other * PAGE_SIZE :][:PAGE_SIZE]


@GUARDS
def test_a_few_pages_across_the_border_of_two(huge, guarded, guard):
    guarded(guard)
    dst, src = huge(2), huge(2, filled=True)
    move_all(dst.page(_PAGES - 3), src.page(_PAGES - 3), 6 * PAGE_SIZE)


@GUARDS
def test_the_whole_ones_in_between_stay_whole(huge, guarded, guard):
    guarded(guard)
    dst, src = huge(4), huge(4, filled=True)
    length = dst.nbytes - 2 * 16 * PAGE_SIZE
    move_all(dst.page(16), src.page(16), length)
    assert huge_pages(dst)[1:3] == [True, True]


@GUARDS
def test_long_ranges_that_do_not_begin_at_a_border_stay_whole(huge, guarded, guard):
    guarded(guard)
    dst, src = huge(20), huge(20, filled=True)
    half = _PAGES // 2
    length = dst.nbytes - half * PAGE_SIZE
    assert remap_anon_pages(dst.page(half), src.page(half), length) == length
    assert huge_pages(dst)[1:] == [True] * 19


@GUARDS
def test_an_occupied_destination_within_the_range_of_one(huge, guarded, guard):
    guarded(guard)
    dst, src = huge(1), huge(1, filled=True)
    contents = src.contents()
    dst.advise(mmap.MADV_NOHUGEPAGE)
    write(dst.page(100), 5)
    moved = remap_anon_pages(dst.address, src.address, HUGE_PAGE_SIZE)
    assert moved == 100 * PAGE_SIZE
    rest = HUGE_PAGE_SIZE - moved
    refuse(errno.EEXIST, dst.page(100), src.page(100), rest, address=dst.page(100))
    assert read_all(dst.address, 100) == contents[:moved]
    assert read(dst.page(100)) == pattern(5)


@GUARDS
def test_huge_and_small_pages_mixed(huge, guarded, guard):
    guarded(guard)
    dst, src = huge(3), huge(3, filled=True)
    src.advise(mmap.MADV_NOHUGEPAGE, _PAGES, _PAGES)
    src.discard(_PAGES, _PAGES)
    for page in range(_PAGES, 2 * _PAGES):
        write(src.page(page), page)
    assert huge_pages(src) == [True, False, True]
    contents = src.contents()
    # Two kinds of advice make three mappings of it: each has to move by itself.
    for number in range(3):
        move_all(dst.page(number * _PAGES), src.page(number * _PAGES), HUGE_PAGE_SIZE)
    assert dst.contents() == contents
    assert huge_pages(dst) == [True, False, True]


@GUARDS
def test_move_many_with_huge_pages(guarded, guard):
    guarded(guard)
    order = np.array([5, 0, 3, 1, 4, 2])
    dst = pagemove.empty((6, HUGE_PAGE_SIZE), np.uint8, huge_pages=True)
    src = pagemove.empty((6, HUGE_PAGE_SIZE), np.uint8, huge_pages=True)
    src[:] = np.arange(6, dtype=np.uint8)[:, None] + 1
    moved = move_many(dst, src, np.arange(6), order, page_size=HUGE_PAGE_SIZE)
    assert moved == 6 * HUGE_PAGE_SIZE
    assert (pagemove.page_states(dst) & PageState.HUGE).all()
    assert not pagemove.page_states(src).any()
    assert (dst[:, 0] == order + 1).all()
    assert (dst == dst[:, :1]).all()


def test_move_takes_them_whole():
    dst = pagemove.empty(3 * HUGE_PAGE_SIZE, np.uint8, huge_pages=True)
    src = pagemove.empty(3 * HUGE_PAGE_SIZE, np.uint8, huge_pages=True)
    src[:] = 9
    assert move(dst, src) == 3 * HUGE_PAGE_SIZE
    assert (pagemove.page_states(dst) & PageState.HUGE).all()


def test_backward_overlap_by_whole_huge_pages(huge):
    area = huge(4)
    at(area.page(_PAGES), 3 * HUGE_PAGE_SIZE)[:] = 3
    moved = remap_anon_pages(area.address, area.page(_PAGES), 3 * HUGE_PAGE_SIZE)
    assert moved == 3 * HUGE_PAGE_SIZE
    assert huge_pages(area) == [True, True, True, False]
    assert hole(area.page(3 * _PAGES), _PAGES)
    assert (at(area.address, 3 * HUGE_PAGE_SIZE) == 3).all()


@GUARDS
def test_backward_overlap_by_less_than_a_huge_page(huge, guarded, guard):
    guarded(guard)
    area = huge(2)
    for page in range(5, 2 * _PAGES):
        write(area.page(page), page)
    area.discard(0, 5)
    length = area.nbytes - 5 * PAGE_SIZE
    done = 0
    while done < length:
        done += remap_anon_pages(area.address + done, area.page(5) + done, length - done)
    for page in range(0, 2 * _PAGES - 5, 37):
        assert read(area.page(page)) == pattern(page + 5)
    assert hole(area.page(2 * _PAGES - 5), 5)
