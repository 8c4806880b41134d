"""Pages of a region are its pager's: no call of the library moves them, away or in."""

from __future__ import annotations

import errno
import mmap
import os

import numpy as np
import pytest

import pagemove
from pagemove import DestinationMapped, Memory, PagedMemory, RemapError, Vma, lowlevel, vmas
from pagemove._native import remap
from pagemove.stores import FileStore
from support.paging import KIB

pytestmark = [pytest.mark.needs("move"), pytest.mark.usefixtures("no_leak")]

PAGE = pagemove.PAGE_SIZE
N = 1024 * KIB
CONTENTS = np.random.default_rng(8).bytes(N)


@pytest.fixture(params=["r", "r+", "c"])
def region(request, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENTS)
    with (
        FileStore(path, writable=True) as store,
        PagedMemory(store, mode=request.param, resident_limit=N // 2) as opened,
    ):
        yield opened
    assert path.read_bytes() == CONTENTS or request.param == "r+"


@pytest.fixture
def other():
    with Memory(N) as memory:
        yield memory


def read(region: PagedMemory, start: int, end: int) -> bytes:
    # Nothing of it is kept, or the traceback of an error that was caught would keep the region.
    with memoryview(region) as view:
        return bytes(view[start:end])


def fill(memory: Memory, offset: int, length: int) -> None:
    memory.asarray(np.uint8)[offset : offset + length] = 5


#: Calls that would move `length` bytes to an address from an address.
CALLS = {
    "remap_anon_pages": pagemove.remap_anon_pages,
    "remap_anon_pages with holes": lambda dst, src, length: pagemove.remap_anon_pages(
        dst, src, length, pagemove.RAP_ALLOW_SRC_HOLES
    ),
    "mremap": pagemove.mremap,
    "mremap detecting": lambda dst, src, length: pagemove.mremap(dst, src, length, detect=True),
    "mremap keeping": lambda dst, src, length: pagemove.mremap(dst, src, length, keep_source=True),
}


def registered() -> list[Vma]:
    """List the mappings that a userfaultfd knows: others come and go with threads."""
    return [vma for vma in vmas() if {"um", "uw"} & set(vma.flags)]


def refused(call, *arguments, name: str, **options) -> RemapError:
    before = registered()
    with pytest.raises(RemapError, match=f"{name} .*is in paged memory.*copy the bytes") as caught:
        call(*arguments, **options)
    assert caught.value.errno == errno.EINVAL
    assert caught.value.moved == 0
    assert registered() == before
    return caught.value


@pytest.mark.parametrize("length", [PAGE, 16 * PAGE, 64 * PAGE])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
class TestByAddress:
    def test_out_of_a_region(self, region, other, call, length):
        assert read(region, 0, 64 * PAGE) == CONTENTS[: 64 * PAGE]
        for start in (0, 3 * PAGE):
            address = region.address + start
            error = refused(call, other.address, address, length, name="source")
            assert error.address == address
        assert not other.page_states().any()
        assert read(region, 0, 67 * PAGE) == CONTENTS[: 67 * PAGE]

    def test_into_a_region(self, region, other, call, length):
        fill(other, 0, length)
        address = region.address + N - length  # of which nothing is resident
        error = refused(call, address, other.address, length, name="destination")
        assert error.address == address
        assert (other.asarray(np.uint8)[:length] == 5).all()
        assert read(region, N - length, N) == CONTENTS[-length:]


class TestByBuffer:
    @pytest.fixture
    def writable(self, tmp_path):
        path = tmp_path / "writable"
        path.write_bytes(CONTENTS)
        with (
            FileStore(path, writable=True) as store,
            PagedMemory(store, mode="r+", resident_limit=N // 2) as opened,
        ):
            yield opened

    def test_move(self, writable, other):
        refused(pagemove.move, other, writable, name="source")
        refused(pagemove.move, other, writable, name="source", holes=True)
        refused(pagemove.move, writable, other, name="destination", holes=True)
        with memoryview(other)[: N // 2] as half, memoryview(writable)[N // 2 :] as upper:
            refused(pagemove.move, half, upper, name="source")

    def test_move_many(self, writable, other):
        fill(other, 0, N)
        many = pagemove.move_many
        for holes in (False, True):
            for pages in ([5], [1, 2, 3], list(range(0, 200, 2)), list(range(200))):
                error = refused(many, other, writable, pages, pages, name="source", holes=holes)
                assert error.index == 0
                error = refused(
                    many, writable, other, pages, pages, name="destination", holes=holes
                )
                assert error.index == 0
        refused(many, writable, writable, [1], [0], name="source")

    def test_what_was_written_is_not_lost(self, writable, other):
        with memoryview(writable) as contents:
            contents[5] = CONTENTS[5] ^ 1
            refused(pagemove.remap_anon_pages, other, writable, PAGE, name="source")
            refused(pagemove.mremap, other, contents, PAGE, name="source", keep_source=True)
            assert contents[5] == CONTENTS[5] ^ 1
        writable.flush()
        assert writable.store.path.read_bytes()[5] == CONTENTS[5] ^ 1

    def test_unshare(self, writable):
        assert read(writable, 0, 1) == CONTENTS[:1]
        for copy in (False, True):
            with (
                memoryview(writable)[5:9] as part,
                pytest.raises(RemapError, match="no page of it is shared") as caught,
            ):
                pagemove.unshare(part, copy=copy)
            assert caught.value.errno == errno.EINVAL
        assert writable.stats().dirty_nbytes == 0


class TestEdges:
    def test_a_range_that_only_begins_or_ends_there(self, region, other):
        elsewhere = other.address + 4 * PAGE  # the two may be neighbours
        for address in (region.address - PAGE, region.address + N - PAGE):
            refused(pagemove.remap_anon_pages, elsewhere, address, 2 * PAGE, name="source")
            refused(pagemove.mremap, address, elsewhere, 2 * PAGE, name="destination")

    def test_no_replace_says_that_something_is_there(self, region, other):
        with pytest.raises(DestinationMapped):
            pagemove.mremap(region.address, other.address, PAGE, keep_source=True, no_replace=True)

    def test_its_neighbours_are_not_meant(self, region, other):
        assert remap.paged_at(region.address - PAGE, PAGE) == 0
        assert remap.paged_at(region.address + N, PAGE) == 0
        assert remap.paged_at(region.address + N - 1, 1) == region.address

    def test_many_regions_that_come_and_go(self, tmp_path, other):
        path = tmp_path / "file"
        path.write_bytes(CONTENTS)
        with FileStore(path) as store:
            regions = [PagedMemory(store) for _ in range(12)]
            while regions:
                regions.pop(len(regions) // 2).close()
                for each in regions:
                    refused(pagemove.remap_anon_pages, other, each.address, PAGE, name="source")
                regions[:0] = [PagedMemory(store)] if len(regions) == 6 else []
                if len(regions) == 7:
                    regions.pop().close()

    def test_an_address_is_free_again_after_close(self, tmp_path, other):
        path = tmp_path / "file"
        path.write_bytes(CONTENTS)
        with FileStore(path) as store, PagedMemory(store) as region:
            address = region.address
        self.moves_at(address)

    @pytest.mark.parametrize("region", ["r+", "c"], indirect=True)
    def test_and_in_a_forked_child_which_has_no_region(self, region, other):
        address = region.address
        child = os.fork()
        if not child:
            try:
                lowlevel.munmap(address, PAGE)  # it is reserved there
                self.moves_at(address)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0

    def moves_at(self, address: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | lowlevel.MAP_FIXED_NOREPLACE
        lowlevel.mmap(address, PAGE, mmap.PROT_READ | mmap.PROT_WRITE, flags)
        try:
            with Memory(PAGE) as memory:
                fill(memory, 0, PAGE)
                assert pagemove.remap_anon_pages(address, memory, PAGE) == PAGE
                assert pagemove.remap_anon_pages(memory, address, PAGE) == PAGE
        finally:
            lowlevel.munmap(address, PAGE)


def test_the_raw_call_has_to_be_kept_from_it(region, other):
    """The kernel would take a page out of a region, and refuse one only because of who asks."""
    descriptor = remap.descriptor()
    assert read(region, 0, 1) == CONTENTS[:1]
    with pytest.raises(OSError, match="Device or resource busy"):
        lowlevel.register(descriptor, region.address, N, lowlevel.UFFDIO_REGISTER_MODE_WP)
    fill(other, 0, PAGE)
    with pytest.raises(OSError, match="Invalid argument"):
        lowlevel.move(descriptor, region.address + N // 2, other.address, PAGE)
    assert lowlevel.move(descriptor, other.address + PAGE, region.address, PAGE) == PAGE
    assert memoryview(other)[PAGE] == CONTENTS[0]
    region.evict()
    assert read(region, 0, 1) == CONTENTS[:1]
