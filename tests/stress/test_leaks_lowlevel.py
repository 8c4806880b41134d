"""Every raw call, made many times: nothing grows."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import pytest

from pagemove import PAGE_SIZE, lowlevel
from support import child

from .leaks import growth

pytestmark = pytest.mark.needs("move")

_RDWR = 3
_PRIVATE = 0x22
_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK | lowlevel.UFFD_USER_MODE_ONLY
_DONTNEED = 4
_MISSING_AND_WP = lowlevel.UFFDIO_REGISTER_MODE_MISSING | lowlevel.UFFDIO_REGISTER_MODE_WP


def _userfaultfd(wanted: int = 0) -> tuple[int, int]:
    """Open one with all that the kernel offers of `wanted`."""
    probe = lowlevel.userfaultfd(_FLAGS)
    offered, _ = lowlevel.api(probe)
    os.close(probe)
    fd = lowlevel.userfaultfd(_FLAGS)
    lowlevel.api(fd, offered & wanted)
    return fd, offered


def _each(offered: int, fd: int, src: int, dst: int) -> None:
    """Each ioctl, where it works and where it does not."""
    page = PAGE_SIZE
    lowlevel.copy(fd, dst, src, page)
    lowlevel.writeprotect(fd, dst, page, lowlevel.UFFDIO_WRITEPROTECT_MODE_WP)
    lowlevel.writeprotect(fd, dst, page, 0)
    lowlevel.zeropage(fd, dst + page, page)
    lowlevel.move(fd, dst + 2 * page, src, page)
    if offered & lowlevel.UFFD_FEATURE_POISON:
        lowlevel.poison(fd, dst + 3 * page, page)
    lowlevel.wake(fd, dst, page)
    assert lowlevel.read_events(fd) == []
    for between in (lowlevel.copy, lowlevel.move):
        with pytest.raises(OSError, match="UFFDIO"):
            between(fd, dst, src, page)
    for within in (lowlevel.zeropage, lowlevel.continue_, lowlevel.poison):
        with pytest.raises(OSError, match="UFFDIO"):
            within(fd, dst, page)
    with pytest.raises(OSError, match="UFFDIO_REGISTER"):
        lowlevel.register(fd, 1, page, _MISSING_AND_WP)
    with pytest.raises(ValueError, match="most"):
        lowlevel.read_events(fd, 0)


def _all_calls() -> None:
    page, src = PAGE_SIZE, lowlevel.mmap(0, 8 * PAGE_SIZE, _RDWR, _PRIVATE)
    dst = src + 4 * page
    fd, offered = _userfaultfd()
    try:
        lowlevel.madvise(src, page, lowlevel.MADV_POPULATE_WRITE)
        lowlevel.register(fd, dst, 4 * page, _MISSING_AND_WP)
        _each(offered, fd, src, dst)
        lowlevel.unregister(fd, dst, 4 * page)
        lowlevel.madvise(dst, 4 * page, _DONTNEED)
        assert len(lowlevel.mincore(src, 8 * page)) == 8
        with open("/proc/self/pagemap", "rb") as pagemap:
            lowlevel.pagemap_scan(pagemap.fileno(), src, dst, lowlevel.PAGE_IS_PRESENT)
        with contextlib.suppress(OSError):  # a kernel without names
            lowlevel.set_vma_name(src, page, b"leak")
        lowlevel.mprotect(src, 4 * page, 1)
        with pytest.raises(OSError, match="mprotect"):
            lowlevel.mprotect(1, page, 1)
    finally:
        os.close(fd)
        flags = lowlevel.MREMAP_MAYMOVE
        lowlevel.munmap(lowlevel.mremap(dst, 4 * page, 8 * page, flags), 8 * page)
        lowlevel.munmap(src, 4 * page)
    with contextlib.suppress(OSError), open("/dev/userfaultfd", "rb") as device:
        os.close(lowlevel.userfaultfd_new(device.fileno(), _FLAGS))
    with pytest.raises(OSError, match="mmap"):
        lowlevel.mmap(0, 0, _RDWR, _PRIVATE)


def test_nothing_grows() -> None:
    assert child(growth, _all_calls, deadline=60) == {}


def test_every_raw_call_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    public = {name for name in lowlevel.__all__ if callable(getattr(lowlevel, name))}
    made: set[str] = set()

    def watched(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def watching(*arguments: object) -> object:
            made.add(name)
            return call(*arguments)

        return watching

    for name in public:
        monkeypatch.setattr(lowlevel, name, watched(name, getattr(lowlevel, name)))
    _all_calls()
    assert made >= public - {"userfaultfd_new", "poison"}
