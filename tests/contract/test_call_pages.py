"""remap_anon_pages: what is at the destination, what is in the source, page by page."""

from __future__ import annotations

import errno
import os

import pytest

from pagemove import (
    HUGE_PAGE_SIZE,
    PAGE_SIZE,
    RAP_ALLOW_SRC_HOLES,
    Memory,
    PageState,
    lowlevel,
    remap_anon_pages,
)
from support import Area, at, hole, pattern, read, read_all, state, write

from .checks import GUARDS, check_unchanged, look, move_all, refusal, refuse, zeros

pytestmark = pytest.mark.needs("move")

_PRESENT, _ZERO, _SWAPPED = PageState.PRESENT, PageState.ZERO, PageState.SWAPPED
_HUGE_PAGES = HUGE_PAGE_SIZE // PAGE_SIZE


def read_touch(address: int) -> None:
    """Read a hole, which puts the zero page there."""
    assert read(address, 1) == b"\0"


@pytest.fixture
def poisoner():
    """Poison a page: mapped, but touching it is SIGBUS."""
    fd = lowlevel.userfaultfd(os.O_CLOEXEC | lowlevel.UFFD_USER_MODE_ONLY)
    lowlevel.api(fd)
    kept: list[tuple[int, int]] = []

    def poison(address: int, pages: int = 1) -> None:
        length = pages * PAGE_SIZE
        lowlevel.register(fd, address, length, lowlevel.UFFDIO_REGISTER_MODE_MISSING)
        lowlevel.poison(fd, address, length)
        # Given back, or its part of the mapping would stay a mapping of its own.
        lowlevel.unregister(fd, address, length)
        kept.append((address, length))

    yield poison
    for address, length in kept:
        lowlevel.madvise(address, length, 4)  # MADV_DONTNEED takes the poison away
    os.close(fd)


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
                lowlevel.madvise(where, PAGE_SIZE, lowlevel.MADV_PAGEOUT)
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
    def test_in_its_first_page(self, foreign, guarded, what, pages, flags, guard):
        guarded(guard)
        dst, src = foreign(pages), foreign(pages)
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
    def test_in_a_later_page(self, foreign, guarded, what, flags, guard):
        guarded(guard)
        dst, src = foreign(20), foreign(20)
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
    def test_its_swapped_out_contents_are_kept(self, foreign):
        dst, src = foreign(), foreign()
        write(src.address, 1)
        self.put("a swap entry", dst, 0)
        refuse(errno.EEXIST, dst.address, src.address, PAGE_SIZE, address=dst.address)
        assert dst.contents() == pattern(77)

    @GUARDS
    @pytest.mark.needs("thp")
    @pytest.mark.parametrize("pages", [1, 20, _HUGE_PAGES])
    @pytest.mark.parametrize("offset", [0, 5])
    def test_a_huge_page(self, foreign, guarded, pages, offset, guard):
        guarded(guard)
        dst = foreign(2 * _HUGE_PAGES, align=HUGE_PAGE_SIZE)
        src = foreign(pages, align=HUGE_PAGE_SIZE)
        dst.advise(14)  # MADV_HUGEPAGE
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
    def test_a_huge_zero_page(self, foreign, guarded, guard):
        guarded(guard)
        dst = foreign(_HUGE_PAGES, align=HUGE_PAGE_SIZE)
        src = foreign(2)
        dst.advise(14)
        read_touch(dst.address)
        src.fill()
        refuse(errno.EEXIST, dst.page(3), src.address, 2 * PAGE_SIZE, address=dst.page(3))


class TestHoleInTheSource:
    """Without RAP_ALLOW_SRC_HOLES it is ENOENT (`SourceHole`)."""

    @GUARDS
    @pytest.mark.parametrize("pages", [1, 3, 20, 600])
    @pytest.mark.parametrize("page_table", [True, False], ids=["page table", "no page table"])
    def test_in_the_first_page(self, foreign, guarded, pages, page_table, guard):
        guarded(guard)
        dst, src = foreign(pages), foreign(pages, align=2 << 20)
        if page_table:
            src.fill()
            src.discard(0, 1)
        message = refuse(errno.ENOENT, dst.address, src.address, dst.nbytes, address=src.address)
        assert "hole" in message

    @GUARDS
    @pytest.mark.parametrize("page", [1, 13, 19])
    def test_in_a_later_page(self, foreign, guarded, page, guard):
        guarded(guard)
        dst, src = foreign(20), foreign(20)
        contents = src.fill()
        src.discard(page, 1)
        assert remap_anon_pages(dst.address, src.address, dst.nbytes) == page * PAGE_SIZE
        assert hole(src.address, page + 1)
        rest = (20 - page) * PAGE_SIZE
        refuse(errno.ENOENT, dst.page(page), src.page(page), rest, address=src.page(page))
        assert read_all(dst.address, page) == contents[: page * PAGE_SIZE]

    @GUARDS
    @pytest.mark.parametrize("owned", [True, False], ids=["Memory", "foreign"])
    def test_in_memory_never_touched(self, foreign, guarded, guard, owned):
        guarded(guard)
        if not owned:
            refuse(errno.ENOENT, foreign(2).address, foreign(2).address, 2 * PAGE_SIZE)
            return
        with Memory(2 * PAGE_SIZE) as dst, Memory(2 * PAGE_SIZE) as src:
            refuse(errno.ENOENT, dst.address, src.address, 2 * PAGE_SIZE, address=src.address)


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
    def test_skipped_and_counted(self, foreign, guarded, kept, guard):
        guarded(guard)
        dst, src = foreign(20), foreign(20)
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
    def test_nothing_but_holes(self, foreign, guarded, pages, guard):
        guarded(guard)
        dst, src = foreign(pages), foreign(pages)
        moved = remap_anon_pages(dst.address, src.address, dst.nbytes, RAP_ALLOW_SRC_HOLES)
        assert moved == dst.nbytes
        assert hole(dst.address, pages)
        assert hole(src.address, pages)

    def test_large_holes_cost_no_page_tables(self, foreign):
        # The kernel's own flag allocates them on both sides: 2 x 128 tables here.
        dst, src = foreign(1 << 16, align=2 << 20), foreign(1 << 16, align=2 << 20)
        write(src.page(40_000), 1)
        remap_anon_pages(dst.address, src.address, PAGE_SIZE, RAP_ALLOW_SRC_HOLES)
        before = _page_tables()
        moved = remap_anon_pages(dst.address, src.address, dst.nbytes, RAP_ALLOW_SRC_HOLES)
        assert moved == dst.nbytes
        assert read(dst.page(40_000)) == pattern(1)
        assert _page_tables() - before < 16 * PAGE_SIZE

    @GUARDS
    @pytest.mark.parametrize("overlap", [1, 4])
    def test_backward_overlap_with_holes(self, foreign, guarded, overlap, guard):
        guarded(guard)
        area = foreign(20 + overlap)
        kept = [page for page in range(overlap, 20 + overlap) if page % 3]
        for page in kept:
            write(area.page(page), page)
        area.discard(0, overlap)
        moved = remap_anon_pages(
            area.address, area.page(overlap), 20 * PAGE_SIZE, RAP_ALLOW_SRC_HOLES
        )
        # As by pages in order: a page that has moved on leaves its place free for the next.
        assert moved == 20 * PAGE_SIZE
        expected = [page + overlap in kept for page in range(20)]
        assert [bool(s) for s in area.states()] == expected + [False] * overlap
        for page in kept:
            assert read(area.page(page - overlap)) == pattern(page)

    @GUARDS
    def test_no_hole_at_all(self, foreign, guarded, guard):
        guarded(guard)
        dst, src = foreign(20), foreign(20)
        src.fill()
        move_all(dst.address, src.address, dst.nbytes, RAP_ALLOW_SRC_HOLES)

    @pytest.mark.needs("swap")
    @GUARDS
    def test_a_swapped_out_page_is_no_hole(self, foreign, guarded, guard):
        guarded(guard)
        dst, src = foreign(3), foreign(3)
        write(src.page(1), 4)
        src.advise(lowlevel.MADV_PAGEOUT, 1, 1)
        remap_anon_pages(dst.address, src.address, dst.nbytes, RAP_ALLOW_SRC_HOLES)
        assert [bool(s & _SWAPPED) for s in dst.states()] == [False, True, False]
        assert read(dst.page(1)) == pattern(4)

    @GUARDS
    @pytest.mark.needs("thp")
    def test_holes_between_huge_pages(self, foreign, guarded, guard):
        guarded(guard)
        dst = foreign(4 * _HUGE_PAGES, align=HUGE_PAGE_SIZE)
        src = foreign(4 * _HUGE_PAGES, align=HUGE_PAGE_SIZE)
        src.advise(14)
        for number in (1, 3):
            at(src.page(number * _HUGE_PAGES), HUGE_PAGE_SIZE)[:] = number
        moved = remap_anon_pages(dst.address, src.address, dst.nbytes, RAP_ALLOW_SRC_HOLES)
        assert moved == dst.nbytes
        assert hole(src.address, src.pages)
        firsts = [state(dst.page(number * _HUGE_PAGES)) for number in range(4)]
        assert [bool(s & PageState.HUGE) for s in firsts] == [False, True, False, True]
        assert (at(dst.page(_HUGE_PAGES), HUGE_PAGE_SIZE) == 1).all()
        assert (at(dst.page(3 * _HUGE_PAGES), HUGE_PAGE_SIZE) == 3).all()


def _page_tables() -> int:
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmPTE:"))
    return int(line.split()[1]) << 10


class TestBoth:
    """An occupied destination and a hole in the source: EEXIST, page by page."""

    @GUARDS
    @pytest.mark.parametrize("flags", [0, 1])
    @pytest.mark.parametrize("page_table", [True, False], ids=["page table", "no page table"])
    @pytest.mark.parametrize("pages", [1, 3, 20])
    @pytest.mark.parametrize("kind", ["a page", "the zero page"])
    def test_in_the_first_page(self, foreign, guarded, page_table, flags, guard, pages, kind):
        guarded(guard)
        dst, src = foreign(pages), foreign(pages + 1, align=2 << 20)
        if page_table:
            write(src.page(pages), 1)
        write(dst.address, 9) if kind == "a page" else read_touch(dst.address)
        refuse(errno.EEXIST, dst.address, src.address, dst.nbytes, flags, address=dst.address)

    @GUARDS
    @pytest.mark.parametrize("flags", [0, 1])
    @pytest.mark.parametrize("page_table", [True, False], ids=["page table", "no page table"])
    def test_holes_before_an_occupied_page(self, foreign, guarded, flags, guard, page_table):
        guarded(guard)
        dst, src = foreign(20), foreign(21, align=2 << 20)
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
    def test_pages_then_both(self, foreign, guarded, guard):
        guarded(guard)
        dst, src = foreign(20), foreign(20)
        src.fill()
        src.discard(5, 1)
        write(dst.page(5), 9)
        assert remap_anon_pages(dst.address, src.address, dst.nbytes) == 5 * PAGE_SIZE
        refuse(errno.EEXIST, dst.page(5), src.page(5), 15 * PAGE_SIZE, address=dst.page(5))

    @GUARDS
    @pytest.mark.parametrize("flags", [0, 1])
    @pytest.mark.needs("guard")
    def test_an_occupied_destination_and_a_guard_page_in_the_source(
        self, foreign, guarded, flags, guard
    ):
        guarded(guard)
        dst, src = foreign(), foreign()
        write(dst.address, 1)
        src.advise(lowlevel.MADV_GUARD_INSTALL)
        refuse(errno.EEXIST, dst.address, src.address, PAGE_SIZE, flags, address=dst.address)


class TestWhatMoves:
    """Pages that are in swap, zero pages, and pages somebody protects move like any others."""

    @pytest.mark.needs("swap")
    @GUARDS
    @pytest.mark.parametrize("pages", [1, 3, 20])
    def test_swapped_out_pages_move_without_being_read(self, foreign, guarded, pages, guard):
        guarded(guard)
        dst, src = foreign(pages), foreign(pages)
        contents = src.fill()
        src.advise(lowlevel.MADV_PAGEOUT)
        assert all(s & _SWAPPED for s in src.states())
        assert remap_anon_pages(dst.address, src.address, dst.nbytes) == dst.nbytes
        assert all(s & _SWAPPED for s in dst.states())
        assert hole(src.address, pages)
        assert dst.contents() == contents

    @pytest.mark.needs("swap")
    @GUARDS
    def test_swapped_out_pages_among_others(self, foreign, guarded, guard):
        guarded(guard)
        dst, src = foreign(20), foreign(20)
        contents = src.fill()
        for page in (0, 3, 4, 19):
            src.advise(lowlevel.MADV_PAGEOUT, page, 1)
        before = [s & (_PRESENT | _SWAPPED) for s in src.states()]
        assert remap_anon_pages(dst.address, src.address, dst.nbytes) == dst.nbytes
        assert [s & (_PRESENT | _SWAPPED) for s in dst.states()] == before
        assert dst.contents() == contents

    @GUARDS
    @pytest.mark.parametrize("flags", [0, 1])
    @pytest.mark.parametrize("pages", [1, 20])
    def test_the_zero_page_moves(self, foreign, guarded, pages, flags, guard):
        # A difference from the 2014 proposal, which said EBUSY; documented.
        guarded(guard)
        dst, src = foreign(pages), foreign(pages)
        for page in range(pages):
            read_touch(src.page(page))
        assert remap_anon_pages(dst.address, src.address, dst.nbytes, flags) == dst.nbytes
        assert all(s & _ZERO for s in dst.states())
        assert hole(src.address, pages)
        assert dst.contents() == zeros(pages)

    @GUARDS
    def test_zero_pages_among_others(self, foreign, guarded, guard):
        guarded(guard)
        dst, src = foreign(20), foreign(20)
        for page in range(20):
            write(src.page(page), page) if page % 3 else read_touch(src.page(page))
        move_all(dst.address, src.address, dst.nbytes)

    @GUARDS
    def test_write_protection_by_a_userfaultfd_is_dropped(self, foreign, guarded, guard):
        guarded(guard)
        dst, src = foreign(2), foreign(2)
        contents = src.fill()
        fd = lowlevel.userfaultfd(os.O_CLOEXEC | lowlevel.UFFD_USER_MODE_ONLY)
        try:
            lowlevel.api(fd)
            lowlevel.register(fd, src.address, src.nbytes, lowlevel.UFFDIO_REGISTER_MODE_WP)
            lowlevel.writeprotect(fd, src.address, src.nbytes, 1)
            assert all(s & PageState.WRITE_PROTECTED for s in src.states())
            assert remap_anon_pages(dst.address, src.address, dst.nbytes) == dst.nbytes
            assert not any(s & PageState.WRITE_PROTECTED for s in dst.states())
            assert dst.contents() == contents
            at(dst.address, 1)[0] = 1
        finally:
            os.close(fd)


class TestNoPageInTheSource:
    """Poisoned or guard page in the source: EFAULT."""

    @GUARDS
    @pytest.mark.needs("guard")
    @pytest.mark.parametrize("flags", [0, 1])
    @pytest.mark.parametrize("pages", [1, 3, 20])
    def test_a_guard_page(self, foreign, guarded, pages, flags, guard):
        guarded(guard)
        dst, src = foreign(pages), foreign(pages)
        src.fill()
        src.advise(lowlevel.MADV_GUARD_INSTALL, 0, 1)
        message = refuse(
            errno.EFAULT, dst.address, src.address, dst.nbytes, flags, address=src.address
        )
        assert "guard page" in message
        lowlevel.madvise(src.address, PAGE_SIZE, lowlevel.MADV_GUARD_REMOVE)

    @GUARDS
    @pytest.mark.needs("guard")
    @pytest.mark.parametrize("flags", [0, 1])
    def test_a_guard_page_after_others(self, foreign, guarded, flags, guard):
        guarded(guard)
        dst, src = foreign(20), foreign(20)
        src.fill()
        src.advise(lowlevel.MADV_GUARD_INSTALL, 6, 1)
        assert remap_anon_pages(dst.address, src.address, dst.nbytes, flags) == 6 * PAGE_SIZE
        refuse(errno.EFAULT, dst.page(6), src.page(6), PAGE_SIZE, flags, address=src.page(6))

    @GUARDS
    @pytest.mark.needs("poison", "userfaultfd_missing")
    @pytest.mark.parametrize("flags", [0, 1])
    @pytest.mark.parametrize("pages", [1, 3, 20])
    def test_a_poisoned_page(self, foreign, guarded, poisoner, pages, flags, guard):
        guarded(guard)
        dst, src = foreign(pages), foreign(pages)
        src.fill()
        src.discard(0, 1)
        poisoner(src.address)
        message = refuse(
            errno.EFAULT, dst.address, src.address, dst.nbytes, flags, address=src.address
        )
        assert "poisoned" in message

    @GUARDS
    @pytest.mark.needs("poison", "userfaultfd_missing")
    @pytest.mark.parametrize("flags", [0, 1])
    def test_a_poisoned_page_after_others(self, foreign, guarded, poisoner, flags, guard):
        guarded(guard)
        dst, src = foreign(20), foreign(20)
        src.fill()
        src.discard(6, 1)
        poisoner(src.page(6))
        assert remap_anon_pages(dst.address, src.address, dst.nbytes, flags) == 6 * PAGE_SIZE
        refuse(errno.EFAULT, dst.page(6), src.page(6), PAGE_SIZE, flags, address=src.page(6))

    @pytest.mark.needs("poison", "userfaultfd_missing")
    def test_a_poisoned_page_in_the_destination(self, foreign, poisoner):
        dst, src = foreign(), foreign()
        src.fill()
        poisoner(dst.address)
        refuse(errno.EEXIST, dst.address, src.address, PAGE_SIZE, address=dst.address)


class TestShortCounts:
    """That much moved, then something stopped it; the same call on the rest tells what."""

    @GUARDS
    @pytest.mark.parametrize("at_page", [1, 15, 16, 511, 512, 4095, 4096, 4097, 4999])
    def test_wherever_it_stops(self, foreign, guarded, at_page, guard):
        guarded(guard)
        dst, src = foreign(5000), foreign(5000)
        contents = src.fill()
        src.discard(at_page, 1)
        assert remap_anon_pages(dst.address, src.address, dst.nbytes) == at_page * PAGE_SIZE
        rest = (5000 - at_page) * PAGE_SIZE
        with refusal(errno.ENOENT) as error:
            remap_anon_pages(dst.page(at_page), src.page(at_page), rest)
        assert error().address == src.page(at_page)
        assert read_all(dst.address, at_page) == contents[: at_page * PAGE_SIZE]

    @GUARDS
    def test_a_loop_that_heals_every_stop_gets_through(self, foreign, guarded, guard):
        guarded(guard)
        dst, src = foreign(40), foreign(40)
        contents = bytearray(src.fill())
        for page in (0, 9, 10, 39):
            src.discard(page, 1)
            contents[page * PAGE_SIZE : (page + 1) * PAGE_SIZE] = zeros()
        for page in (3, 20):
            write(dst.page(page), 99)
        done, stops = 0, []
        while done < dst.nbytes:
            to, of = dst.address + done, src.address + done
            try:
                done += remap_anon_pages(to, of, dst.nbytes - done)
            except OSError as error:
                stops.append((done // PAGE_SIZE, error.errno))
                if error.errno == errno.ENOENT:
                    at(of, 1)[0] = 0
                else:
                    lowlevel.madvise(to, PAGE_SIZE, 4)
        absent, there = errno.ENOENT, errno.EEXIST
        assert stops == [
            (0, absent),
            (3, there),
            (9, absent),
            (10, absent),
            (20, there),
            (39, absent),
        ]
        assert dst.contents() == bytes(contents)

    def test_states_beyond_the_stop_are_unchanged(self, foreign):
        dst, src = foreign(6), foreign(6)
        src.fill()
        src.discard(2, 1)
        beyond = look(dst.page(2), src.page(2), 4 * PAGE_SIZE)
        assert remap_anon_pages(dst.address, src.address, dst.nbytes) == 2 * PAGE_SIZE
        check_unchanged(beyond)
