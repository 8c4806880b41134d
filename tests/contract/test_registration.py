"""The destination's mapping has to be known to userfaultfd; the library sees to it, unseen.

Once for each mapping, in write-protect mode only, adding no mapping; a stale memory of it is
noticed and mended. So is a descriptor that somebody closed.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading

import pytest

from pagemove import (
    PAGE_SIZE,
    Memory,
    PageState,
    lowlevel,
    move,
    move_many,
    remap_anon_pages,
    vmas,
)
from pagemove._native import remap
from pagemove.registration import register
from support import Area, at, child, hole, pattern, read, together, vmas_in, write, write_all
from support.foreign import MAP_FIXED, PRIVATE, READ_WRITE
from support.selection import few

from .checks import GUARDS, move_all, zeros

pytestmark = pytest.mark.needs("move")


def flags_of(address: int) -> set[str]:
    """List the VmFlags of the mapping that contains the address."""
    return set(next(vma.flags for vma in vmas() if vma.start <= address < vma.end))


def test_a_refusal_that_stays_is_an_error_in_the_end(monkeypatch):
    """ENOTTY from a descriptor that is in order: opening it anew changes nothing."""
    calls = 0

    def refuse(*_: int) -> None:
        nonlocal calls
        calls += 1
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    monkeypatch.setattr(lowlevel, "register", refuse)
    with pytest.raises(OSError, match="Inappropriate ioctl") as caught:
        register(0, PAGE_SIZE)
    assert caught.value.errno == errno.ENOTTY
    assert 1 < calls < 1000


class TestFirstCall:
    def test_registers_the_whole_mapping_once(self, foreign):
        dst, src = foreign(32), foreign(32)
        src.fill()
        assert "uw" not in flags_of(dst.address)
        move_all(dst.page(9), src.page(9), PAGE_SIZE)
        (mapping,) = vmas_in(dst.address, dst.nbytes)
        assert mapping[:2] == (dst.address, dst.end)
        assert "uw" in flags_of(dst.address)

    def test_is_in_write_protect_mode_only(self, foreign):
        dst, src = foreign(2), foreign(2)
        src.fill()
        remap_anon_pages(dst.address, src.address, PAGE_SIZE)
        assert not {"um", "ui"} & flags_of(dst.address)

    def test_leaves_the_source_alone(self, foreign):
        dst, src = foreign(2), foreign(2)
        src.fill()
        before = flags_of(src.address)
        remap_anon_pages(dst.address, src.address, PAGE_SIZE)
        assert flags_of(src.address) == before

    def test_ordinary_faults_still_zero_fill(self, foreign):
        dst, src = foreign(5), foreign(5)
        src.fill()
        remap_anon_pages(dst.address, src.address, PAGE_SIZE)
        assert read(dst.page(1)) == zeros()
        at(dst.page(2), PAGE_SIZE)[5] = 1
        assert at(dst.page(2), PAGE_SIZE).sum() == 1
        with open("/dev/zero", "rb", buffering=0) as zero:
            assert zero.readinto(at(dst.page(3), PAGE_SIZE)) == PAGE_SIZE
        with open("/dev/null", "wb", buffering=0) as null:
            assert null.write(at(dst.page(4), PAGE_SIZE)) == PAGE_SIZE

    def test_memory_is_registered_from_the_start(self):
        with Memory(PAGE_SIZE) as memory:
            assert "uw" in flags_of(memory.address)
            assert not {"um", "ui"} & flags_of(memory.address)

    def test_is_not_repeated(self, foreign, monkeypatch):
        import pagemove.calls.mappings

        dst, src = foreign(3), foreign(3)
        src.fill()
        remap_anon_pages(dst.address, src.address, PAGE_SIZE)

        def register(address: int, length: int) -> None:
            raise AssertionError("registered again")

        monkeypatch.setattr(pagemove.calls.mappings, "register", register)
        assert remap_anon_pages(dst.page(1), src.page(1), 2 * PAGE_SIZE) == 2 * PAGE_SIZE

    def test_by_two_threads_at_once(self, foreign):
        for _ in range(20):
            dst, src = foreign(8), foreign(8)
            contents = src.fill()
            half = 4 * PAGE_SIZE
            calls = [(dst.page(first), src.page(first), half) for first in (0, 4)]
            moved = together(*(lambda call=call: remap_anon_pages(*call) for call in calls))
            assert moved == [half, half]
            assert dst.contents() == contents


class TestStaleMemory:
    """munmap, mremap and MAP_FIXED over a registered mapping lose its registration silently."""

    @pytest.fixture
    def known(self, foreign) -> tuple[Area, Area]:
        """A destination the library has moved a page into before; all holes again."""
        dst, src = foreign(4), foreign(4)
        src.fill()
        move_all(dst.address, src.address, dst.nbytes)
        dst.discard()
        src.fill()
        return dst, src

    def renewed(self, dst: Area, how: str) -> None:
        if how == "MAP_FIXED over it":
            lowlevel.mmap(dst.address, dst.nbytes, READ_WRITE, PRIVATE | MAP_FIXED)
        elif how == "munmap and mmap":
            lowlevel.munmap(dst.address, dst.nbytes)
            flags = PRIVATE | lowlevel.MAP_FIXED_NOREPLACE
            lowlevel.mmap(dst.address, dst.nbytes, READ_WRITE, flags)
        elif how == "mremap over it":
            fresh = lowlevel.mmap(0, dst.nbytes, READ_WRITE, PRIVATE)
            flags = lowlevel.MREMAP_MAYMOVE | lowlevel.MREMAP_FIXED
            lowlevel.mremap(fresh, dst.nbytes, dst.nbytes, flags, dst.address)
        elif how == "mremap away and back":
            other = lowlevel.mmap(0, dst.nbytes, READ_WRITE, PRIVATE)
            flags = lowlevel.MREMAP_MAYMOVE | lowlevel.MREMAP_FIXED
            lowlevel.mremap(dst.address, dst.nbytes, dst.nbytes, flags, other)
            lowlevel.mremap(other, dst.nbytes, dst.nbytes, flags, dst.address)
        assert "uw" not in flags_of(dst.address)

    HOW = ("MAP_FIXED over it", "munmap and mmap", "mremap over it", "mremap away and back")

    @GUARDS
    @pytest.mark.parametrize("how", HOW)
    @pytest.mark.parametrize("pages", [1, 4])
    @pytest.mark.parametrize("flags", [0, 1])
    def test_is_mended_unseen(self, known, guarded, how, pages, flags, guard):
        guarded(guard)
        dst, src = known
        self.renewed(dst, how)
        move_all(dst.address, src.address, pages * PAGE_SIZE, flags)
        assert "uw" in flags_of(dst.address)

    @pytest.mark.parametrize("how", HOW)
    def test_is_mended_by_move(self, known, how):
        dst, src = known
        self.renewed(dst, how)
        assert move(dst.array(), src.array()) == dst.nbytes

    @GUARDS
    @pytest.mark.parametrize("how", HOW)
    def test_is_mended_by_move_many(self, known, guarded, guard, how):
        guarded(guard)
        dst, src = known
        contents = src.contents()
        self.renewed(dst, how)
        pages = [3, 1, 2, 0]
        assert move_many(dst.array(), src.array(), pages, pages) == dst.nbytes
        assert dst.contents() == contents

    @pytest.mark.parametrize("guarded_kernel", [True, False])
    def test_of_a_part_is_mended_too(self, known, guarded, guarded_kernel):
        guarded(guarded_kernel)
        dst, src = known
        lowlevel.mmap(dst.page(2), PAGE_SIZE, READ_WRITE, PRIVATE | MAP_FIXED)
        for page in range(4):
            move_all(dst.page(page), src.page(page), PAGE_SIZE)

    def test_of_a_closed_memory_at_the_same_address(self):
        with Memory(PAGE_SIZE) as src:
            for _ in range(few(50, 10)):
                write(src.address, 3)
                with Memory(PAGE_SIZE) as dst:
                    move_all(dst.address, src.address, PAGE_SIZE)

    def test_of_an_unregistered_mapping(self, known):
        dst, src = known
        lowlevel.unregister(remap.descriptor(), dst.address, dst.nbytes)
        move_all(dst.address, src.address, dst.nbytes)

    def test_is_kept_across_a_discard(self, known):
        dst, src = known
        dst.discard()
        assert "uw" in flags_of(dst.address)
        move_all(dst.address, src.address, dst.nbytes)


def _filled(area: Area) -> Area:
    area.fill()
    return area


class TestDescriptor:
    """The userfaultfd of the process: its own, closed on exec, mended when somebody closes it."""

    def test_is_closed_on_exec(self):
        assert fcntl.fcntl(remap.descriptor(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        for name in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{name}")
            except OSError:
                continue
            if target == "anon_inode:[userfaultfd]" or target.endswith(("/pagemap", "/maps")):
                assert fcntl.fcntl(int(name), fcntl.F_GETFD) & fcntl.FD_CLOEXEC

    def test_is_one_for_the_process(self, foreign):
        before = remap.descriptor()
        with Memory(PAGE_SIZE):
            src, dst = foreign(), foreign()
            src.fill()
            remap_anon_pages(dst.address, src.address, PAGE_SIZE)
            assert remap.descriptor() == before
        assert _userfaultfds() == 1

    def use(self, dst: Area, src: Area) -> None:
        contents = src.fill()
        for page in range(0, 4, 2):
            move_all(dst.page(page), src.page(page), 2 * PAGE_SIZE)
        assert dst.contents() == contents

    @GUARDS
    @pytest.mark.parametrize("flags", [0, 1])
    def test_a_closed_descriptor_is_replaced(self, foreign, guarded, guard, flags):
        guarded(guard)
        dst, src = foreign(4), foreign(4)
        self.use(dst, src)
        os.close(remap.descriptor())
        dst.discard()
        src.fill()
        move_all(dst.address, src.address, dst.nbytes, flags)
        assert _userfaultfds() == 1

    @GUARDS
    def test_closed_and_its_number_reused_for_something_else(self, foreign, guarded, guard):
        guarded(guard)
        dst, src = foreign(4), foreign(4)
        self.use(dst, src)
        number = remap.descriptor()
        with open("/dev/zero", "rb", buffering=0) as zero:
            os.dup2(zero.fileno(), number)
            try:
                dst.discard()
                self.use(dst, src)
                assert os.readlink(f"/proc/self/fd/{number}") == "/dev/zero"
                assert os.pread(number, 2, 0) == b"\0\0"
            finally:
                os.close(number)
        dst.discard()
        self.use(dst, src)

    def test_closed_before_move_many(self, foreign):
        dst, src = foreign(4), foreign(4)
        contents = src.fill()
        os.close(remap.descriptor())
        assert move_many(dst.array(), src.array(), [0, 2, 1, 3], [0, 2, 1, 3]) == dst.nbytes
        assert dst.contents() == contents

    def test_closed_before_a_new_memory(self):
        os.close(remap.descriptor())
        with Memory(PAGE_SIZE) as dst, Memory(PAGE_SIZE) as src:
            write(src.address, 1)
            move_all(dst.address, src.address, PAGE_SIZE)

    @pytest.mark.needs("fork")
    def test_all_descriptors_closed_at_once(self):
        # In a child: a daemon closes everything it has inherited, the terminal as well.
        assert child(_close_everything_and_move) == 2 * PAGE_SIZE

    def test_closed_while_threads_move(self, foreign):
        for _ in range(10):
            areas = [(foreign(4), foreign(4)) for _ in range(2)]
            started = threading.Barrier(3)

            def bounce(dst: Area, src: Area, started: threading.Barrier = started) -> None:
                contents = src.fill()
                started.wait(20)
                for _ in range(50):
                    for page in range(4):
                        remap_anon_pages(dst.page(page), src.page(page), PAGE_SIZE)
                    dst, src = src, dst
                assert src.contents() == contents

            def close(started: threading.Barrier = started) -> None:
                number = remap.descriptor()
                started.wait(20)
                os.close(number)

            together(*(lambda a=a, run=bounce: run(*a) for a in areas), close)
            # Where the threads were through before it was closed, nobody has noticed yet.
            remap_anon_pages(
                *(area.address for area in (foreign(1), _filled(foreign(1)))), PAGE_SIZE
            )
        assert _userfaultfds() == 1

    def test_closed_between_the_move_and_the_registration(self, foreign, monkeypatch):
        import pagemove.calls.mappings

        look, looks = pagemove.calls.mappings.find_vma, []

        def find_vma(address: int) -> object:
            if not looks:
                os.close(remap.descriptor())
            looks.append(address)
            return look(address)

        monkeypatch.setattr(pagemove.calls.mappings, "find_vma", find_vma)
        dst, src = foreign(2), foreign(2)
        src.fill()
        move_all(dst.address, src.address, dst.nbytes)
        assert looks


def _is_userfaultfd(number: int) -> bool:
    try:
        return "userfaultfd" in os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return False


def _userfaultfds() -> int:
    return sum(_is_userfaultfd(int(name)) for name in os.listdir("/proc/self/fd"))


def _close_everything_and_move() -> int:
    keep = [int(fd) for fd in os.listdir("/proc/self/fd") if _is_pipe(int(fd))]
    for fd in range(3, 256):
        if fd not in keep:
            try:
                os.close(fd)
            except OSError:
                continue
    with Memory(2 * PAGE_SIZE) as dst, Memory(2 * PAGE_SIZE) as src:
        write_all(src.address, 2)
        moved = remap_anon_pages(dst.address, src.address, 2 * PAGE_SIZE)
        assert hole(src.address, 2)
        assert read(dst.address + PAGE_SIZE) == pattern(1)
        os.closerange(max(keep) + 1, 256)
        again = remap_anon_pages(src.address, dst.address, 2 * PAGE_SIZE, 1)
        assert again == moved
    return moved


def _is_pipe(fd: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:")
    except OSError:
        return False


def test_a_shadow_of_a_mapping_that_is_gone_moves_nothing(foreign):
    # Registered, then replaced by memory that is not to be moved into.
    dst, src = foreign(2), foreign(2)
    src.fill()
    remap_anon_pages(dst.address, src.address, PAGE_SIZE)
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_FIXED
    lowlevel.mmap(dst.address, dst.nbytes, READ_WRITE, flags)
    with pytest.raises(OSError, match="private anonymous") as caught:
        remap_anon_pages(dst.page(1), src.page(1), PAGE_SIZE)
    assert caught.value.errno == 22
    assert read(src.page(1)) == pattern(1)
    assert src.states()[1] & PageState.PRESENT
