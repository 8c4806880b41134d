"""Parts of a huge page that a pipe refers to cannot be moved, on some kernels not even tried to."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from pagemove import HUGE_PAGE_SIZE, PAGE_SIZE, PageState, move_many, remap_anon_pages
from pagemove._native import remap
from support import at, hole, state, write
from support.system import in_a_pipe, mlock, munlock

from .checks import GUARDS, check_moved, look, refusal, refuse

pytestmark = pytest.mark.needs("move", "thp")

_PAGES = HUGE_PAGE_SIZE // PAGE_SIZE
#: The kernel may have begun to split it.
_HUGE = PageState.HUGE


@GUARDS
@pytest.mark.parametrize("flags", [0, 1])
@pytest.mark.parametrize(("page", "pages"), [(5, 1), (7, 1), (0, 9), (_PAGES - 2, 2)])
def test_is_refused_until_it_is_in_use_no_more(huge, guarded, page, pages, flags, guard):
    guarded(guard)
    dst, src = huge(1), huge(1, filled=True)
    where = dst.page(page), src.page(page), pages * PAGE_SIZE
    with in_a_pipe(src.page(7)):
        message = refuse(errno.EBUSY, *where, flags, address=src.page(page), ignore=_HUGE)
    assert "pipe" in message
    before = look(*where)
    assert remap_anon_pages(*where, flags) == pages * PAGE_SIZE
    check_moved(before)


@GUARDS
def test_moves_whole_all_the_same(huge, guarded, guard):
    guarded(guard)
    dst, src = huge(2), huge(2, filled=True)
    contents = src.contents()
    with in_a_pipe(src.page(7)):
        assert remap_anon_pages(dst.address, src.address, src.nbytes) == src.nbytes
    assert dst.contents() == contents
    assert state(dst.address) & PageState.HUGE


@GUARDS
@pytest.mark.parametrize("flags", [0, 1])
def test_what_is_before_it_moves(huge, guarded, flags, guard):
    guarded(guard)
    dst, src = huge(2, extra=3), huge(2, filled=True)
    rest = dst.page(3) + HUGE_PAGE_SIZE, src.page(_PAGES), HUGE_PAGE_SIZE
    with in_a_pipe(src.page(_PAGES + 7)):
        assert remap_anon_pages(dst.page(3), src.address, src.nbytes, flags) == HUGE_PAGE_SIZE
        refuse(errno.EBUSY, *rest, flags, address=src.page(_PAGES), ignore=_HUGE)
    assert hole(src.address, _PAGES)
    assert remap_anon_pages(*rest, flags) == HUGE_PAGE_SIZE


@GUARDS
def test_small_pages_on_both_sides_of_it(huge, guarded, guard):
    guarded(guard)
    dst, src = huge(1, extra=6), huge(1, filled=True, extra=6)
    for page in range(_PAGES, src.pages):
        write(src.page(page), page)
    before = look(dst.page(1), src.page(_PAGES), 5 * PAGE_SIZE)
    with in_a_pipe(src.page(7)):
        assert remap_anon_pages(dst.page(1), src.page(_PAGES), 5 * PAGE_SIZE) == 5 * PAGE_SIZE
    check_moved(before)
    assert state(src.address) & PageState.HUGE


@GUARDS
def test_an_occupied_destination_comes_first(huge, guarded, guard):
    guarded(guard)
    dst, src = huge(1, extra=1), huge(1, filled=True)
    write(dst.page(_PAGES), 1)
    where = dst.page(_PAGES), src.page(3), PAGE_SIZE
    with in_a_pipe(src.page(7)):
        refuse(errno.EEXIST, *where, address=dst.page(_PAGES), ignore=_HUGE)


@GUARDS
def test_a_range_that_leaves_its_mapping_is_an_error(huge, foreign, guarded, guard):
    guarded(guard)
    dst, src = foreign(2 * _PAGES), huge(1, filled=True)
    with in_a_pipe(src.page(7)), refusal(errno.EINVAL) as error:
        remap_anon_pages(dst.address, src.page(3), src.nbytes)
    assert "mapping" in str(error())
    assert hole(dst.address, dst.pages)


@GUARDS
@pytest.mark.parametrize("holes", [False, True])
def test_move_many_names_the_first(huge, guarded, holes, guard):
    guarded(guard)
    dst, src = huge(2), huge(2, filled=True)
    order = np.array([4, 2, _PAGES + 1, _PAGES + 5, 9])
    with (
        in_a_pipe(src.page(_PAGES + 7)),
        refusal(errno.EBUSY, "move_many", moved=2 * PAGE_SIZE) as error,
    ):
        move_many(dst.array(), src.array(), np.arange(5), order, page_size=PAGE_SIZE, holes=holes)
    assert error().index == 2
    assert error().address == src.page(_PAGES + 1)
    assert not hole(dst.address, 2)
    assert hole(dst.page(2), dst.pages - 2)


def test_one_that_is_locked_in_memory_is_refused_where_it_might_not_end(huge):
    remap.set_defects(remap.defects() | remap.DEFECT_SPLIT_SPIN)
    dst, src = huge(1), huge(1, filled=True)
    mlock(dst.address, dst.nbytes, on_fault=True)
    mlock(src.address, src.nbytes)
    message = refuse(errno.EBUSY, dst.address, src.page(5), PAGE_SIZE, address=src.page(5))
    assert "munlock" in message
    munlock(dst.address, dst.nbytes)
    munlock(src.address, src.nbytes)
    contents = at(src.page(5), PAGE_SIZE).tobytes()
    assert remap_anon_pages(dst.address, src.page(5), PAGE_SIZE) == PAGE_SIZE
    assert at(dst.address, PAGE_SIZE).tobytes() == contents


def test_many_pages_of_memory_without_them(huge, foreign):
    # As move_many finds out first, by one look for all pages.
    remap.set_defects(remap.defects() | remap.DEFECT_SPLIT_SPIN)
    dst, src = foreign(600), foreign(600)
    contents = src.fill()
    order = np.arange(600)[::-1].copy()
    move_many(dst.array(), src.array(), np.arange(600), order, page_size=PAGE_SIZE)
    expected = np.frombuffer(contents, np.uint8).reshape(600, -1)[order]
    assert (dst.array().reshape(600, -1) == expected).all()
