"""remap_anon_pages: the rows of the errno table that say EINVAL."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import tempfile
from collections.abc import Callable

import pytest

from pagemove import PAGE_SIZE, PageState, RemapError, lowlevel, remap_anon_pages, vmas
from support import Area, at, hole, pattern, read, read_all, write, write_all
from support.foreign import PRIVATE, PROT_NONE, READ_WRITE
from support.system import mlock, munlock

from .checks import move_all, private_mmap, refuse

pytestmark = pytest.mark.needs("move")

_EINVAL = errno.EINVAL
_SHARED = mmap.MAP_SHARED
_MAP_HUGETLB = 0x40000
_WHOLE_SPACE = 2**64


@pytest.fixture
def pair(foreign) -> tuple[Area, Area]:
    """A destination of holes and a source of pages: a move between them works."""
    dst, src = foreign(4), foreign(4)
    src.fill()
    return dst, src


class TestArguments:
    """Address or length not page aligned; length 0; wrap-around; unknown flag bits."""

    def refused(self, pair: tuple[Area, Area], *arguments: int) -> RemapError:
        dst, src = pair
        with pytest.raises(RemapError) as caught:
            remap_anon_pages(*arguments)
        assert caught.value.errno == _EINVAL
        assert type(caught.value) is RemapError
        assert caught.value.moved == 0
        assert str(caught.value).startswith("[Errno 22] remap_anon_pages: ")
        assert hole(dst.address, 4)
        assert src.contents() == b"".join(map(pattern, range(4)))
        return caught.value

    @pytest.mark.parametrize("offset", [1, 8, 2048, PAGE_SIZE - 1])
    @pytest.mark.parametrize("pages", [1, 3])
    def test_unaligned_destination(self, pair, offset, pages):
        dst, src = pair
        error = self.refused(pair, dst.address + offset, src.address, pages * PAGE_SIZE)
        assert error.address == dst.address + offset
        assert f"{dst.address + offset:#x} is not page aligned" in str(error)

    @pytest.mark.parametrize("offset", [1, 8, 2048, PAGE_SIZE - 1])
    @pytest.mark.parametrize("pages", [1, 3])
    def test_unaligned_source(self, pair, offset, pages):
        dst, src = pair
        error = self.refused(pair, dst.address, src.address + offset, pages * PAGE_SIZE)
        assert error.address == src.address + offset
        assert f"{src.address + offset:#x} is not page aligned" in str(error)

    @pytest.mark.parametrize("length", [1, PAGE_SIZE - 1, PAGE_SIZE + 1, 3 * PAGE_SIZE + 8])
    def test_unaligned_length(self, pair, length):
        error = self.refused(pair, pair[0].address, pair[1].address, length)
        assert f"length {length} " in str(error)

    @pytest.mark.parametrize("length", [0, -1, -PAGE_SIZE, -(2**63), -(2**64)])
    def test_length_zero_or_less(self, pair, length):
        error = self.refused(pair, pair[0].address, pair[1].address, length)
        assert f"length {length} " in str(error)

    @pytest.mark.parametrize(
        "length", [2**63, _WHOLE_SPACE - PAGE_SIZE, _WHOLE_SPACE, _WHOLE_SPACE + PAGE_SIZE, 2**80]
    )
    def test_length_that_wraps_around(self, pair, length):
        self.refused(pair, pair[0].address, pair[1].address, length)

    @pytest.mark.parametrize("side", [0, 1], ids=["destination", "source"])
    @pytest.mark.parametrize(
        "address",
        [_WHOLE_SPACE - PAGE_SIZE, _WHOLE_SPACE, _WHOLE_SPACE + PAGE_SIZE, 2**80, -PAGE_SIZE],
        ids=hex,
    )
    def test_address_that_wraps_around(self, pair, side, address):
        addresses = [area.address for area in pair]
        addresses[side] = address
        self.refused(pair, *addresses, 2 * PAGE_SIZE)

    @pytest.mark.parametrize("flags", [2, 3, 4, 8, 1 << 31, 1 << 32, 1 << 63, 2**64 + 1, -1])
    def test_unknown_flag_bits(self, pair, flags):
        error = self.refused(pair, pair[0].address, pair[1].address, PAGE_SIZE, flags)
        assert "flag" in str(error)

    def test_the_kernels_own_value_of_the_flag_is_unknown_here(self, pair):
        flag = lowlevel.UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES
        self.refused(pair, pair[0].address, pair[1].address, PAGE_SIZE, flag)

    @pytest.mark.parametrize("address", [0, PAGE_SIZE, 1 << 46, (1 << 47) - PAGE_SIZE], ids=hex)
    @pytest.mark.parametrize("side", [0, 1], ids=["destination", "source"])
    def test_an_aligned_address_where_nothing_is(self, pair, side, address):
        addresses = [area.address for area in pair]
        addresses[side] = address
        error = self.refused(pair, *addresses, PAGE_SIZE)
        assert error.address == address
        assert "not mapped" in str(error)


class TestOverlap:
    """Destination starts inside the source range: the kernel would scramble pages."""

    @pytest.mark.parametrize(
        ("distance", "pages"), [(1, 2), (1, 3), (2, 3), (3, 4), (1, 40), (39, 40)]
    )
    @pytest.mark.parametrize("flags", [0, 1])
    def test_forward_overlap(self, foreign, distance, pages, flags):
        area = foreign(pages + distance)
        write_all(area.address, pages)
        error = refuse(
            _EINVAL, area.page(distance), area.address, pages * PAGE_SIZE, flags,
            address=area.page(distance),
        )  # fmt: skip
        assert "inside the source" in error

    @pytest.mark.parametrize("flags", [0, 1])
    def test_forward_overlap_with_holes(self, foreign, flags):
        area = foreign(6)
        write(area.page(1), 1)
        refuse(_EINVAL, area.page(2), area.address, 3 * PAGE_SIZE, flags)

    @pytest.mark.parametrize("pages", [1, 3, 40])
    @pytest.mark.parametrize("flags", [0, 1])
    def test_destination_is_the_source(self, foreign, pages, flags):
        area = foreign(pages)
        area.fill()
        refuse(_EINVAL, area.address, area.address, area.nbytes, flags, address=area.address)

    def test_ranges_that_touch_do_not_overlap(self, foreign):
        area = foreign(4)
        write_all(area.address, 2)
        move_all(area.page(2), area.address, 2 * PAGE_SIZE)


class TestNotMapped:
    """Source or destination not mapped at all, or not inside one VMA."""

    @pytest.mark.parametrize("unmapped", [0, 1], ids=["destination", "source"])
    @pytest.mark.parametrize("flags", [0, 1])
    @pytest.mark.parametrize("pages", [1, 20])
    def test_not_mapped_at_all(self, foreign, unmapped, flags, pages):
        sides = [foreign(pages), foreign(pages)]
        sides[1].fill()
        sides[unmapped].unmap()
        address = sides[unmapped].address
        message = refuse(
            _EINVAL, sides[0].address, sides[1].address, sides[0].nbytes, flags, address=address
        )
        assert "not mapped" in message

    @pytest.mark.parametrize("short", [0, 1], ids=["destination", "source"])
    @pytest.mark.parametrize("flags", [0, 1])
    @pytest.mark.parametrize("pages", [4, 24])
    def test_the_end_is_not_mapped(self, foreign, short, flags, pages):
        sides = [foreign(pages), foreign(pages)]
        sides[1].fill()
        cut = sides[short].page(pages - 1)
        sides[short].unmap(pages - 1)
        message = refuse(
            _EINVAL, sides[0].address, sides[1].address, sides[0].nbytes, flags, address=cut
        )
        assert "one mapping" in message

    @pytest.mark.parametrize("split", [0, 1], ids=["destination", "source"])
    @pytest.mark.parametrize("flags", [0, 1])
    @pytest.mark.parametrize("populated", [True, False], ids=["pages", "holes"])
    def test_two_neighbouring_mappings(self, foreign, split, flags, populated):
        sides = [foreign(4), foreign(4)]
        if populated:
            sides[1].fill()
        sides[split].advise(mmap.MADV_DONTFORK, 2, 2)
        border = sides[split].page(2)
        refuse(_EINVAL, sides[0].address, sides[1].address, 4 * PAGE_SIZE, flags, address=border)

    def test_each_part_of_two_mappings_moves(self, foreign):
        dst, src = foreign(4), foreign(4)
        src.fill()
        src.advise(mmap.MADV_DONTFORK, 2, 2)
        for half in (0, 2):
            move_all(dst.page(half), src.page(half), 2 * PAGE_SIZE)

    @pytest.mark.parametrize("flags", [0, 1])
    def test_a_hole_before_the_end_of_the_mapping_does_not_hide_it(self, foreign, flags):
        # The kernel would stop at the hole and never see that the rest is not mapped.
        dst, src = foreign(3), foreign(4)
        write(src.address, 1)
        refuse(_EINVAL, dst.address, src.address, 4 * PAGE_SIZE, flags, address=dst.end)

    def test_a_gap_of_reserved_addresses(self, foreign):
        dst, src = foreign(2), foreign(2)
        src.fill()
        refuse(_EINVAL, dst.end, src.address, PAGE_SIZE, address=dst.end)
        refuse(_EINVAL, dst.address, src.end, PAGE_SIZE, address=src.end)


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


class TestProtections:
    """Protections differ, either side not writable, or exactly one side mlocked."""

    @pytest.mark.parametrize(
        ("protection", "writable"),
        [
            (PROT_NONE, False),
            (mmap.PROT_READ, False),
            (mmap.PROT_READ | mmap.PROT_EXEC, False),
            (mmap.PROT_EXEC, False),
            (mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC, True),
        ],
        ids=["none", "read", "read execute", "execute", "read write execute"],
    )
    @pytest.mark.parametrize("which", [0, 1], ids=["destination", "source"])
    @pytest.mark.parametrize("flags", [0, 1])
    def test_differ(self, pair, which, protection, writable, flags):
        address = pair[which].address
        lowlevel.mprotect(address, pair[which].nbytes, protection)
        with pytest.raises(RemapError) as caught:
            remap_anon_pages(pair[0].address, pair[1].address, 4 * PAGE_SIZE, flags)
        error = caught.value
        assert error.errno == _EINVAL
        assert ("differ" if writable else "not writable") in str(error)
        assert error.address == (pair[0].address if writable else address)
        lowlevel.mprotect(address, pair[which].nbytes, READ_WRITE)
        assert hole(pair[0].address, 4)
        assert pair[1].contents() == b"".join(map(pattern, range(4)))

    def test_neither_writable(self, pair):
        for area in pair:
            lowlevel.mprotect(area.address, area.nbytes, mmap.PROT_READ)
        refuse(_EINVAL, pair[0].address, pair[1].address, PAGE_SIZE, address=pair[0].address)

    def test_both_writable_and_executable_move(self, foreign):
        protection = READ_WRITE | mmap.PROT_EXEC
        dst, src = foreign(2, protection=protection), foreign(2, protection=protection)
        src.fill()
        move_all(dst.address, src.address, 2 * PAGE_SIZE)

    def test_a_registration_survives_mprotect(self, pair):
        dst, src = pair
        move_all(dst.address, src.address, PAGE_SIZE)
        lowlevel.mprotect(dst.address, dst.nbytes, mmap.PROT_READ)
        refuse(_EINVAL, dst.page(1), src.page(1), PAGE_SIZE)
        lowlevel.mprotect(dst.address, dst.nbytes, READ_WRITE)
        move_all(dst.page(1), src.page(1), PAGE_SIZE)


class TestLocked:
    """Exactly one side mlocked is EINVAL; both sides move."""

    @pytest.mark.parametrize("which", [0, 1], ids=["destination", "source"])
    @pytest.mark.parametrize("flags", [0, 1])
    def test_one_side_locked(self, pair, which, flags):
        mlock(pair[which].address, pair[which].nbytes, on_fault=True)
        message = refuse(
            _EINVAL, pair[0].address, pair[1].address, 4 * PAGE_SIZE, flags,
            address=pair[which].address,
        )  # fmt: skip
        assert "mlock" in message
        munlock(pair[which].address, pair[which].nbytes)
        move_all(pair[0].address, pair[1].address, 4 * PAGE_SIZE)

    def test_both_locked_on_fault_move(self, pair):
        for area in pair:
            mlock(area.address, area.nbytes, on_fault=True)
        move_all(pair[0].address, pair[1].address, 4 * PAGE_SIZE)

    def test_mlock_populates_the_destination(self, pair):
        for area in pair:
            mlock(area.address, area.nbytes)
        assert all(state & PageState.PRESENT for state in pair[0].states())
        refuse(errno.EEXIST, pair[0].address, pair[1].address, PAGE_SIZE, address=pair[0].address)


class TestSomebodyElsesUserfaultfd:
    """Destination registered with somebody else's userfaultfd: EINVAL, saying so."""

    @pytest.fixture
    def other(self):
        fd = lowlevel.userfaultfd(os.O_CLOEXEC | os.O_NONBLOCK | lowlevel.UFFD_USER_MODE_ONLY)
        lowlevel.api(fd)
        yield fd
        os.close(fd)

    @pytest.mark.parametrize(
        "mode",
        [lowlevel.UFFDIO_REGISTER_MODE_WP, lowlevel.UFFDIO_REGISTER_MODE_MISSING],
        ids=["write-protect", "missing"],
    )
    @pytest.mark.parametrize("flags", [0, 1])
    @pytest.mark.parametrize("pages", [1, 4])
    def test_the_destination(self, pair, other, mode, flags, pages):
        dst, src = pair
        lowlevel.register(other, dst.address, dst.nbytes, mode)
        message = refuse(
            _EINVAL, dst.address, src.address, pages * PAGE_SIZE, flags, address=dst.address
        )
        assert "somebody else's userfaultfd" in message
        lowlevel.unregister(other, dst.address, dst.nbytes)
        move_all(dst.address, src.address, pages * PAGE_SIZE)

    def test_the_destination_after_it_was_ours(self, pair, other):
        dst, src = pair
        move_all(dst.address, src.address, PAGE_SIZE)
        lowlevel.mmap(dst.address, dst.nbytes, READ_WRITE, PRIVATE | 0x10)  # MAP_FIXED
        lowlevel.register(other, dst.address, dst.nbytes, lowlevel.UFFDIO_REGISTER_MODE_WP)
        refuse(_EINVAL, dst.page(1), src.page(1), PAGE_SIZE, address=dst.page(1))

    def test_the_source_may_be_theirs(self, pair, other):
        dst, src = pair
        lowlevel.register(other, src.address, src.nbytes, lowlevel.UFFDIO_REGISTER_MODE_WP)
        contents = src.contents()
        assert remap_anon_pages(dst.address, src.address, 4 * PAGE_SIZE) == 4 * PAGE_SIZE
        assert read_all(dst.address, 4) == contents

    def test_their_part_of_a_mapping_is_a_mapping_of_its_own(self, foreign, other):
        dst, src = foreign(4), foreign(4)
        src.fill()
        lowlevel.register(other, dst.page(2), 2 * PAGE_SIZE, lowlevel.UFFDIO_REGISTER_MODE_WP)
        move_all(dst.address, src.address, 2 * PAGE_SIZE)
        refuse(_EINVAL, dst.page(2), src.page(2), PAGE_SIZE, address=dst.page(2))
        refuse(_EINVAL, dst.address, src.page(2), 3 * PAGE_SIZE)


class TestOrderOfChecks:
    """Arguments, mappings, then page by page destination, source, EBUSY."""

    def test_arguments_before_mappings(self, pair):
        dst, src = pair
        src.unmap()
        with pytest.raises(RemapError, match="not page aligned"):
            remap_anon_pages(dst.address, src.address + 8, PAGE_SIZE)
        with pytest.raises(RemapError, match="flag"):
            remap_anon_pages(dst.address, src.address, PAGE_SIZE, 4)

    def test_mappings_before_an_occupied_destination(self, pair):
        dst, src = pair
        dst.fill()
        lowlevel.mprotect(src.address, src.nbytes, mmap.PROT_READ)
        refuse(_EINVAL, dst.address, src.address, PAGE_SIZE, address=src.address)

    @pytest.mark.parametrize("flags", [0, 1])
    def test_mappings_before_a_hole_in_the_source(self, pair, flags):
        dst, src = pair
        src.discard()
        mlock(dst.address, dst.nbytes, on_fault=True)
        refuse(_EINVAL, dst.address, src.address, PAGE_SIZE, flags, address=dst.address)

    @pytest.mark.parametrize("flags", [0, 1])
    def test_mappings_before_pages_also_where_the_move_would_stop_early(self, pair, flags):
        dst, src = pair
        src.discard(1, 1)
        dst.unmap(3)
        refuse(_EINVAL, dst.address, src.address, 4 * PAGE_SIZE, flags, address=dst.page(3))
