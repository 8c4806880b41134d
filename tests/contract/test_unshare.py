"""unshare(buffer, *, copy=False): makes pages left shared by an exited child exclusive again."""

from __future__ import annotations

import errno
import mmap
import os

import numpy as np
import pytest

import pagemove
from pagemove import (
    HUGE_PAGE_SIZE,
    PAGE_SIZE,
    Memory,
    PageState,
    lowlevel,
    unshare,
)
from support import child, living_child, read, read_all, wait_for, write

from .checks import move_all, nothing, refusal

pytestmark = pytest.mark.needs("move", "fork")

_EBUSY = errno.EBUSY
_EXCLUSIVE = PageState.EXCLUSIVE
_HUGE_PAGES = HUGE_PAGE_SIZE // PAGE_SIZE


def frames(address: int, pages: int) -> list[int]:
    """List page frame numbers; zeros for anyone but root."""
    with open("/proc/self/pagemap", "rb") as pagemap:
        pagemap.seek(address // PAGE_SIZE * 8)
        words = np.frombuffer(pagemap.read(pages * 8), np.uint64)
    return [int(word) & (1 << 55) - 1 for word in words]


@pytest.fixture
def one_cpu():
    """Stay on a CPU: a page in the list of new pages of another one is copied by the kernel."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


class TestUnshare:
    """Pages left shared by an exited child are made exclusive again, in place."""

    @pytest.mark.parametrize("pages", [1, 3, 700])
    def test_makes_them_exclusive_in_place(self, foreign, one_cpu, pages):
        dst, src = foreign(pages), foreign(pages)
        contents = src.fill()
        before = frames(src.address, pages)
        child(nothing)
        assert unshare(src.array()) == pages
        assert frames(src.address, pages) == before
        assert src.contents() == contents
        move_all(dst.address, src.address, src.nbytes)

    def test_counts_only_what_was_shared(self, foreign):
        src = foreign(10)
        src.fill()
        assert unshare(src.array()) == 0
        child(nothing)
        for page in (2, 5):
            write(src.page(page), page)
        assert unshare(src.array()) == 8
        assert unshare(src.array()) == 0

    def test_leaves_holes_and_zero_pages_as_they_are(self, foreign):
        src = foreign(10)
        for page in (1, 8):
            write(src.page(page), page)
        read(src.page(4), 1)
        child(nothing)
        before = src.states()
        assert unshare(src.array()) == 2
        assert src.states() == before

    @pytest.mark.parametrize("pages", [1, 9])
    def test_refuses_while_the_child_lives(self, foreign, pages):
        src = foreign(pages)
        contents = src.fill()
        before = frames(src.address, pages)
        with living_child() as one:
            with refusal(_EBUSY, "unshare") as error:
                unshare(src.array())
            assert error().address == src.address
            assert "copy=True" in str(error())
            assert not any(s & _EXCLUSIVE for s in src.states())
            assert one.run(read_all, src.address, pages) == contents
        assert unshare(src.array()) == pages
        assert frames(src.address, pages) == before

    def test_refuses_all_if_one_page_is_shared_with_a_living_child(self, foreign):
        src = foreign(8)
        src.fill()
        child(nothing)
        write(src.page(5), 5)
        with living_child():
            for page in (0, 1, 2, 3, 4, 6, 7):
                write(src.page(page), page)
            with refusal(_EBUSY, "unshare") as error:
                unshare(src.array())
            assert error().address == src.page(5)

    @pytest.mark.parametrize("pages", [1, 9])
    def test_copies_on_request_while_the_child_lives(self, foreign, pages):
        dst, src = foreign(pages), foreign(pages)
        contents = src.fill()
        with living_child() as one:
            assert unshare(src.array(), copy=True) == pages
            assert all(s & _EXCLUSIVE for s in src.states())
            move_all(dst.address, src.address, src.nbytes)
            assert one.run(read_all, src.address, pages) == contents

    @pytest.mark.needs("thp")
    @pytest.mark.parametrize("lives", [True, False], ids=["living", "ended"])
    def test_a_huge_page(self, foreign, lives):
        dst = foreign(_HUGE_PAGES, align=HUGE_PAGE_SIZE)
        src = foreign(_HUGE_PAGES, align=HUGE_PAGE_SIZE)
        src.advise(mmap.MADV_HUGEPAGE)
        contents = src.fill()
        with living_child() as one:
            if not lives:
                one.end()
            assert unshare(src.array(), copy=lives) == _HUGE_PAGES
            move_all(dst.address, src.address, HUGE_PAGE_SIZE)
            if lives:
                assert one.run(read_all, src.address, _HUGE_PAGES) == contents
        assert dst.contents() == contents

    @pytest.mark.needs("thp")
    def test_part_of_a_huge_page(self, foreign):
        src = foreign(_HUGE_PAGES, align=HUGE_PAGE_SIZE)
        src.advise(mmap.MADV_HUGEPAGE)
        src.fill()
        child(nothing)
        assert unshare(src.array()[: 10 * PAGE_SIZE]) >= 10
        dst = foreign(10)
        move_all(dst.address, src.address, 10 * PAGE_SIZE)

    @pytest.mark.needs("swap")
    def test_swapped_out_pages(self, foreign):
        dst, src = foreign(3), foreign(3)
        contents = src.fill()
        child(nothing)
        src.page_out()
        unshare(src.array())
        move_all(dst.address, src.address, src.nbytes)
        assert dst.contents() == contents

    @pytest.mark.needs("ksm")
    def test_merged_pages_are_copied_only_on_request(self, foreign):
        dst, src = foreign(2), foreign(2)
        for page in range(2):
            write(src.page(page), 99)
        src.advise(mmap.MADV_MERGEABLE)
        wait_for(lambda: not any(s & _EXCLUSIVE for s in src.states()))
        with refusal(_EBUSY, "unshare"):
            unshare(src.array())
        # KSM must not merge them again before the move.
        src.advise(mmap.MADV_UNMERGEABLE)
        unshare(src.array(), copy=True)
        move_all(dst.address, src.address, src.nbytes)

    def test_partial_pages_at_both_ends_count(self, foreign):
        src = foreign(4)
        src.fill()
        child(nothing)
        assert unshare(src.array()[PAGE_SIZE + 8 : 2 * PAGE_SIZE + 8]) == 2
        assert unshare(src.array()) == 2

    def test_memory_and_empty_buffers(self, foreign):
        with Memory(PAGE_SIZE) as memory:
            write(memory.address, 1)
            assert unshare(memory) == 0
        assert unshare(bytearray()) == 0
        assert unshare(np.zeros(0)) == 0

    def test_a_read_only_buffer_is_a_buffer_error(self):
        with pytest.raises(BufferError):
            unshare(b"read-only")

    @pytest.mark.parametrize("wrong", [None, 4096, "text", [1], 1.5], ids=repr)
    def test_anything_else_is_a_type_error(self, wrong):
        with pytest.raises(TypeError):
            unshare(wrong)

    def test_copy_is_by_keyword_only(self, foreign):
        with pytest.raises(TypeError):
            unshare(foreign().array(), True)

    def test_a_page_that_cannot_be_written(self, foreign):
        src = foreign(2)
        src.fill()
        child(nothing)
        lowlevel.mprotect(src.address, src.nbytes, mmap.PROT_READ)
        with pytest.raises(pagemove.RemapError, match="unshare") as caught:
            unshare(src.array())
        assert caught.value.address == src.address
        assert caught.value.moved == 0

    def test_two_children_one_of_which_lives(self, foreign):
        src = foreign(2)
        src.fill()
        with living_child(), living_child() as second:
            second.end()
            with refusal(_EBUSY, "unshare"):
                unshare(src.array())
        assert unshare(src.array()) == 2
