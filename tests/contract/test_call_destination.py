"""remap_anon_pages: what is in the destination already, with or without a page in the source."""

from __future__ import annotations

import errno
import mmap

import pytest

from pagemove import (
    HUGE_PAGE_SIZE,
    PAGE_SIZE,
    PageState,
    lowlevel,
    remap_anon_pages,
)
from support import Area, hole, pattern, read, read_all, state, write

from .checks import GUARDS, refuse

pytestmark = pytest.mark.needs("move")

_SWAPPED = PageState.SWAPPED
_HUGE_PAGES = HUGE_PAGE_SIZE // PAGE_SIZE


def read_touch(address: int) -> None:
    """Read a hole, which puts the zero page there."""
    assert read(address, 1) == b"\0"


class TestOccupiedDestination:
    """Anything already in the destination is EEXIST (`DestinationMapped`)."""

    def put(self, what: str, dst: Area, page: int, contents: int = 77) -> None:
        where = dst.page(page)
        match what:
            case "a page":
                write(where, contents)
            case "a zero page":
                read_touch(where)
            case "a swap entry":
                write(where, contents)
                dst.page_out(page, 1)
                assert state(where) & _SWAPPED
            case "a guard page":
                lowlevel.madvise(where, PAGE_SIZE, lowlevel.MADV_GUARD_INSTALL)

    KINDS = (
        "a page",
        "a zero page",
        pytest.param("a swap entry", marks=pytest.mark.needs("swap")),
        pytest.param("a guard page", marks=pytest.mark.needs("guard")),
    )

    @GUARDS
    @pytest.mark.parametrize("flags", [0, 1])
    @pytest.mark.parametrize("pages", [1, 3, 20])
    @pytest.mark.parametrize("what", KINDS)
    def test_in_its_first_page(self, area, guarded, what, pages, flags, guard):
        guarded(guard)
        dst, src = area(pages), area(pages)
        src.fill()
        self.put(what, dst, 0)
        message = refuse(
            errno.EEXIST, dst.address, src.address, dst.nbytes, flags, address=dst.address
        )
        what_it_says = {"a zero page": "zero page", "a swap entry": "swapped-out page"}
        assert what_it_says.get(what, what) in message

    @GUARDS
    @pytest.mark.parametrize("flags", [0, 1])
    @pytest.mark.parametrize("what", KINDS)
    def test_in_a_later_page(self, area, guarded, what, flags, guard):
        guarded(guard)
        dst, src = area(20), area(20)
        contents = src.fill()
        self.put(what, dst, 13)
        kept = state(dst.page(13))
        length = 20 * PAGE_SIZE
        assert remap_anon_pages(dst.address, src.address, length, flags) == 13 * PAGE_SIZE
        assert state(dst.page(13)) == kept
        assert hole(src.address, 13)
        assert hole(dst.page(14), 6)
        refuse(errno.EEXIST, dst.page(13), src.page(13), 7 * PAGE_SIZE, flags, address=dst.page(13))
        assert read_all(dst.address, 13) == contents[: 13 * PAGE_SIZE]
        assert read_all(src.page(13), 7) == contents[13 * PAGE_SIZE :]

    @pytest.mark.needs("swap")
    def test_its_swapped_out_contents_are_kept(self, area):
        dst, src = area(), area()
        write(src.address, 1)
        self.put("a swap entry", dst, 0)
        refuse(errno.EEXIST, dst.address, src.address, PAGE_SIZE, address=dst.address)
        assert dst.contents() == pattern(77)

    @GUARDS
    @pytest.mark.needs("thp")
    @pytest.mark.parametrize("pages", [1, 20, _HUGE_PAGES])
    @pytest.mark.parametrize("offset", [0, 5])
    def test_a_huge_page(self, area, guarded, pages, offset, guard):
        guarded(guard)
        dst = area(2 * _HUGE_PAGES, align=HUGE_PAGE_SIZE)
        src = area(pages, align=HUGE_PAGE_SIZE)
        dst.advise(mmap.MADV_HUGEPAGE)
        dst.fill(500)
        assert state(dst.address) & PageState.HUGE
        src.fill()
        message = refuse(
            errno.EEXIST, dst.page(offset), src.address, src.nbytes, address=dst.page(offset)
        )
        assert "huge page" in message
        assert state(dst.address) & PageState.HUGE
        assert dst.contents() == b"".join(map(pattern, range(500, 500 + dst.pages)))

    @GUARDS
    @pytest.mark.needs("thp")
    def test_a_huge_zero_page(self, area, guarded, guard):
        guarded(guard)
        dst = area(_HUGE_PAGES, align=HUGE_PAGE_SIZE)
        src = area(2)
        dst.advise(mmap.MADV_HUGEPAGE)
        read_touch(dst.address)
        src.fill()
        refuse(errno.EEXIST, dst.page(3), src.address, 2 * PAGE_SIZE, address=dst.page(3))


class TestBoth:
    """An occupied destination and a hole in the source: EEXIST, page by page."""

    @GUARDS
    @pytest.mark.parametrize("flags", [0, 1])
    @pytest.mark.parametrize("page_table", [True, False], ids=["page table", "no page table"])
    @pytest.mark.parametrize("pages", [1, 3, 20])
    @pytest.mark.parametrize("kind", ["a page", "the zero page"])
    def test_in_the_first_page(self, area, guarded, page_table, flags, guard, pages, kind):
        guarded(guard)
        dst, src = area(pages), area(pages + 1, align=2 << 20)
        if page_table:
            write(src.page(pages), 1)
        write(dst.address, 9) if kind == "a page" else read_touch(dst.address)
        refuse(errno.EEXIST, dst.address, src.address, dst.nbytes, flags, address=dst.address)

    @GUARDS
    @pytest.mark.parametrize("flags", [0, 1])
    @pytest.mark.parametrize("page_table", [True, False], ids=["page table", "no page table"])
    def test_holes_before_an_occupied_page(self, area, guarded, flags, guard, page_table):
        guarded(guard)
        dst, src = area(20), area(21, align=2 << 20)
        if page_table:
            write(src.page(20), 1)
        write(dst.page(7), 9)
        if not flags:
            # The first page that cannot move decides.
            refuse(errno.ENOENT, dst.address, src.address, dst.nbytes, address=src.address)
            return
        assert remap_anon_pages(dst.address, src.address, dst.nbytes, flags) == 7 * PAGE_SIZE
        refuse(errno.EEXIST, dst.page(7), src.page(7), PAGE_SIZE, flags, address=dst.page(7))

    @GUARDS
    def test_pages_then_both(self, area, guarded, guard):
        guarded(guard)
        dst, src = area(20), area(20)
        src.fill()
        src.discard(5, 1)
        write(dst.page(5), 9)
        assert remap_anon_pages(dst.address, src.address, dst.nbytes) == 5 * PAGE_SIZE
        refuse(errno.EEXIST, dst.page(5), src.page(5), 15 * PAGE_SIZE, address=dst.page(5))

    @GUARDS
    @pytest.mark.parametrize("flags", [0, 1])
    @pytest.mark.needs("guard")
    def test_an_occupied_destination_and_a_guard_page_in_the_source(
        self, area, guarded, flags, guard
    ):
        guarded(guard)
        dst, src = area(), area()
        write(dst.address, 1)
        src.advise(lowlevel.MADV_GUARD_INSTALL)
        refuse(errno.EEXIST, dst.address, src.address, PAGE_SIZE, flags, address=dst.address)
