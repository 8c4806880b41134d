"""Kernel without UFFDIO_MOVE, or userfaultfd not permitted: `UnsupportedError`, with the remedy."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import pagemove
from pagemove import (
    HUGE_PAGE_SIZE,
    PAGE_SIZE,
    Memory,
    PageState,
    RemapError,
    UnsupportedError,
    features,
    move,
    move_many,
    mremap,
    page_states,
    remap_anon_pages,
    unshare,
)
from pagemove._native import remap
from support import at, child, hole, pattern, read, write, write_all
from support.foreign import foreign as map_foreign
from support.system import NOBODY, refuse_userfaultfd, set_dumpable

from .checks import move_all

pytestmark = pytest.mark.needs("fork")

CALLS: dict[str, Callable[[Memory, Memory], object]] = {
    "remap_anon_pages": lambda dst, src: remap_anon_pages(dst, src, dst.nbytes),
    "move": move,
    "move_many": lambda dst, src: move_many(dst, src, [1, 0], [1, 0]),
}


def refuses_every_call(code: int | None) -> list[str]:
    """Assert that every call that moves pages refuses, and does nothing; return the messages."""
    messages = []
    with Memory(2 * PAGE_SIZE) as dst, Memory(2 * PAGE_SIZE) as src:
        contents = write_all(src.address, 2)
        for name, call in CALLS.items():
            for flags in (0, 1) if name == "remap_anon_pages" else (0,):
                with pytest.raises(UnsupportedError) as caught:
                    call(dst, src) if not flags else remap_anon_pages(dst, src, PAGE_SIZE, 1)
                error = caught.value
                assert isinstance(error, RemapError)
                assert code is None or error.errno == code
                assert error.moved == 0
                assert f"] {name}: " in str(error)
                messages.append(str(error))
        assert hole(dst.address, 2)
        assert read(src.address, src.nbytes) == contents
    return messages


class TestKnownBrokenKernel:
    """CVE-2024-27007: UFFDIO_MOVE is there, and is never used."""

    @pytest.fixture
    def broken(self):
        before = remap.defects()
        remap.set_defects(before | remap.DEFECT_REFUSE)
        yield
        remap.set_defects(before)

    @pytest.mark.needs("move")
    def test_every_call_refuses(self, broken):
        for message in refuses_every_call(None):
            assert "doctor" in message or "emedy" in message

    @pytest.mark.needs("move")
    def test_foreign_memory_as_well(self, broken, foreign):
        dst, src = foreign(), foreign()
        src.fill()
        with pytest.raises(UnsupportedError):
            remap_anon_pages(dst.address, src.address, PAGE_SIZE)
        assert hole(dst.address)

    @pytest.mark.needs("move")
    def test_bad_arguments_are_reported_first(self, broken):
        with Memory(PAGE_SIZE) as memory:
            with pytest.raises(RemapError) as caught:
                remap_anon_pages(memory.address + 1, memory.address, PAGE_SIZE)
            assert caught.value.errno == errno.EINVAL

    @pytest.mark.needs("move")
    def test_a_detecting_mremap_goes_the_normal_way(self, broken, foreign):
        dst, src = foreign(), foreign()
        src.fill()
        assert mremap(dst.address, src.address, PAGE_SIZE, detect=True) == "mapping"
        src.lost()
        assert read(dst.address) == pattern(0)


@pytest.mark.needs("without_move")
class TestKernelWithoutMove:
    """Linux up to 6.7: nothing moves, everybody is told the remedy, and the rest works."""

    def test_every_call_refuses_with_the_remedy_of_the_doctor(self):
        remedies = [problem.remedy for problem in features().problems if problem.needed]
        assert any("6.8" in remedy for remedy in remedies)
        for message in refuses_every_call(errno.ENOSYS):
            assert any(remedy in message for remedy in remedies), message

    def test_what_needs_no_move_works(self, foreign):
        with Memory(2 * PAGE_SIZE) as memory:
            contents = write_all(memory.address, 2)
            assert memory.asarray("u1", 2 * PAGE_SIZE).tobytes() == contents
            memory.discard(0, PAGE_SIZE)
            assert read(memory.address) == bytes(PAGE_SIZE)
        dst, src = foreign(), foreign()
        src.fill()
        assert mremap(dst.address, src.address, PAGE_SIZE, detect=True) == "mapping"
        src.lost()
        assert read(dst.address) == pattern(0)


@pytest.mark.needs("root", "seccomp")
class TestRefusedUserfaultfd:
    """What a container's seccomp filter does: EPERM, or ENOSYS; and nobody may use the device."""

    @pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS], ids=errno.errorcode.get)
    @pytest.mark.needs("move")
    def test_every_call_refuses_with_the_remedy_of_the_doctor(self, code):
        messages, remedies = child(_refused, code, refuses_every_call, code)
        assert remedies
        for message in messages:
            assert any(remedy in message for remedy in remedies), message

    @pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS], ids=errno.errorcode.get)
    def test_what_needs_no_userfaultfd_works(self, code):
        child(_refused, code, _use_memory)

    @pytest.mark.needs("move")
    def test_the_device_is_another_door(self):
        if not Path("/dev/userfaultfd").exists():
            pytest.skip("no /dev/userfaultfd")
        assert child(_move_by_the_device) == 3 * PAGE_SIZE

    @pytest.mark.needs("move")
    def test_descriptors_of_a_parent_that_may_are_not_used(self):
        remap.descriptor()
        child(_refused, errno.EPERM, refuses_every_call, errno.EPERM)
        with Memory(PAGE_SIZE) as dst, Memory(PAGE_SIZE) as src:
            write(src.address, 1)
            move_all(dst.address, src.address, PAGE_SIZE)


def _refused(code: int, function: Callable[..., object], *args: object) -> tuple[object, list[str]]:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    set_dumpable()
    refuse_userfaultfd(code)
    found = features(refresh=True)
    assert not found.remap_anon_pages
    return function(*args), [problem.remedy for problem in found.problems if problem.needed]


def _use_memory() -> None:
    with Memory(2 * PAGE_SIZE) as memory, map_foreign(2) as area:
        contents = write_all(memory.address, 2)
        assert [bool(s & PageState.PRESENT) for s in page_states(memory)] == [True, True]
        assert unshare(memory) == 0
        assert memory.asarray("u1", PAGE_SIZE).tobytes() == contents[:PAGE_SIZE]
        assert mremap(area.address, memory, memory.nbytes, keep_source=True) == "mapping"
        assert area.contents() == contents
        memory.discard()
        array = pagemove.empty(100)
        array[:] = 1


def _move_by_the_device() -> int:
    refuse_userfaultfd(errno.EPERM)
    with Memory(3 * PAGE_SIZE) as dst, Memory(3 * PAGE_SIZE) as src:
        write_all(src.address, 3)
        return remap_anon_pages(dst, src, src.nbytes)


@pytest.mark.needs("root", "move")
class TestProcNotReadable:
    """A process that may not read its own /proc/self still moves, and still tells the truth."""

    def test_moves_and_errors(self):
        assert child(_without_proc) == "done"


def _without_proc() -> str:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    with pytest.raises(PermissionError):
        open("/proc/self/pagemap", "rb").close()
    with Memory(20 * PAGE_SIZE) as dst, Memory(20 * PAGE_SIZE) as src:
        contents = write_all(src.address, 20)
        assert remap_anon_pages(dst, src, src.nbytes) == src.nbytes
        assert read(dst.address, dst.nbytes) == contents
        for code, to, of in (
            (errno.EEXIST, dst.address, src.address),
            (errno.ENOENT, src.address + PAGE_SIZE, src.address),
        ):
            with pytest.raises(RemapError) as caught:
                remap_anon_pages(to, of, PAGE_SIZE)
            assert caught.value.errno == code
            assert caught.value.moved == 0
        with pytest.raises(UnsupportedError, match="/proc"):
            remap_anon_pages(src, dst, dst.nbytes, 1)
        assert read(dst.address, dst.nbytes) == contents
    return "done"


@pytest.mark.needs("move", "thp")
class TestHugeZeroPage:
    """CVE-2026-31397: on affected kernels a huge zero page is refused, never moved."""

    @pytest.fixture
    def sides(self, foreign):
        pages = HUGE_PAGE_SIZE // PAGE_SIZE
        dst = foreign(2 * pages, align=HUGE_PAGE_SIZE)
        src = foreign(2 * pages, align=HUGE_PAGE_SIZE)
        src.advise(mmap.MADV_HUGEPAGE)
        assert read(src.address, 1) == b"\0"
        state = src.states()[0]
        if not state & PageState.HUGE or not state & PageState.ZERO:
            pytest.skip("this kernel has no huge zero page here")
        return dst, src

    @pytest.fixture(params=[0, 1], ids=["plain", "guarded"])
    def affected(self, request):
        remap.set_defects(remap.DEFECT_HUGE_ZERO | (remap.DEFECT_STALE_EAGAIN * request.param))

    @pytest.mark.parametrize("flags", [0, 1])
    def test_is_refused(self, affected, sides, flags):
        dst, src = sides
        with pytest.raises(UnsupportedError, match="huge zero page"):
            remap_anon_pages(dst.address, src.address, HUGE_PAGE_SIZE, flags)
        assert hole(dst.address, dst.pages)
        assert src.states()[0] & PageState.HUGE

    @pytest.mark.parametrize("flags", [0, 1])
    def test_after_other_pages_is_never_moved(self, affected, sides, flags):
        dst, src = sides
        src.discard()
        half = src.pages // 2
        write_all(src.address, half)
        assert read(src.page(half), 1) == b"\0"
        try:
            moved = remap_anon_pages(dst.address, src.address, src.nbytes, flags)
        except UnsupportedError:
            moved = 0
        assert moved <= HUGE_PAGE_SIZE
        assert hole(dst.page(half), half)
        assert src.states()[half] & PageState.HUGE

    def test_is_refused_by_move_and_move_many(self, affected, sides):
        dst, src = sides
        src.discard(src.pages // 2)
        length = HUGE_PAGE_SIZE
        with pytest.raises(UnsupportedError, match="huge zero page"):
            move(at(dst.address, length), at(src.address, length))
        with pytest.raises(UnsupportedError, match="huge zero page") as caught:
            move_many(dst.array(), src.array(), [0], [0], page_size=length)
        assert (caught.value.index, caught.value.moved) == (0, 0)
        assert hole(dst.address, dst.pages)

    def test_moves_where_it_is_safe_page_by_page(self, affected, sides):
        # Not aligned alike: the kernel splits it, and moves small zero pages.
        dst, src = sides
        moved = remap_anon_pages(dst.page(1), src.address, 3 * PAGE_SIZE)
        assert moved == 3 * PAGE_SIZE
        assert all(s & PageState.ZERO for s in dst.states()[1:4])
        assert not at(dst.page(1), 3 * PAGE_SIZE).any()

    def test_ordinary_huge_pages_move(self, affected, sides):
        dst, src = sides
        src.discard()
        at(src.address, src.nbytes)[:] = 3
        assert src.states()[0] & PageState.HUGE
        move_all(dst.address, src.address, src.nbytes)
