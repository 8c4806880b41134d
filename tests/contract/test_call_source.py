"""remap_anon_pages: what is in the source, page by page, and where that stops it."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator

import pytest

from pagemove import (
    PAGE_SIZE,
    Memory,
    PageState,
    lowlevel,
    remap_anon_pages,
)
from pagemove._native import remap
from support import at, hole, read, read_all, write

from .checks import GUARDS, check_unchanged, look, move_all, refusal, refuse, zeros

pytestmark = pytest.mark.needs("move")

_PRESENT, _ZERO, _SWAPPED = PageState.PRESENT, PageState.ZERO, PageState.SWAPPED


def read_touch(address: int) -> None:
    """Read a hole, which puts the zero page there."""
    assert read(address, 1) == b"\0"


@pytest.fixture
def poison() -> Iterator[Callable[[int], None]]:
    """Poison a page: mapped, but touching it is SIGBUS."""
    fd = lowlevel.userfaultfd(os.O_CLOEXEC | lowlevel.UFFD_USER_MODE_ONLY)
    lowlevel.api(fd)
    poisoned: list[int] = []

    def poison(address: int) -> None:
        try:
            lowlevel.register(fd, address, PAGE_SIZE, lowlevel.UFFDIO_REGISTER_MODE_MISSING)
        except OSError as error:
            # Registered with the library's descriptor already: that can do it as well.
            if error.errno != errno.EBUSY:
                raise
            lowlevel.poison(remap.descriptor(), address, PAGE_SIZE)
        else:
            lowlevel.poison(fd, address, PAGE_SIZE)
            # Given back, or its part of the mapping would stay a mapping of its own.
            lowlevel.unregister(fd, address, PAGE_SIZE)
        poisoned.append(address)

    yield poison
    for address in poisoned:
        # Discarding takes the poison away.
        lowlevel.madvise(address, PAGE_SIZE, mmap.MADV_DONTNEED)
    os.close(fd)


class TestHoleInTheSource:
    """Without RAP_ALLOW_SRC_HOLES it is ENOENT (`SourceHole`)."""

    @GUARDS
    @pytest.mark.parametrize("pages", [1, 3, 20, 600])
    @pytest.mark.parametrize("page_table", [True, False], ids=["page table", "no page table"])
    def test_in_the_first_page(self, area, guarded, pages, page_table, guard):
        guarded(guard)
        dst, src = area(pages), area(pages, align=2 << 20)
        if page_table:
            src.fill()
            src.discard(0, 1)
        message = refuse(errno.ENOENT, dst.address, src.address, dst.nbytes, address=src.address)
        assert "hole" in message

    @GUARDS
    @pytest.mark.parametrize("page", [1, 13, 19])
    def test_in_a_later_page(self, area, guarded, page, guard):
        guarded(guard)
        dst, src = area(20), area(20)
        contents = src.fill()
        src.discard(page, 1)
        assert remap_anon_pages(dst.address, src.address, dst.nbytes) == page * PAGE_SIZE
        assert hole(src.address, page + 1)
        rest = (20 - page) * PAGE_SIZE
        refuse(errno.ENOENT, dst.page(page), src.page(page), rest, address=src.page(page))
        assert read_all(dst.address, page) == contents[: page * PAGE_SIZE]

    @GUARDS
    @pytest.mark.parametrize("owned", [True, False], ids=["Memory", "foreign"])
    def test_in_memory_never_touched(self, area, guarded, guard, owned):
        guarded(guard)
        if not owned:
            refuse(errno.ENOENT, area(2).address, area(2).address, 2 * PAGE_SIZE)
            return
        with Memory(2 * PAGE_SIZE) as dst, Memory(2 * PAGE_SIZE) as src:
            refuse(errno.ENOENT, dst.address, src.address, 2 * PAGE_SIZE, address=src.address)


class TestWhatMoves:
    """Pages that are in swap, zero pages, and pages somebody protects move like any others."""

    @pytest.mark.needs("swap")
    @GUARDS
    @pytest.mark.parametrize("pages", [1, 3, 20])
    def test_swapped_out_pages_move_without_being_read(self, area, guarded, pages, guard):
        guarded(guard)
        dst, src = area(pages), area(pages)
        contents = src.fill()
        src.page_out()
        assert all(s & _SWAPPED for s in src.states())
        assert remap_anon_pages(dst.address, src.address, dst.nbytes) == dst.nbytes
        assert all(s & _SWAPPED for s in dst.states())
        assert hole(src.address, pages)
        assert dst.contents() == contents

    @pytest.mark.needs("swap")
    @GUARDS
    def test_swapped_out_pages_among_others(self, area, guarded, guard):
        guarded(guard)
        dst, src = area(20), area(20)
        contents = src.fill()
        for page in (0, 3, 4, 19):
            src.page_out(page, 1)
        before = [s & (_PRESENT | _SWAPPED) for s in src.states()]
        assert remap_anon_pages(dst.address, src.address, dst.nbytes) == dst.nbytes
        assert [s & (_PRESENT | _SWAPPED) for s in dst.states()] == before
        assert dst.contents() == contents

    @GUARDS
    @pytest.mark.parametrize("flags", [0, 1])
    @pytest.mark.parametrize("pages", [1, 20])
    def test_the_zero_page_moves(self, area, guarded, pages, flags, guard):
        # A difference from the 2014 proposal, which said EBUSY; documented.
        guarded(guard)
        dst, src = area(pages), area(pages)
        for page in range(pages):
            read_touch(src.page(page))
        assert remap_anon_pages(dst.address, src.address, dst.nbytes, flags) == dst.nbytes
        assert all(s & _ZERO for s in dst.states())
        assert hole(src.address, pages)
        assert dst.contents() == zeros(pages)

    @GUARDS
    def test_zero_pages_among_others(self, area, guarded, guard):
        guarded(guard)
        dst, src = area(20), area(20)
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
    def test_a_guard_page(self, area, guarded, pages, flags, guard):
        guarded(guard)
        dst, src = area(pages), area(pages)
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
    def test_a_guard_page_after_others(self, area, guarded, flags, guard):
        guarded(guard)
        dst, src = area(20), area(20)
        src.fill()
        src.advise(lowlevel.MADV_GUARD_INSTALL, 6, 1)
        assert remap_anon_pages(dst.address, src.address, dst.nbytes, flags) == 6 * PAGE_SIZE
        refuse(errno.EFAULT, dst.page(6), src.page(6), PAGE_SIZE, flags, address=src.page(6))

    @GUARDS
    @pytest.mark.needs("poison", "userfaultfd_missing")
    @pytest.mark.parametrize("flags", [0, 1])
    @pytest.mark.parametrize("pages", [1, 3, 20])
    def test_a_poisoned_page(self, area, guarded, poison, pages, flags, guard):
        guarded(guard)
        dst, src = area(pages), area(pages)
        src.fill()
        src.discard(0, 1)
        poison(src.address)
        message = refuse(
            errno.EFAULT, dst.address, src.address, dst.nbytes, flags, address=src.address
        )
        assert "poisoned" in message

    @GUARDS
    @pytest.mark.needs("poison", "userfaultfd_missing")
    @pytest.mark.parametrize("flags", [0, 1])
    def test_a_poisoned_page_after_others(self, area, guarded, poison, flags, guard):
        guarded(guard)
        dst, src = area(20), area(20)
        src.fill()
        src.discard(6, 1)
        poison(src.page(6))
        assert remap_anon_pages(dst.address, src.address, dst.nbytes, flags) == 6 * PAGE_SIZE
        refuse(errno.EFAULT, dst.page(6), src.page(6), PAGE_SIZE, flags, address=src.page(6))

    @pytest.mark.needs("poison", "userfaultfd_missing")
    def test_a_poisoned_page_in_the_destination(self, area, poison):
        dst, src = area(), area()
        src.fill()
        poison(dst.address)
        refuse(errno.EEXIST, dst.address, src.address, PAGE_SIZE, address=dst.address)


class TestShortCounts:
    """That much moved, then something stopped it; the same call on the rest tells what."""

    @GUARDS
    @pytest.mark.parametrize("at_page", [1, 15, 16, 511, 512, 4095, 4096, 4097, 4999])
    def test_wherever_it_stops(self, area, guarded, at_page, guard):
        guarded(guard)
        dst, src = area(5000), area(5000)
        contents = src.fill()
        src.discard(at_page, 1)
        assert remap_anon_pages(dst.address, src.address, dst.nbytes) == at_page * PAGE_SIZE
        rest = (5000 - at_page) * PAGE_SIZE
        with refusal(errno.ENOENT) as error:
            remap_anon_pages(dst.page(at_page), src.page(at_page), rest)
        assert error().address == src.page(at_page)
        assert read_all(dst.address, at_page) == contents[: at_page * PAGE_SIZE]

    @GUARDS
    def test_a_loop_that_heals_every_stop_gets_through(self, area, guarded, guard):
        guarded(guard)
        dst, src = area(40), area(40)
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
                    lowlevel.madvise(to, PAGE_SIZE, mmap.MADV_DONTNEED)
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

    def test_states_beyond_the_stop_are_unchanged(self, area):
        dst, src = area(6), area(6)
        src.fill()
        src.discard(2, 1)
        beyond = look(dst.page(2), src.page(2), 4 * PAGE_SIZE)
        assert remap_anon_pages(dst.address, src.address, dst.nbytes) == 2 * PAGE_SIZE
        check_unchanged(beyond)
