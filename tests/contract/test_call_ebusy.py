"""remap_anon_pages: pages shared with a forked child, merged by KSM, or pinned for I/O: EBUSY."""

from __future__ import annotations

import errno
import itertools
import mmap
import os

import pytest

import pagemove
from pagemove import (
    HUGE_PAGE_SIZE,
    PAGE_SIZE,
    Memory,
    PageState,
    remap_anon_pages,
    unshare,
)
from support import at, child, fork, living_child, pattern, read, state, wait_for, write
from support.system import Ring

from .checks import GUARDS, move_all, nothing, refusal, refuse, zeros

pytestmark = pytest.mark.needs("move", "fork")

_EBUSY = errno.EBUSY
_EXCLUSIVE = PageState.EXCLUSIVE
_HUGE_PAGES = HUGE_PAGE_SIZE // PAGE_SIZE


class TestShared:
    """A page shared with a forked child is EBUSY (`PageShared`), while it lives and afterwards."""

    @GUARDS
    @pytest.mark.parametrize("flags", [0, 1])
    @pytest.mark.parametrize("pages", [1, 3, 20])
    def test_with_a_living_child(self, foreign, guarded, pages, flags, guard):
        guarded(guard)
        dst, src = foreign(pages), foreign(pages)
        src.fill()
        with living_child():
            message = refuse(
                _EBUSY, dst.address, src.address, dst.nbytes, flags, address=src.address
            )
        assert "forked process" in message
        assert "unshare" in message

    @GUARDS
    @pytest.mark.parametrize("flags", [0, 1])
    def test_with_a_child_that_has_ended(self, foreign, guarded, flags, guard):
        guarded(guard)
        dst, src = foreign(3), foreign(3)
        src.fill()
        child(nothing)
        assert all(s & _EXCLUSIVE for s in src.states())
        message = refuse(_EBUSY, dst.address, src.address, dst.nbytes, flags, address=src.address)
        assert "unshare" in message

    @GUARDS
    def test_some_of_the_pages(self, foreign, guarded, guard):
        guarded(guard)
        dst, src = foreign(20), foreign(20)
        write(src.page(7), 7)
        with living_child():
            for page in itertools.chain(range(7), range(8, 20)):
                write(src.page(page), page)
            assert remap_anon_pages(dst.address, src.address, dst.nbytes) == 7 * PAGE_SIZE
            refuse(_EBUSY, dst.page(7), src.page(7), 13 * PAGE_SIZE, address=src.page(7))
            move_all(dst.page(8), src.page(8), 12 * PAGE_SIZE)

    def test_a_page_written_since_the_fork_moves(self, foreign):
        dst, src = foreign(), foreign()
        write(src.address, 1)
        with living_child():
            write(src.address, 2)
            move_all(dst.address, src.address, PAGE_SIZE)

    def test_the_child_keeps_what_it_inherited(self, foreign):
        dst, src = foreign(), foreign()
        write(src.address, 1)
        with living_child() as one:
            write(src.address, 2)
            remap_anon_pages(dst.address, src.address, PAGE_SIZE)
            assert one.run(read, src.address) == pattern(1)
            assert one.run(read, dst.address) == zeros()

    @pytest.mark.needs("thp")
    @GUARDS
    @pytest.mark.parametrize("lives", [True, False], ids=["living", "ended"])
    def test_a_huge_page(self, foreign, guarded, guard, lives):
        guarded(guard)
        dst = foreign(_HUGE_PAGES, align=HUGE_PAGE_SIZE)
        src = foreign(_HUGE_PAGES, align=HUGE_PAGE_SIZE)
        src.advise(mmap.MADV_HUGEPAGE)
        src.fill()
        with living_child() as one:
            if not lives:
                one.end()
            refuse(_EBUSY, dst.address, src.address, HUGE_PAGE_SIZE, address=src.address)

    def test_a_memory_is_not_shared_with_a_child(self):
        with Memory(3 * PAGE_SIZE) as dst, Memory(3 * PAGE_SIZE) as src:
            at(src.address, src.nbytes)[:] = 1
            with living_child():
                move_all(dst.address, src.address, src.nbytes)

    def test_subprocesses_do_not_share(self, foreign):
        import subprocess

        dst, src = foreign(), foreign()
        write(src.address, 1)
        subprocess.run(["true"], check=True)
        move_all(dst.address, src.address, PAGE_SIZE)

    @GUARDS
    @pytest.mark.needs("ksm")
    def test_merged_by_ksm(self, foreign, guarded, guard):
        guarded(guard)
        dst, src = foreign(2), foreign(2)
        for page in range(2):
            write(src.page(page), 4711)
        src.advise(mmap.MADV_MERGEABLE)
        wait_for(lambda: not any(s & _EXCLUSIVE for s in src.states()))
        message = refuse(_EBUSY, dst.address, src.address, dst.nbytes, address=src.address)
        assert "KSM" in message
        src.advise(mmap.MADV_UNMERGEABLE)
        assert src.contents() == pattern(4711) * 2


class TestPinned:
    """A page pinned for I/O is EBUSY; a buffer registered with io_uring stays pinned."""

    @GUARDS
    @pytest.mark.needs("io_uring")
    @pytest.mark.parametrize("flags", [0, 1])
    @pytest.mark.parametrize("pages", [1, 3, 20])
    def test_a_registered_buffer(self, foreign, guarded, pages, flags, guard):
        guarded(guard)
        dst, src = foreign(pages), foreign(pages)
        contents = src.fill()
        with Ring() as ring:
            ring.register(src.address, src.nbytes)
            message = refuse(
                _EBUSY, dst.address, src.address, dst.nbytes, flags, address=src.address
            )
            assert "pinned for I/O" in message
            ring.unregister()
        wait_for(lambda: _moves(dst.address, src.address, dst.nbytes))
        assert dst.contents() == contents

    @GUARDS
    @pytest.mark.needs("io_uring")
    def test_pages_around_a_pinned_one(self, foreign, guarded, guard):
        guarded(guard)
        dst, src = foreign(9), foreign(9)
        src.fill()
        with Ring() as ring:
            ring.register(src.page(4), PAGE_SIZE)
            assert remap_anon_pages(dst.address, src.address, dst.nbytes) == 4 * PAGE_SIZE
            refuse(_EBUSY, dst.page(4), src.page(4), 5 * PAGE_SIZE, address=src.page(4))
            move_all(dst.page(5), src.page(5), 4 * PAGE_SIZE)

    @pytest.mark.needs("io_uring")
    def test_io_into_a_pinned_page_arrives(self, foreign):
        # What EBUSY is for: the frame stays where the device, or here a reader, expects it.
        dst, src = foreign(), foreign()
        src.fill()
        with Ring() as ring:
            ring.register(src.address, PAGE_SIZE)
            with refusal(_EBUSY):
                remap_anon_pages(dst.address, src.address, PAGE_SIZE)
            write(src.address, 5)
            assert read(src.address) == pattern(5)


def _moves(dst: int, src: int, length: int) -> bool:
    """Try to move all of it; the kernel unpins a registered buffer in its own time."""
    done = 0
    try:
        while done < length:
            done += remap_anon_pages(dst + done, src + done, length - done)
    except pagemove.PageShared:
        assert done == 0
        return False
    return True


class TestDestinationFirst:
    def test_an_occupied_destination_before_a_shared_source(self, foreign):
        dst, src = foreign(), foreign()
        src.fill()
        with living_child():
            write(dst.address, 9)
            refuse(errno.EEXIST, dst.address, src.address, PAGE_SIZE, address=dst.address)


def test_the_page_of_a_grandchild_is_shared_too(foreign):
    src = foreign()
    src.fill()
    out, into = os.pipe()
    first = fork()
    if not first:
        os.close(into)
        if not fork():
            os.read(out, 1)
        os._exit(0)
    os.waitpid(first, 0)
    os.close(out)
    dst = foreign()
    refuse(_EBUSY, dst.address, src.address, PAGE_SIZE, address=src.address)
    with refusal(_EBUSY, "unshare"):
        unshare(src.array())
    os.close(into)
    wait_for(lambda: state(src.address) & _EXCLUSIVE)
    assert unshare(src.array()) == 1
