"""remap_anon_pages: EINVAL for mappings between which nothing can be moved."""

from __future__ import annotations

import errno
import mmap
import os

import pytest

from pagemove import PAGE_SIZE, PageState, RemapError, lowlevel, remap_anon_pages
from support import Area, hole, pattern, read_all, write
from support.foreign import PRIVATE, PROT_NONE, READ_WRITE
from support.system import mlock, munlock

from .checks import move_all, refuse

pytestmark = pytest.mark.needs("move")

_EINVAL = errno.EINVAL


@pytest.fixture
def pair(area) -> tuple[Area, Area]:
    """A destination of holes and a source of pages: a move between them works."""
    dst, src = area(4), area(4)
    src.fill()
    return dst, src


class TestNotMapped:
    """Source or destination not mapped at all, or not inside one VMA."""

    @pytest.mark.parametrize("unmapped", [0, 1], ids=["destination", "source"])
    @pytest.mark.parametrize("flags", [0, 1])
    @pytest.mark.parametrize("pages", [1, 20])
    def test_not_mapped_at_all(self, area, unmapped, flags, pages):
        sides = [area(pages), area(pages)]
        sides[1].fill()
        sides[unmapped].unmap()
        address = sides[unmapped].address
        message = refuse(
            _EINVAL, sides[0].address, sides[1].address, sides[0].nbytes, flags, address=address
        )
        assert "not mapped" in message

    @pytest.mark.parametrize("unmapped", [0, 1], ids=["destination", "source"])
    def test_nothing_but_holes_where_the_kernel_alone_is_asked(self, area, guarded, unmapped):
        """It says of a hole what it says of an address where nothing is mapped."""
        guarded(False)
        sides = [area(4), area(4)]
        sides[unmapped].unmap()
        dst, src = sides
        refuse(_EINVAL, dst.address, src.address, dst.nbytes, 1, address=sides[unmapped].address)

    @pytest.mark.parametrize("short", [0, 1], ids=["destination", "source"])
    @pytest.mark.parametrize("flags", [0, 1])
    @pytest.mark.parametrize("pages", [4, 24])
    def test_the_end_is_not_mapped(self, area, short, flags, pages):
        sides = [area(pages), area(pages)]
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
    def test_two_neighbouring_mappings(self, area, split, flags, populated):
        sides = [area(4), area(4)]
        if populated:
            sides[1].fill()
        sides[split].advise(mmap.MADV_DONTFORK, 2, 2)
        border = sides[split].page(2)
        refuse(_EINVAL, sides[0].address, sides[1].address, 4 * PAGE_SIZE, flags, address=border)

    def test_each_part_of_two_mappings_moves(self, area):
        dst, src = area(4), area(4)
        src.fill()
        src.advise(mmap.MADV_DONTFORK, 2, 2)
        for half in (0, 2):
            move_all(dst.page(half), src.page(half), 2 * PAGE_SIZE)

    @pytest.mark.parametrize("flags", [0, 1])
    def test_a_hole_before_the_end_of_the_mapping_does_not_hide_it(self, area, flags):
        # The kernel would stop at the hole and never see that the rest is not mapped.
        dst, src = area(3), area(4)
        write(src.address, 1)
        refuse(_EINVAL, dst.address, src.address, 4 * PAGE_SIZE, flags, address=dst.end)

    def test_a_gap_of_reserved_addresses(self, area):
        dst, src = area(2), area(2)
        src.fill()
        refuse(_EINVAL, dst.end, src.address, PAGE_SIZE, address=dst.end)
        refuse(_EINVAL, dst.address, src.end, PAGE_SIZE, address=src.end)


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

    def test_both_writable_and_executable_move(self, area):
        protection = READ_WRITE | mmap.PROT_EXEC
        dst, src = area(2, protection=protection), area(2, protection=protection)
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


class TestForeignUserfaultfd:
    """Destination registered with another userfaultfd: EINVAL, saying so."""

    @pytest.fixture
    def pair(self, foreign) -> tuple[Area, Area]:
        dst, src = foreign(4), foreign(4)
        src.fill()
        return dst, src

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
        assert "another userfaultfd" in message
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
