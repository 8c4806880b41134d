"""lowlevel: the raw calls under their own names; integers in, integers out, OSError."""

from __future__ import annotations

import errno
import mmap
import os

import pytest

from pagemove import PAGE_SIZE, PageState, lowlevel
from support import Area, ChildFailed, child, hole, living_child, pattern, read, state, write
from support.foreign import PRIVATE, READ_WRITE

from .checks import zeros

pytestmark = pytest.mark.needs("userfaultfd_missing")

FLAGS = os.O_CLOEXEC | os.O_NONBLOCK | lowlevel.UFFD_USER_MODE_ONLY
MISSING = lowlevel.UFFDIO_REGISTER_MODE_MISSING
WP = lowlevel.UFFDIO_REGISTER_MODE_WP


@pytest.fixture
def fd():
    number = lowlevel.userfaultfd(FLAGS)
    lowlevel.api(number)
    yield number
    os.close(number)


@pytest.fixture
def area(foreign, fd) -> Area:
    """Four pages whose missing pages are for `fd` to supply."""
    made = foreign(4)
    lowlevel.register(fd, made.address, made.nbytes, MISSING)
    return made


def test_every_name_is_there():
    for name in lowlevel.__all__:
        assert hasattr(lowlevel, name)
    wanted = {
        "userfaultfd", "register", "copy", "move", "zeropage", "wake", "writeprotect", "poison",
        "read_events", "api", "unregister",
    }  # fmt: skip
    assert wanted <= set(lowlevel.__all__)


class TestUserfaultfd:
    def test_gives_a_descriptor(self):
        number = lowlevel.userfaultfd(FLAGS)
        assert os.readlink(f"/proc/self/fd/{number}") == "anon_inode:[userfaultfd]"
        os.close(number)

    def test_unknown_flags(self):
        with pytest.raises(OSError, match="userfaultfd") as caught:
            lowlevel.userfaultfd(1 << 30)
        assert caught.value.errno == errno.EINVAL

    def test_api_gives_features_and_ioctls(self):
        number = lowlevel.userfaultfd(FLAGS)
        features, ioctls = lowlevel.api(number)
        assert type(features) is int
        assert features & lowlevel.UFFD_FEATURE_PAGEFAULT_FLAG_WP
        assert ioctls & 1 << 0x00  # _UFFDIO_REGISTER
        os.close(number)

    def test_api_with_a_feature_that_is_not_known(self):
        number = lowlevel.userfaultfd(FLAGS)
        with pytest.raises(OSError, match="UFFDIO_API") as caught:
            lowlevel.api(number, 1 << 62)
        assert caught.value.errno == errno.EINVAL
        os.close(number)

    def test_a_descriptor_that_is_none(self):
        for call in (
            lambda: lowlevel.api(-1),
            lambda: lowlevel.register(-1, 0, PAGE_SIZE, WP),
            lambda: lowlevel.copy(-1, 0, 0, PAGE_SIZE),
            lambda: lowlevel.move(-1, 0, 0, PAGE_SIZE),
            lambda: lowlevel.read_events(-1),
        ):
            with pytest.raises(OSError, match="Bad file descriptor") as caught:
                call()
            assert caught.value.errno == errno.EBADF


class TestRegister:
    def test_gives_the_ioctls_of_the_range(self, fd, foreign):
        made = foreign(2)
        ioctls = lowlevel.register(fd, made.address, made.nbytes, MISSING | WP)
        for number in (0x02, 0x03, 0x04, 0x06):  # WAKE, COPY, ZEROPAGE, WRITEPROTECT
            assert ioctls & 1 << number

    def test_wrong_ranges(self, fd, foreign):
        made = foreign(2)
        for start, length, mode in (
            (made.address + 1, PAGE_SIZE, WP),
            (made.address, 0, WP),
            (made.address, PAGE_SIZE, 0),
            (made.address, PAGE_SIZE, 1 << 40),
        ):
            with pytest.raises(OSError, match="UFFDIO_REGISTER") as caught:
                lowlevel.register(fd, start, length, mode)
            assert caught.value.errno == errno.EINVAL

    def test_unregister_gives_zero_pages_again(self, fd, area):
        lowlevel.unregister(fd, area.address, area.nbytes)
        assert area.contents() == zeros(4)


class TestFilling:
    def test_copy(self, fd, area, foreign):
        source = foreign(2)
        contents = source.fill()
        assert lowlevel.copy(fd, area.page(1), source.address, source.nbytes) == 2 * PAGE_SIZE
        assert read(area.page(1), 2 * PAGE_SIZE) == contents
        with pytest.raises(OSError, match="UFFDIO_COPY") as caught:
            lowlevel.copy(fd, area.page(2), source.address, PAGE_SIZE)
        assert caught.value.errno == errno.EEXIST

    def test_copy_gives_a_short_count(self, fd, area, foreign):
        source = foreign(4)
        source.fill()
        lowlevel.copy(fd, area.page(2), source.page(2), PAGE_SIZE)
        assert lowlevel.copy(fd, area.address, source.address, area.nbytes) == 2 * PAGE_SIZE

    @pytest.mark.needs("pagemap_scan")
    def test_zeropage(self, fd, area):
        assert lowlevel.zeropage(fd, area.address, 3 * PAGE_SIZE) == 3 * PAGE_SIZE
        assert [bool(s & PageState.ZERO) for s in area.states()] == [True] * 3 + [False]
        assert read(area.address) == zeros()

    @pytest.mark.needs("move")
    def test_move(self, fd, area, foreign):
        source = foreign(2)
        contents = source.fill()
        assert lowlevel.move(fd, area.address, source.address, source.nbytes) == source.nbytes
        assert hole(source.address, 2)
        assert read(area.address, 2 * PAGE_SIZE) == contents
        for to, code in ((area.address, errno.EEXIST), (area.page(2), errno.ENOENT)):
            with pytest.raises(OSError, match="UFFDIO_MOVE") as caught:
                lowlevel.move(fd, to, source.address, PAGE_SIZE)
            assert caught.value.errno == code

    @pytest.mark.needs("move")
    def test_move_gives_a_short_count(self, fd, area, foreign):
        source = foreign(4)
        source.fill()
        source.discard(3, 1)
        assert lowlevel.move(fd, area.address, source.address, area.nbytes) == 3 * PAGE_SIZE

    @pytest.mark.needs("poison", "fork")
    def test_poison(self, fd, area):
        assert lowlevel.poison(fd, area.page(1), PAGE_SIZE) == PAGE_SIZE
        lowlevel.unregister(fd, area.address, area.nbytes)
        with pytest.raises(ChildFailed) as caught:
            child(read, area.page(1))
        assert caught.value.signal == 7  # SIGBUS
        area.discard(1, 1)
        assert read(area.page(1)) == zeros()


class TestWriteprotect:
    def test_protects_and_releases(self, fd, foreign):
        made = foreign(2)
        contents = made.fill()
        lowlevel.register(fd, made.address, made.nbytes, WP)
        lowlevel.writeprotect(fd, made.address, PAGE_SIZE, lowlevel.UFFDIO_WRITEPROTECT_MODE_WP)
        assert state(made.address) & PageState.WRITE_PROTECTED
        assert made.contents() == contents
        lowlevel.writeprotect(fd, made.address, PAGE_SIZE, 0)
        write(made.address, 9)
        assert read(made.address) == pattern(9)


@pytest.mark.needs("fork")
class TestEvents:
    """Faults served from another process, which holds no lock of this interpreter's."""

    def test_nothing_to_read(self, fd, area):
        assert lowlevel.read_events(fd) == []

    @pytest.mark.parametrize("most", [0, -1, 65, 1000])
    def test_how_many_at_most(self, fd, most):
        with pytest.raises(ValueError, match="most"):
            lowlevel.read_events(fd, most)

    def test_a_fault_waits_for_copy(self, fd, area):
        with living_child(_serve_copy, fd) as one:
            assert read(area.page(2)) == pattern(5)
            event, flags, address = one.result()
        assert event == lowlevel.UFFD_EVENT_PAGEFAULT
        assert flags == 0
        assert address == area.page(2)

    def test_a_write_fault_says_so(self, fd, area):
        with living_child(_serve_copy, fd) as one:
            write(area.page(1), 6)
            event, flags, address = one.result()
        assert (event, address) == (lowlevel.UFFD_EVENT_PAGEFAULT, area.page(1))
        assert flags & lowlevel.UFFD_PAGEFAULT_FLAG_WRITE
        assert read(area.page(1)) == pattern(6)

    def test_wake_after_a_copy_that_wakes_nobody(self, fd, area):
        with living_child(_serve_copy_then_wake, fd) as one:
            assert read(area.page(3)) == pattern(5)
            one.result()

    def test_a_write_to_a_protected_page(self, fd, foreign):
        made = foreign(1)
        made.fill()
        lowlevel.register(fd, made.address, PAGE_SIZE, WP)
        lowlevel.writeprotect(fd, made.address, PAGE_SIZE, 1)
        with living_child(_release, fd) as one:
            write(made.address, 8)
            _, flags, address = one.result()
        assert flags & lowlevel.UFFD_PAGEFAULT_FLAG_WP
        assert address == made.address
        assert read(made.address) == pattern(8)


def _wait(fd: int) -> tuple[int, int, int]:
    """Wait for one event."""
    os.set_blocking(fd, True)
    ((event, flags, address, _),) = lowlevel.read_events(fd, 1)
    return event, flags, address & -PAGE_SIZE


def _filled_page() -> int:
    source = lowlevel.mmap(0, PAGE_SIZE, READ_WRITE, PRIVATE)
    write(source, 5)
    return source


def _serve_copy(fd: int) -> tuple[int, int, int]:
    found = _wait(fd)
    lowlevel.copy(fd, found[2], _filled_page(), PAGE_SIZE)
    return found


def _serve_copy_then_wake(fd: int) -> None:
    _, _, address = _wait(fd)
    lowlevel.copy(fd, address, _filled_page(), PAGE_SIZE, lowlevel.UFFDIO_COPY_MODE_DONTWAKE)
    lowlevel.wake(fd, address, PAGE_SIZE)


def _release(fd: int) -> tuple[int, int, int]:
    found = _wait(fd)
    lowlevel.writeprotect(fd, found[2], PAGE_SIZE, 0)
    return found


class TestMappings:
    def test_mmap_mprotect_madvise_munmap(self):
        address = lowlevel.mmap(0, 2 * PAGE_SIZE, READ_WRITE, PRIVATE)
        write(address, 1)
        lowlevel.mprotect(address, PAGE_SIZE, mmap.PROT_READ)
        assert lowlevel.mincore(address, 2 * PAGE_SIZE) == b"\1\0"
        lowlevel.mprotect(address, PAGE_SIZE, READ_WRITE)
        lowlevel.madvise(address, PAGE_SIZE, mmap.MADV_DONTNEED)
        assert lowlevel.mincore(address, PAGE_SIZE) == b"\0"
        other = lowlevel.mremap(address, 2 * PAGE_SIZE, 4 * PAGE_SIZE, lowlevel.MREMAP_MAYMOVE)
        lowlevel.munmap(other, 4 * PAGE_SIZE)
        for call in (
            lambda: lowlevel.mincore(other, PAGE_SIZE),
            lambda: lowlevel.mprotect(other, PAGE_SIZE, READ_WRITE),
            lambda: lowlevel.madvise(other, PAGE_SIZE, mmap.MADV_DONTNEED),
        ):
            with pytest.raises(OSError, match="Cannot allocate") as caught:
                call()
            assert caught.value.errno == errno.ENOMEM

    def test_arguments_that_make_no_sense(self):
        for call in (
            lambda: lowlevel.mmap(1, PAGE_SIZE, READ_WRITE, PRIVATE | 0x10),
            lambda: lowlevel.munmap(1, PAGE_SIZE),
            lambda: lowlevel.madvise(0, PAGE_SIZE, 12345),
        ):
            with pytest.raises(OSError, match="Invalid argument") as caught:
                call()
            assert caught.value.errno == errno.EINVAL

    @pytest.mark.needs("pagemap_scan")
    def test_pagemap_scan(self, foreign):
        made = foreign(6)
        for page in (1, 2, 4):
            write(made.page(page), page)
        with open("/proc/self/pagemap", "rb") as pagemap:
            found = lowlevel.pagemap_scan(
                pagemap.fileno(), made.address, made.end, lowlevel.PAGE_IS_PRESENT
            )
        assert [(start, end) for start, end, _ in found] == [
            (made.page(1), made.page(3)),
            (made.page(4), made.page(5)),
        ]


@pytest.mark.parametrize("wrong", [None, "0", 1.5, -1, 2**64, b"x"], ids=repr)
def test_anything_but_integers_in_range_is_refused(wrong):
    for call in (
        lambda: lowlevel.userfaultfd(wrong if wrong != -1 else 2**40),
        lambda: lowlevel.register(-1, wrong, PAGE_SIZE, WP),
        lambda: lowlevel.move(-1, 0, wrong, PAGE_SIZE),
        lambda: lowlevel.madvise(wrong, PAGE_SIZE, mmap.MADV_DONTNEED),
    ):
        with pytest.raises((TypeError, OverflowError)):
            call()
