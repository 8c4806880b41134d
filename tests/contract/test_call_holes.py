"""RAP_ALLOW_SRC_HOLES: holes are skipped and counted as moved."""

from __future__ import annotations

import mmap

import pytest

from pagemove import (
    HUGE_PAGE_SIZE,
    PAGE_SIZE,
    RAP_ALLOW_SRC_HOLES,
    PageState,
    remap_anon_pages,
)
from support import at, hole, pattern, read, state, write

from .checks import GUARDS, look, move_all

pytestmark = pytest.mark.needs("move")

_SWAPPED = PageState.SWAPPED
_HUGE_PAGES = HUGE_PAGE_SIZE // PAGE_SIZE


def _page_tables() -> int:
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmPTE:"))
    return int(line.split()[1]) << 10


class TestHolesAllowed:
    """RAP_ALLOW_SRC_HOLES: skipped and counted as moved; the destination stays a hole there."""

    @GUARDS
    @pytest.mark.parametrize(
        "kept",
        [
            (),
            (0,),
            (19,),
            (0, 19),
            tuple(range(0, 20, 2)),
            tuple(range(1, 20, 2)),
            tuple(range(5, 15)),
            (3, 4, 5, 11),
            tuple(range(20)),
        ],
        ids=str,
    )
    def test_skipped_and_counted(self, area, guarded, kept, guard):
        guarded(guard)
        dst, src = area(20), area(20)
        for page in kept:
            write(src.page(page), page)
        before = look(dst.address, src.address, dst.nbytes)
        moved = remap_anon_pages(dst.address, src.address, dst.nbytes, RAP_ALLOW_SRC_HOLES)
        assert moved == dst.nbytes
        assert [bool(s) for s in dst.states()] == [page in kept for page in range(20)]
        assert hole(src.address, 20)
        for page in kept:
            assert read(dst.page(page)) == pattern(page)
        after = look(dst.address, src.address, dst.nbytes)
        assert after.mappings == before.mappings
        assert after.rss == before.rss

    @GUARDS
    @pytest.mark.parametrize("pages", [1, 16, 17, 5000])
    def test_nothing_but_holes(self, area, guarded, pages, guard):
        guarded(guard)
        dst, src = area(pages), area(pages)
        moved = remap_anon_pages(dst.address, src.address, dst.nbytes, RAP_ALLOW_SRC_HOLES)
        assert moved == dst.nbytes
        assert hole(dst.address, pages)
        assert hole(src.address, pages)

    def test_large_holes_cost_no_page_tables(self, area):
        # The kernel's own flag allocates them on both sides: 2 x 128 tables here.
        dst, src = area(1 << 16, align=2 << 20), area(1 << 16, align=2 << 20)
        write(src.page(40_000), 1)
        remap_anon_pages(dst.address, src.address, PAGE_SIZE, RAP_ALLOW_SRC_HOLES)
        before = _page_tables()
        moved = remap_anon_pages(dst.address, src.address, dst.nbytes, RAP_ALLOW_SRC_HOLES)
        assert moved == dst.nbytes
        assert read(dst.page(40_000)) == pattern(1)
        assert _page_tables() - before < 16 * PAGE_SIZE

    @GUARDS
    @pytest.mark.parametrize("overlap", [1, 4])
    def test_backward_overlap_with_holes(self, area, guarded, overlap, guard):
        guarded(guard)
        whole = area(20 + overlap)
        kept = [page for page in range(overlap, 20 + overlap) if page % 3]
        for page in kept:
            write(whole.page(page), page)
        whole.discard(0, overlap)
        moved = remap_anon_pages(
            whole.address, whole.page(overlap), 20 * PAGE_SIZE, RAP_ALLOW_SRC_HOLES
        )
        # As by pages in order: a page that has moved on leaves its place free for the next.
        assert moved == 20 * PAGE_SIZE
        expected = [page + overlap in kept for page in range(20)]
        assert [bool(s) for s in whole.states()] == expected + [False] * overlap
        for page in kept:
            assert read(whole.page(page - overlap)) == pattern(page)

    @GUARDS
    def test_no_hole_at_all(self, area, guarded, guard):
        guarded(guard)
        dst, src = area(20), area(20)
        src.fill()
        move_all(dst.address, src.address, dst.nbytes, RAP_ALLOW_SRC_HOLES)

    @pytest.mark.needs("swap")
    @GUARDS
    def test_a_swapped_out_page_is_no_hole(self, area, guarded, guard):
        guarded(guard)
        dst, src = area(3), area(3)
        write(src.page(1), 4)
        src.page_out(1, 1)
        remap_anon_pages(dst.address, src.address, dst.nbytes, RAP_ALLOW_SRC_HOLES)
        assert [bool(s & _SWAPPED) for s in dst.states()] == [False, True, False]
        assert read(dst.page(1)) == pattern(4)

    @GUARDS
    @pytest.mark.needs("thp")
    def test_holes_between_huge_pages(self, area, guarded, guard):
        guarded(guard)
        dst = area(4 * _HUGE_PAGES, align=HUGE_PAGE_SIZE)
        src = area(4 * _HUGE_PAGES, align=HUGE_PAGE_SIZE)
        src.advise(mmap.MADV_HUGEPAGE)
        for number in (1, 3):
            at(src.page(number * _HUGE_PAGES), HUGE_PAGE_SIZE)[:] = number
        moved = remap_anon_pages(dst.address, src.address, dst.nbytes, RAP_ALLOW_SRC_HOLES)
        assert moved == dst.nbytes
        assert hole(src.address, src.pages)
        firsts = [state(dst.page(number * _HUGE_PAGES)) for number in range(4)]
        assert [bool(s & PageState.HUGE) for s in firsts] == [False, True, False, True]
        assert (at(dst.page(_HUGE_PAGES), HUGE_PAGE_SIZE) == 1).all()
        assert (at(dst.page(3 * _HUGE_PAGES), HUGE_PAGE_SIZE) == 3).all()
