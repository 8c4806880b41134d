"""What the kernel does, asked through `lowlevel`: the facts that the library is built on.

Where one of these fails on some kernel, look at what in the library relies on it.
"""

from __future__ import annotations

import errno
import mmap
import os
import select

import pytest

from pagemove import HUGE_PAGE_SIZE, PAGE_SIZE, PageState, lowlevel, vmas
from pagemove.introspect import count_vmas
from support import (
    Area,
    child,
    hole,
    living_child,
    pattern,
    read,
    read_all,
    state,
    write,
    write_all,
)
from support.foreign import MAP_FIXED, PRIVATE, READ_WRITE
from support.system import in_a_pipe

pytestmark = pytest.mark.needs("move")

WP = lowlevel.UFFDIO_REGISTER_MODE_WP
ALLOW_SRC_HOLES = lowlevel.UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES
_HUGE_PAGES = HUGE_PAGE_SIZE // PAGE_SIZE
#: What one page table covers: entries of eight bytes fill a page.
_TABLE = PAGE_SIZE * (PAGE_SIZE // 8)


@pytest.fixture
def fd():
    number = lowlevel.userfaultfd(os.O_CLOEXEC | os.O_NONBLOCK | lowlevel.UFFD_USER_MODE_ONLY)
    lowlevel.api(number, lowlevel.UFFD_FEATURE_MOVE)
    yield number
    os.close(number)


@pytest.fixture
def known(foreign, fd):
    """Make an area that is registered in write-protect mode."""

    def make(pages: int = 1, **how: int) -> Area:
        area = foreign(pages, **how)
        lowlevel.register(fd, area.address, area.nbytes, WP)
        return area

    return make


def answer(fd: int, dst: int, src: int, length: int = PAGE_SIZE, mode: int = 0) -> int:
    """Return what UFFDIO_MOVE says: bytes, or minus the errno."""
    try:
        return lowlevel.move(fd, dst, src, length, mode)
    except OSError as error:
        return -(error.errno or 0)


def flags_of(address: int) -> set[str]:
    return set(next(vma.flags for vma in vmas() if vma.start <= address < vma.end))


class TestRegistration:
    def test_in_write_protect_mode_makes_a_legal_destination(self, fd, known, foreign):
        dst, src = known(), foreign()
        src.fill()
        assert answer(fd, dst.address, src.address) == PAGE_SIZE

    def test_without_it_a_move_is_einval(self, fd, known, foreign):
        known()
        dst, src = foreign(), foreign()
        src.fill()
        assert answer(fd, dst.address, src.address) == -errno.EINVAL

    def test_in_another_context_is_einval(self, fd, known, foreign):
        dst, src = known(), foreign()
        src.fill()
        other = lowlevel.userfaultfd(os.O_CLOEXEC | lowlevel.UFFD_USER_MODE_ONLY)
        lowlevel.api(other)
        assert answer(other, dst.address, src.address) == -errno.EINVAL
        with pytest.raises(OSError, match="busy"):
            lowlevel.register(other, dst.address, PAGE_SIZE, WP)
        os.close(other)

    def test_leaves_ordinary_faults_alone(self, fd, known):
        dst = known(3)
        assert read(dst.address, 1) == b"\0"
        write(dst.page(1), 1)
        with open("/dev/zero", "rb", buffering=0) as zero:
            zero.readinto(dst.array()[2 * PAGE_SIZE :])
        assert lowlevel.read_events(fd) == []
        assert not select.select([fd], [], [], 0)[0]

    def test_of_a_whole_mapping_adds_none_and_of_a_part_two(self, fd, foreign):
        area = foreign(3)
        before = count_vmas()
        lowlevel.register(fd, area.address, area.nbytes, WP)
        assert count_vmas() == before
        other = foreign(3)
        before = count_vmas()
        lowlevel.register(fd, other.page(1), PAGE_SIZE, WP)
        assert count_vmas() == before + 2

    def test_succeeds_where_a_move_is_not_possible(self, fd, foreign):
        src = foreign()
        src.fill()
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
        address = lowlevel.mmap(0, PAGE_SIZE, READ_WRITE, flags)
        lowlevel.register(fd, address, PAGE_SIZE, WP)
        assert answer(fd, address, src.address) == -errno.EINVAL
        lowlevel.munmap(address, PAGE_SIZE)

    @pytest.mark.parametrize(
        ("how", "kept"),
        [
            ("mprotect", True),
            ("MADV_DONTNEED", True),
            ("MAP_FIXED", False),
            ("munmap and mmap", False),
            ("mremap", False),
        ],
    )
    def test_is_lost_silently_with_the_mapping(self, known, how, kept):
        area = known(2)
        length = area.nbytes
        match how:
            case "mprotect":
                lowlevel.mprotect(area.address, length, mmap.PROT_READ)
                lowlevel.mprotect(area.address, length, READ_WRITE)
            case "MADV_DONTNEED":
                area.discard()
            case "MAP_FIXED":
                lowlevel.mmap(area.address, length, READ_WRITE, PRIVATE | MAP_FIXED)
            case "munmap and mmap":
                lowlevel.munmap(area.address, length)
                lowlevel.mmap(area.address, length, READ_WRITE, PRIVATE | MAP_FIXED)
            case "mremap":
                other = lowlevel.mmap(0, length, READ_WRITE, PRIVATE)
                move = lowlevel.MREMAP_MAYMOVE | lowlevel.MREMAP_FIXED
                lowlevel.mremap(area.address, length, length, move, other)
                lowlevel.mremap(other, length, length, move, area.address)
        assert ("uw" in flags_of(area.address)) == kept

    @pytest.mark.needs("fork")
    def test_is_not_inherited_by_a_fork(self, known):
        area = known()
        assert "uw" not in child(flags_of, area.address)

    @pytest.mark.needs("fork")
    def test_by_an_inherited_descriptor_is_the_parents(self, fd, foreign):
        # Why no descriptor may survive a fork in the child's hands.
        area = foreign()
        assert "uw" not in child(_register_and_look, fd, area.address)
        assert "uw" in flags_of(area.address)


def _register_and_look(fd: int, address: int) -> set[str]:
    lowlevel.register(fd, address, PAGE_SIZE, WP)
    return flags_of(address)


class TestAnswers:
    def test_enoent_for_an_unmapped_start(self, fd, known, foreign):
        dst, src = known(), foreign()
        src.fill()
        gone = foreign()
        gone.unmap()
        assert answer(fd, gone.address, src.address) == -errno.ENOENT
        assert answer(fd, dst.address, gone.address) == -errno.ENOENT

    def test_enoent_without_a_page_table_though_the_destination_is_occupied(
        self, fd, known, foreign
    ):
        dst, src = known(), foreign(1, align=_TABLE)
        dst.fill()
        assert answer(fd, dst.address, src.address) == -errno.ENOENT

    def test_eexist_with_a_page_table(self, fd, known, foreign):
        dst, src = known(), foreign(2)
        dst.fill()
        write(src.page(1), 1)
        assert answer(fd, dst.address, src.address) == -errno.EEXIST

    @pytest.mark.parametrize("page_table", [True, False])
    def test_a_move_onto_itself_looks_and_moves_nothing(self, fd, known, page_table):
        area = known(2, align=_TABLE)
        if page_table:
            write(area.page(1), 2)
            assert answer(fd, area.page(1), area.page(1)) == -errno.EEXIST
            assert read(area.page(1)) == pattern(2)
        assert answer(fd, area.address, area.address) == -errno.ENOENT
        assert hole(area.address)

    def test_a_short_count_without_the_reason(self, fd, known, foreign):
        dst, src = known(3), foreign(3)
        src.fill()
        src.discard(2, 1)
        assert answer(fd, dst.address, src.address, 3 * PAGE_SIZE) == 2 * PAGE_SIZE

    def test_forward_overlap_scrambles_pages_and_reports_success(self, fd, known):
        # Why the library refuses it before the kernel is asked.
        area = known(6)
        write_all(area.address, 2)
        done = answer(fd, area.page(1), area.address, 4 * PAGE_SIZE, ALLOW_SRC_HOLES)
        in_order = pattern(0) + pattern(1)
        assert done != 4 * PAGE_SIZE or read_all(area.page(1), 2) != in_order

    def test_a_move_between_processes_is_einval(self, fd, known):
        # The descriptor's address space is where both ranges are looked for.
        dst = known()
        assert child(_move_from_here, fd, dst.address) in (-errno.ENOENT, -errno.EINVAL)
        assert hole(dst.address)

    def test_the_wrong_ioctl_on_a_pagemap_is_einval_not_enotty(self):
        # A descriptor that was closed and its number reused need not say EBADF.
        with open("/proc/self/pagemap", "rb") as pagemap:
            code = answer(pagemap.fileno(), 0, 0)
        assert code in (-errno.EINVAL, -errno.ENOTTY)


def _move_from_here(fd: int, dst: int) -> int:
    page = lowlevel.mmap(0, PAGE_SIZE, READ_WRITE, PRIVATE)
    write(page, 1)
    return answer(fd, dst, page)


@pytest.mark.needs("fork")
class TestFork:
    def test_shared_pages_are_ebusy_until_they_are_written(self, fd, known, foreign):
        dst, src = known(2), foreign(2)
        src.fill()
        with living_child() as one:
            assert answer(fd, dst.address, src.address) == -errno.EBUSY
            assert not state(src.address) & PageState.EXCLUSIVE
            one.end()
        assert state(src.address) & PageState.EXCLUSIVE
        assert answer(fd, dst.address, src.address) == -errno.EBUSY
        write(src.address, 5)
        assert answer(fd, dst.address, src.address) == PAGE_SIZE
        src.advise(lowlevel.MADV_POPULATE_WRITE, 1, 1)
        assert answer(fd, dst.page(1), src.page(1)) == PAGE_SIZE
        assert read_all(dst.address, 2) == pattern(5) + pattern(1)

    def test_memory_that_is_not_inherited_is_not_shared(self, fd, known, foreign):
        dst, src = known(), foreign()
        src.fill()
        src.advise(mmap.MADV_DONTFORK)
        with living_child():
            assert answer(fd, dst.address, src.address) == PAGE_SIZE

    def test_memory_can_be_wiped_by_it(self, foreign):
        area = foreign()
        contents = area.fill()
        area.advise(18)  # MADV_WIPEONFORK, which the mmap module of Python 3.11 does not have
        assert child(read, area.address) == bytes(PAGE_SIZE)
        assert area.contents() == contents


class TestPinning:
    def test_vmspliced_pages_move_and_stay_in_the_pipe(self, fd, known, foreign):
        # A pipe holds a reference to the page, not a pin: EBUSY is not to be had this way.
        dst, src = known(), foreign()
        contents = src.fill()
        with in_a_pipe(src.address) as out:
            done = answer(fd, dst.address, src.address)
            if done == PAGE_SIZE:
                write(dst.address, 9)
                contents = pattern(9)
            assert done in (PAGE_SIZE, -errno.EBUSY, -errno.EAGAIN)
            assert os.read(out, PAGE_SIZE) == contents


class TestLooks:
    """What the looks at pages see, and what they do not."""

    @pytest.mark.needs("swap")
    def test_mincore_sees_no_swapped_page(self, foreign):
        area = foreign(2)
        area.fill()
        area.page_out(1, 1)
        assert lowlevel.mincore(area.address, area.nbytes)[0] == 1
        assert area.states()[1] & PageState.SWAPPED

    @pytest.mark.needs("guard")
    def test_mincore_sees_no_guard_page(self, foreign):
        area = foreign(2)
        area.fill()
        area.advise(lowlevel.MADV_GUARD_INSTALL, 1, 1)
        assert lowlevel.mincore(area.address, area.nbytes) == b"\1\0"

    def test_mincore_is_enomem_where_nothing_is_mapped(self, foreign):
        area = foreign(3)
        area.unmap(1, 1)
        with pytest.raises(OSError, match="mincore") as caught:
            lowlevel.mincore(area.address, 3 * PAGE_SIZE)
        assert caught.value.errno == errno.ENOMEM


@pytest.mark.needs("thp")
class TestHugePages:
    @pytest.fixture
    def huge(self, foreign):
        def make(*, filled: bool) -> Area:
            area = foreign(_HUGE_PAGES, align=HUGE_PAGE_SIZE)
            area.advise(mmap.MADV_HUGEPAGE)
            if filled:
                area.fill()
            return area

        return make

    def move(self, fd: int, dst: Area, src: Area) -> bool:
        """Move it all; return whether it went as one huge page."""
        lowlevel.register(fd, dst.address, dst.nbytes, WP)
        assert answer(fd, dst.address, src.address, HUGE_PAGE_SIZE) == HUGE_PAGE_SIZE
        return bool(state(dst.address) & PageState.HUGE)

    def test_move_whole(self, fd, huge):
        assert self.move(fd, huge(filled=False), huge(filled=True))

    def test_are_split_where_the_destination_has_an_empty_page_table(self, fd, huge, foreign):
        dst = foreign(_HUGE_PAGES, align=HUGE_PAGE_SIZE)
        write(dst.page(3), 1)
        dst.discard(3, 1)
        assert not self.move(fd, dst, huge(filled=True))

    def test_are_split_after_a_move_to_there_that_found_a_hole(self, fd, huge, foreign):
        # The kernel makes the destination's page table before it reads the source's entry.
        src, dst = foreign(2), foreign(_HUGE_PAGES, align=HUGE_PAGE_SIZE)
        write(src.page(1), 1)
        lowlevel.register(fd, dst.address, dst.nbytes, WP)
        assert answer(fd, dst.address, src.address) == -errno.ENOENT
        assert not self.move(fd, dst, huge(filled=True))

    @pytest.mark.needs("guard")
    def test_are_split_after_a_move_to_there_that_found_a_guard_page(self, fd, huge, foreign):
        src, dst = foreign(1), foreign(_HUGE_PAGES, align=HUGE_PAGE_SIZE)
        src.advise(lowlevel.MADV_GUARD_INSTALL)
        lowlevel.register(fd, dst.address, dst.nbytes, WP)
        assert answer(fd, dst.address, src.address) == -errno.EFAULT
        assert not self.move(fd, dst, huge(filled=True))

    def test_move_whole_where_the_page_table_was_unmapped(self, fd, huge, foreign):
        dst = foreign(_HUGE_PAGES + 2, align=HUGE_PAGE_SIZE)
        write_all(dst.address, dst.pages)
        lowlevel.mmap(dst.address, HUGE_PAGE_SIZE, READ_WRITE, PRIVATE | MAP_FIXED)
        lowlevel.register(fd, dst.address, HUGE_PAGE_SIZE, WP)
        src = huge(filled=True)
        assert answer(fd, dst.address, src.address, HUGE_PAGE_SIZE) == HUGE_PAGE_SIZE
        assert state(dst.address) & PageState.HUGE

    def test_whose_pages_of_zeros_are_freed_when_they_are_split(self, fd, huge, foreign):
        # Resident memory shrinks by it, although no page was moved away.
        src, dst = huge(filled=False), foreign(1)
        write(src.page(5), 1)
        lowlevel.register(fd, dst.address, PAGE_SIZE, WP)
        assert answer(fd, dst.address, src.page(5)) == PAGE_SIZE
        zero = [bool(s & PageState.ZERO) for s in src.states()]
        assert zero.count(True) in (0, _HUGE_PAGES - 1)

    @pytest.mark.needs("fork")
    @pytest.mark.parametrize("gone", [0, 1])
    def test_are_broken_up_though_shared_if_the_first_page_is_gone(self, fd, huge, foreign, gone):
        # Only of the first page is asked whether it is exclusive, before it is broken up.
        src, dst = huge(filled=False), foreign(1)
        write(src.page(5), 1)
        src.discard(gone, 1)
        lowlevel.register(fd, dst.address, PAGE_SIZE, WP)
        with living_child():
            assert answer(fd, dst.address, src.page(5)) == -errno.EBUSY
        zero = [bool(s & PageState.ZERO) for s in src.states()].count(True)
        assert zero == 0 or (gone == 0 and zero == _HUGE_PAGES - 2)
