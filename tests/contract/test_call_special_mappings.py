"""remap_anon_pages: EINVAL for memory that is not private anonymous."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import tempfile
from collections.abc import Callable

import pytest

from pagemove import PAGE_SIZE, RemapError, lowlevel, remap_anon_pages, vmas
from support import at, pattern, read, write
from support.foreign import READ_WRITE

from .checks import move_all, private_mmap, refuse

pytestmark = pytest.mark.needs("move")

_EINVAL = errno.EINVAL
_SHARED = mmap.MAP_SHARED
_MAP_HUGETLB = 0x40000


def _file_mapping(pages: int, flags: int) -> int:
    with tempfile.TemporaryFile() as file:
        file.truncate(pages * PAGE_SIZE)
        return lowlevel.mmap(0, pages * PAGE_SIZE, READ_WRITE, flags, file.fileno())


def _memfd_mapping(pages: int, flags: int) -> int:
    fd = os.memfd_create("pagemove")
    try:
        os.ftruncate(fd, pages * PAGE_SIZE)
        return lowlevel.mmap(0, pages * PAGE_SIZE, READ_WRITE, flags, fd)
    finally:
        os.close(fd)


def _hugetlb_mapping(pages: int, flags: int) -> int:
    # One page of it, whatever was asked: it is aligned like none of the others.
    return lowlevel.mmap(0, 2 << 20, READ_WRITE, flags | mmap.MAP_ANONYMOUS | _MAP_HUGETLB)


#: Memory that is not private anonymous: makes a mapping, gives its address.
SPECIAL: dict[str, Callable[[int], int]] = {
    "shared anonymous": lambda n: lowlevel.mmap(
        0, n * PAGE_SIZE, READ_WRITE, _SHARED | mmap.MAP_ANONYMOUS
    ),
    "file, shared": lambda n: _file_mapping(n, _SHARED),
    "file, private": lambda n: _file_mapping(n, mmap.MAP_PRIVATE),
    "memfd, shared": lambda n: _memfd_mapping(n, _SHARED),
    "memfd, private": lambda n: _memfd_mapping(n, mmap.MAP_PRIVATE),
    "hugetlb, private": lambda n: _hugetlb_mapping(n, mmap.MAP_PRIVATE),
    "hugetlb, shared": lambda n: _hugetlb_mapping(n, _SHARED),
}


def _special_kinds() -> list[object]:
    need = {"hugetlb": [pytest.mark.needs("hugetlb")]}
    return [pytest.param(kind, marks=need.get(kind.split(",")[0], [])) for kind in SPECIAL]


class TestSpecialMappings:
    """Shared, file-backed, hugetlb or special mapping on either side."""

    @contextlib.contextmanager
    def mapping(self, kind: str, pages: int):
        address = SPECIAL[kind](pages)
        length = 2 << 20 if kind.startswith("hugetlb") else pages * PAGE_SIZE
        try:
            yield address, length
        finally:
            lowlevel.munmap(address, length)

    @pytest.mark.parametrize("kind", _special_kinds())
    @pytest.mark.parametrize("flags", [0, 1])
    def test_as_the_source(self, foreign, kind, flags):
        with self.mapping(kind, 3) as (address, length):
            dst = foreign(length // PAGE_SIZE, align=2 << 20)
            for page in range(0, length, PAGE_SIZE):
                at(address + page, 8)[0] = 5
            message = refuse(_EINVAL, dst.address, address, length, flags, address=address)
            assert "private anonymous" in message

    @pytest.mark.parametrize("kind", _special_kinds())
    @pytest.mark.parametrize("flags", [0, 1])
    @pytest.mark.parametrize("populated", [True, False], ids=["pages", "holes"])
    def test_as_the_destination(self, foreign, kind, flags, populated):
        with self.mapping(kind, 3) as (address, length):
            src = foreign(length // PAGE_SIZE, align=2 << 20)
            if populated:
                src.fill()
            message = refuse(_EINVAL, address, src.address, length, flags, address=address)
            assert "private anonymous" in message

    @pytest.mark.parametrize("kind", ["file, private", "memfd, private"])
    def test_private_pages_of_a_file_are_not_moved_either(self, foreign, kind):
        with self.mapping(kind, 1) as (address, length):
            write(address, 3)
            refuse(_EINVAL, foreign().address, address, length, address=address)
            assert read(address) == pattern(3)

    @pytest.mark.parametrize("name", ["[vdso]", "[vvar]"])
    def test_what_the_kernel_itself_has_mapped(self, foreign, name):
        found = next((vma for vma in vmas() if vma.name == name), None)
        if found is None:
            pytest.skip(f"no {name}")
        src = foreign()
        src.fill()
        for dst, of in ((foreign().address, found.start), (found.start, src.address)):
            with pytest.raises(RemapError) as caught:
                remap_anon_pages(dst, of, PAGE_SIZE)
            assert caught.value.errno == _EINVAL
            assert caught.value.address == found.start

    def test_pythons_mmap_is_shared_by_default(self):
        with mmap.mmap(-1, PAGE_SIZE) as shared, private_mmap(1) as private:
            private[0] = 1
            for dst, src in ((shared, private), (private, shared)):
                with pytest.raises(RemapError) as caught:
                    remap_anon_pages(dst, src, PAGE_SIZE)
                assert caught.value.errno == _EINVAL
            assert private[0] == 1

    def test_a_private_mapping_of_dev_zero_is_anonymous_memory(self, foreign):
        fd = os.open("/dev/zero", os.O_RDWR)
        address = lowlevel.mmap(0, 2 * PAGE_SIZE, READ_WRITE, mmap.MAP_PRIVATE, fd)
        os.close(fd)
        other = foreign(2)
        contents = other.fill()
        try:
            move_all(address, other.address, 2 * PAGE_SIZE)
            other.discard()
            move_all(other.address, address, 2 * PAGE_SIZE)
            assert other.contents() == contents
        finally:
            lowlevel.munmap(address, 2 * PAGE_SIZE)
