"""page_states, vmas and features: they look, and change nothing."""

from __future__ import annotations

import dataclasses
import itertools
import mmap
import os

import numpy as np
import pytest

from pagemove import (
    HUGE_PAGE_SIZE,
    PAGE_SIZE,
    KernelFeatures,
    Memory,
    PageState,
    features,
    lowlevel,
    move,
    page_states,
    remap_anon_pages,
    vmas,
)
from support import at, child, hole, living_child, read, vmas_in, write

PRESENT, SWAPPED, ZERO = PageState.PRESENT, PageState.SWAPPED, PageState.ZERO
HUGE, EXCLUSIVE = PageState.HUGE, PageState.EXCLUSIVE


class TestPageStates:
    """One flag word a page."""

    @pytest.mark.needs("pagemap_scan")
    def test_of_a_hole_a_page_and_a_zero_page(self, foreign):
        area = foreign(3)
        write(area.page(1), 1)
        read(area.page(2), 1)
        words = page_states(area.array())
        assert words.dtype == np.uint16
        assert [PageState(int(word)) for word in words] == [
            PageState(0),
            PRESENT | EXCLUSIVE,
            PRESENT | ZERO,
        ]

    def test_looking_populates_nothing(self, foreign):
        area = foreign(100)
        assert not page_states(area.array()).any()
        assert hole(area.address, 100)

    @pytest.mark.parametrize(
        ("start", "length", "pages"),
        [
            (0, 1, 1),
            (0, PAGE_SIZE, 1),
            (0, PAGE_SIZE + 1, 2),
            (1, PAGE_SIZE, 2),
            (PAGE_SIZE - 1, 2, 2),
            (8, 3 * PAGE_SIZE, mmap.MADV_DONTNEED),
            (5, 0, 0),
        ],
    )
    def test_of_every_page_that_a_buffer_touches(self, foreign, start, length, pages):
        area = foreign(4)
        area.fill()
        words = page_states(area.array()[start : start + length])
        assert words.tolist() == [int(PRESENT | EXCLUSIVE)] * pages

    def test_of_any_buffer(self):
        assert page_states(b"x" * 100).any()
        assert len(page_states(bytearray(10 * PAGE_SIZE))) in (10, 11)
        assert page_states(np.ones(5)).any()
        with Memory(PAGE_SIZE) as memory:
            assert page_states(memory).tolist() == memory.page_states().tolist() == [0]

    @pytest.mark.parametrize("wrong", [None, 4096, "text", [1], np.float64(1) * 2 + 1j], ids=repr)
    def test_anything_else_is_a_type_error(self, wrong):
        if isinstance(wrong, np.generic):
            assert len(page_states(wrong)) == 1
            return
        with pytest.raises(TypeError):
            page_states(wrong)

    def test_a_buffer_with_gaps_is_a_type_error(self):
        with pytest.raises(TypeError, match="contiguous"):
            page_states(np.zeros(10)[::2])

    @pytest.mark.needs("swap")
    def test_swapped(self, foreign):
        area = foreign(2)
        area.fill()
        area.page_out(1, 1)
        assert [PageState(int(w)) for w in page_states(area.array())] == [
            PRESENT | EXCLUSIVE,
            SWAPPED,
        ]

    @pytest.mark.needs("thp", "pagemap_scan")
    def test_huge(self, foreign):
        area = foreign(2 * HUGE_PAGE_SIZE // PAGE_SIZE, align=HUGE_PAGE_SIZE)
        area.advise(mmap.MADV_HUGEPAGE, 0, area.pages // 2)
        area.fill()
        words, half = page_states(area.array()), area.pages // 2
        assert [bool(word & HUGE) for word in words[[0, 77, half - 1, half, half + 88]]] == [
            True,
            True,
            True,
            False,
            False,
        ]

    @pytest.mark.needs("fork")
    def test_exclusive_is_mapped_once(self, foreign):
        area = foreign(2)
        area.fill()
        with living_child() as one:
            write(area.address, 0)
            assert [bool(s & EXCLUSIVE) for s in area.states()] == [True, False]
            one.end()
        assert [bool(s & EXCLUSIVE) for s in area.states()] == [True, True]

    @pytest.mark.needs("fork", "move")
    def test_exclusive_is_no_promise_that_it_can_move(self, foreign):
        dst, src = foreign(), foreign()
        src.fill()
        child(os.getpid)
        assert src.states() == [PRESENT | EXCLUSIVE]
        with pytest.raises(OSError, match="shared") as caught:
            remap_anon_pages(dst.address, src.address, PAGE_SIZE)
        assert caught.value.errno == 16

    @pytest.mark.needs("userfaultfd_missing", "pagemap_scan")
    def test_write_protected(self, foreign):
        area = foreign(2)
        area.fill()
        fd = lowlevel.userfaultfd(os.O_CLOEXEC | lowlevel.UFFD_USER_MODE_ONLY)
        lowlevel.api(fd)
        lowlevel.register(fd, area.address, area.nbytes, lowlevel.UFFDIO_REGISTER_MODE_WP)
        lowlevel.writeprotect(fd, area.page(1), PAGE_SIZE, 1)
        found = [bool(s & PageState.WRITE_PROTECTED) for s in area.states()]
        os.close(fd)
        assert found == [False, True]
        assert not any(s & PageState.WRITE_PROTECTED for s in area.states())

    @pytest.mark.needs("guard")
    def test_guard_is_never_also_swapped(self, foreign):
        area = foreign(2)
        area.advise(lowlevel.MADV_GUARD_INSTALL, 1, 1)
        states = area.states()
        assert states[0] == PageState(0)
        # Linux 6.13 and 6.14 have guard pages, and no bit for them.
        assert states[1] in (PageState.GUARD, SWAPPED)
        assert not (states[1] & PageState.GUARD and states[1] & SWAPPED)

    @pytest.mark.needs("move")
    def test_follow_the_pages(self):
        with Memory(2 * PAGE_SIZE) as dst, Memory(2 * PAGE_SIZE) as src:
            at(src.address, src.nbytes)[:] = 1
            before = src.page_states().tolist()
            move(dst, src)
            assert dst.page_states().tolist() == before
            assert not src.page_states().any()


class TestVmas:
    """Start, end, permissions, name, flags, in address order."""

    def test_in_address_order_and_apart(self):
        found = vmas()
        assert [vma.start for vma in found] == sorted(vma.start for vma in found)
        for one, other in itertools.pairwise(found):
            assert one.start < one.end <= other.start

    def test_are_those_of_proc_maps(self):
        def maps() -> list[tuple[int, int, str, str]]:
            return vmas_in(0, 2**64)

        # Listing takes memory itself: look until two looks at the other list agree.
        for _ in range(20):
            before, found, after = maps(), vmas(), maps()
            if before == after:
                break
        assert [(v.start, v.end, v.permissions, v.name) for v in found] == before

    def test_of_a_mapping_of_ones_own(self, foreign):
        area = foreign(3, protection=mmap.PROT_READ)
        (vma,) = [vma for vma in vmas() if vma.start == area.address]
        assert (vma.end, vma.permissions, vma.name) == (area.end, "r--p", "")
        assert isinstance(vma.flags, tuple)
        assert "rd" in vma.flags
        assert "wr" not in vma.flags

    def test_flags_show_the_advice(self, foreign):
        area = foreign(3)
        area.advise(mmap.MADV_DONTFORK)
        (vma,) = [vma for vma in vmas() if vma.start == area.address]
        assert {"rd", "wr", "dc"} <= set(vma.flags)

    def test_names_of_files_and_of_the_kernels_own(self, tmp_path):
        path = tmp_path / "a file with blanks"
        path.write_bytes(bytes(PAGE_SIZE))
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
            names = {vma.name for vma in vmas()}
        assert {str(path), "[stack]"} <= names

    def test_is_frozen(self):
        vma = vmas()[0]
        with pytest.raises(dataclasses.FrozenInstanceError):
            vma.start = 0

    @pytest.mark.needs("move")
    def test_a_move_changes_nothing_in_them(self, foreign):
        dst, src = foreign(8), foreign(8)
        src.fill()
        remap_anon_pages(dst.address, src.address, PAGE_SIZE)
        areas = (dst.address, src.address)
        before = [vma for vma in vmas() if vma.start in areas]
        assert len(before) == 2
        for page in range(1, 8):
            remap_anon_pages(dst.page(page), src.page(page), PAGE_SIZE)
        assert [vma for vma in vmas() if vma.start in areas] == before


class TestFeatures:
    """What this kernel and this process may do, and why not."""

    def test_is_frozen_and_says_what_works(self):
        found = features()
        assert isinstance(found, KernelFeatures)
        with pytest.raises(dataclasses.FrozenInstanceError):
            found.release = ""
        assert found.release == os.uname().release
        assert (found.page_size, found.huge_page_size) == (PAGE_SIZE, HUGE_PAGE_SIZE)

    def test_agrees_with_a_real_move(self):
        with Memory(PAGE_SIZE) as dst, Memory(PAGE_SIZE) as src:
            write(src.address, 1)
            try:
                works = remap_anon_pages(dst, src, PAGE_SIZE) == PAGE_SIZE
            except OSError:
                works = False
        assert features().remap_anon_pages == works

    def test_every_problem_has_a_remedy(self):
        for problem in features(refresh=True).problems:
            assert problem.name
            assert problem.missing
            assert problem.remedy

    def test_require_passes_what_is_there_and_refuses_what_is_not_known(self):
        if features().remap_anon_pages:
            features().require("remap_anon_pages")
        with pytest.raises(ValueError, match="nonsense"):
            features().require("nonsense")
