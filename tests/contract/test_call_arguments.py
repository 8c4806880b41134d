"""remap_anon_pages: EINVAL for what no mapping could make right, and the order of the checks."""

from __future__ import annotations

import errno
import mmap

import pytest

from pagemove import PAGE_SIZE, RemapError, lowlevel, remap_anon_pages
from support import Area, hole, pattern, write, write_all
from support.system import mlock

from .checks import move_all, refuse

pytestmark = pytest.mark.needs("move")

_EINVAL = errno.EINVAL
_WHOLE_SPACE = 2**64


@pytest.fixture
def pair(area) -> tuple[Area, Area]:
    """A destination of holes and a source of pages: a move between them works."""
    dst, src = area(4), area(4)
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
    def test_forward_overlap(self, area, distance, pages, flags):
        whole = area(pages + distance)
        write_all(whole.address, pages)
        error = refuse(
            _EINVAL, whole.page(distance), whole.address, pages * PAGE_SIZE, flags,
            address=whole.page(distance),
        )  # fmt: skip
        assert "inside the source" in error

    @pytest.mark.parametrize("flags", [0, 1])
    def test_forward_overlap_with_holes(self, area, flags):
        whole = area(6)
        write(whole.page(1), 1)
        refuse(_EINVAL, whole.page(2), whole.address, 3 * PAGE_SIZE, flags)

    @pytest.mark.parametrize("pages", [1, 3, 40])
    @pytest.mark.parametrize("flags", [0, 1])
    def test_destination_is_the_source(self, area, pages, flags):
        whole = area(pages)
        whole.fill()
        refuse(_EINVAL, whole.address, whole.address, whole.nbytes, flags, address=whole.address)

    def test_ranges_that_touch_do_not_overlap(self, area):
        whole = area(4)
        write_all(whole.address, 2)
        move_all(whole.page(2), whole.address, 2 * PAGE_SIZE)


class TestOrderOfChecks:
    """Arguments, mappings, then page by page destination, source, EBUSY."""

    def test_arguments_before_mappings(self, pair):
        dst, src = pair
        src.unmap()
        with pytest.raises(RemapError, match="not page aligned"):
            remap_anon_pages(dst.address, src.address + 8, PAGE_SIZE)
        with pytest.raises(RemapError, match="flag"):
            remap_anon_pages(dst.address, src.address, PAGE_SIZE, mmap.MADV_DONTNEED)

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
