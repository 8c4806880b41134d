"""mremap: the alternative, which moves the mapping; with and without its three flags."""

from __future__ import annotations

import errno
import mmap

import numpy as np
import pytest

from pagemove import (
    PAGE_SIZE,
    Memory,
    RemapError,
    lowlevel,
    mremap,
    remap_anon_pages,
    vmas,
)
from support import (
    Area,
    at,
    child,
    hole,
    living_child,
    pattern,
    read,
    read_all,
    vmas_in,
    write,
    write_all,
)
from support.foreign import MAP_FIXED, PRIVATE, READ_WRITE

from .checks import private_mmap, refusal, signature, zeros

PAGES = [1, 4, 40]


@pytest.fixture
def pair(foreign) -> tuple[Area, Area]:
    dst, src = foreign(4), foreign(4)
    src.fill()
    return dst, src


def mapped(address: int) -> bool:
    return bool(vmas_in(address, 1))


def test_its_signature_is_the_one_of_the_contract():
    expected = "(dst, src, length, *, detect=False, keep_source=False, no_replace=False)"
    assert signature(mremap) == expected


class TestWithoutFlags:
    """The normal semantics: silently wipes the destination, removes the source."""

    @pytest.mark.parametrize("pages", PAGES)
    def test_moves_the_mapping(self, foreign, pages):
        dst, src = foreign(pages), foreign(pages)
        contents = src.fill()
        src.lost()
        assert mremap(dst.address, src.address, src.nbytes) == "mapping"
        assert not mapped(src.address)
        assert dst.contents() == contents

    def test_wipes_the_destination_without_a_word(self, pair):
        dst, src = pair
        dst.fill(50)
        src.lost()
        assert mremap(dst.address, src.address, 4 * PAGE_SIZE) == "mapping"
        assert dst.contents() == b"".join(map(pattern, range(4)))

    def test_part_of_a_mapping_splits_it(self, pair):
        dst, src = pair
        src.lost(1, 2)
        mremap(dst.page(1), src.page(1), 2 * PAGE_SIZE)
        assert [mapped(src.page(page)) for page in range(4)] == [True, False, False, True]
        assert read_all(dst.page(1), 2) == pattern(1) + pattern(2)
        assert hole(dst.address)
        assert read(src.page(3)) == pattern(3)

    def test_holes_stay_holes(self, pair):
        dst, src = pair
        src.discard(1, 2)
        src.lost()
        mremap(dst.address, src.address, 4 * PAGE_SIZE)
        assert [bool(s) for s in dst.states()] == [True, False, False, True]

    @pytest.mark.needs("fork")
    def test_shared_pages_are_moved_too(self, pair):
        dst, src = pair
        with living_child():
            src.lost()
            assert mremap(dst.address, src.address, 4 * PAGE_SIZE) == "mapping"
        assert read(dst.address) == pattern(0)

    def test_to_where_nothing_is(self, foreign):
        src = foreign(4)
        src.fill()
        with foreign(4) as reserved:
            reserved.unmap()
            src.lost()
            assert mremap(reserved.address, src.address, src.nbytes) == "mapping"
            assert read_all(reserved.address, 4) == b"".join(map(pattern, range(4)))
            lowlevel.munmap(reserved.address, reserved.nbytes)

    @pytest.mark.parametrize("kind", ["buffer", "np.int64", "mmap"])
    def test_kinds_of_arguments(self, foreign, kind):
        dst, src = foreign(2), foreign(2)
        contents = src.fill()
        arguments = {
            "buffer": (dst.array(), src.array(), np.int32(2 * PAGE_SIZE)),
            "np.int64": (np.int64(dst.address), np.uint64(src.address), 2 * PAGE_SIZE),
            "mmap": (private_mmap(2), src.address, 2 * PAGE_SIZE),
        }[kind]
        src.lost()
        assert mremap(*arguments) == "mapping"
        if kind == "mmap":
            assert arguments[0][:] == contents
        else:
            assert dst.contents() == contents


class TestNoReplace:
    """EEXIST if any mapping overlaps the destination, even an empty one."""

    @pytest.fixture
    def free(self, foreign) -> Area:
        """Eight pages whose `unmap` makes them addresses where nothing is mapped.

        To be called last, or the next mapping comes to lie there.
        """
        return foreign(8)

    @pytest.mark.parametrize("keep_source", [False, True])
    @pytest.mark.parametrize("detect", [False, True])
    def test_to_where_nothing_is(self, foreign, free, keep_source, detect):
        src = foreign(4)
        contents = src.fill()
        free.unmap()
        if not keep_source:
            src.lost()
        how = mremap(
            free.address, src.address, src.nbytes,
            no_replace=True, keep_source=keep_source, detect=detect,
        )  # fmt: skip
        assert how == "mapping"
        assert read_all(free.address, 4) == contents
        assert mapped(src.address) == keep_source
        lowlevel.munmap(free.address, 4 * PAGE_SIZE)

    @pytest.mark.parametrize("keep_source", [False, True])
    @pytest.mark.parametrize("detect", [False, True])
    @pytest.mark.parametrize("page", [0, 2, 3])
    @pytest.mark.parametrize("protection", [READ_WRITE, 0], ids=["empty", "PROT_NONE"])
    def test_where_a_mapping_overlaps(self, foreign, free, page, protection, keep_source, detect):
        src = foreign(4)
        contents = src.fill()
        free.unmap()
        occupant = lowlevel.mmap(free.page(page), PAGE_SIZE, protection, PRIVATE | MAP_FIXED)
        before = vmas_in(free.address, free.nbytes), vmas_in(src.address, src.nbytes)
        with refusal(errno.EEXIST, "mremap") as error:
            mremap(
                free.address, src.address, src.nbytes,
                no_replace=True, keep_source=keep_source, detect=detect,
            )  # fmt: skip
        assert f"{free.address:#x}" in str(error())
        assert (vmas_in(free.address, free.nbytes), vmas_in(src.address, src.nbytes)) == before
        assert src.contents() == contents
        lowlevel.munmap(occupant, PAGE_SIZE)

    def test_where_pages_are(self, pair):
        dst, src = pair
        dst.fill(50)
        with refusal(errno.EEXIST, "mremap"):
            mremap(dst.address, src.address, 4 * PAGE_SIZE, no_replace=True)
        assert dst.contents() == b"".join(map(pattern, range(50, 54)))
        assert src.contents() == b"".join(map(pattern, range(4)))

    def test_leaves_nothing_behind_where_the_source_is_bad(self, foreign, free):
        src = foreign(4)
        src.unmap()
        free.unmap()
        with pytest.raises(RemapError):
            mremap(free.address, src.address, 4 * PAGE_SIZE, no_replace=True)
        assert not vmas_in(free.address, free.nbytes)

    def test_leaves_nothing_behind_where_the_source_has_a_gap(self, foreign, free):
        # Linux 6.17 and later move the mappings around it; earlier ones refuse.
        src = foreign(4)
        src.fill()
        src.unmap(1, 2)
        free.unmap()
        try:
            mremap(free.address, src.address, 4 * PAGE_SIZE, no_replace=True)
        except RemapError:
            assert not vmas_in(free.address, free.nbytes)
            return
        src.lost()
        assert [mapped(free.page(page)) for page in range(4)] == [True, False, False, True]
        lowlevel.munmap(free.address, 4 * PAGE_SIZE)


class TestKeepSource:
    """keep_source: the source VMA stays, without its pages."""

    @pytest.mark.parametrize("pages", PAGES)
    def test_stays_and_is_empty(self, foreign, pages):
        dst, src = foreign(pages), foreign(pages)
        contents = src.fill()
        (before,) = vmas_in(src.address, src.nbytes)
        assert mremap(dst.address, src.address, src.nbytes, keep_source=True) == "mapping"
        assert vmas_in(src.address, src.nbytes) == [before]
        assert hole(src.address, pages)
        assert dst.contents() == contents
        assert src.contents() == zeros(pages)

    def test_a_memory_as_the_source(self, foreign):
        dst = foreign(4)
        with Memory(4 * PAGE_SIZE) as memory:
            contents = write_all(memory.address, 4)
            assert mremap(dst.address, memory, memory.nbytes, keep_source=True) == "mapping"
            assert dst.contents() == contents
            assert hole(memory.address, 4)
            write(memory.address, 9)

    @pytest.mark.needs("move")
    def test_a_memory_stays_usable_afterwards(self, foreign):
        dst = foreign(4)
        with Memory(4 * PAGE_SIZE) as memory, Memory(4 * PAGE_SIZE) as other:
            write_all(memory.address, 4)
            mremap(dst.address, memory, memory.nbytes, keep_source=True)
            contents = write_all(other.address, 4, 70)
            assert remap_anon_pages(memory, other, memory.nbytes) == memory.nbytes
            assert read_all(memory.address, 4) == contents

    def test_file_mappings_are_refused(self, tmp_path, foreign):
        path = tmp_path / "file"
        path.write_bytes(zeros(2))
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 2 * PAGE_SIZE) as mapping:
            dst = foreign(2)
            try:
                # Some kernels allow it for files too; then the file's pages simply stay.
                how = mremap(dst.address, mapping, 2 * PAGE_SIZE, keep_source=True)
                assert how == "mapping"
            except RemapError as error:
                assert error.errno == errno.EINVAL  # noqa: PT017


class TestMemoryAsTheDestination:
    """What came is then the Memory's: it stays owned, unshared with children, and movable into."""

    def test_stays_a_memory(self, foreign):
        src = foreign(4)
        contents = src.fill()
        src.lost()
        with Memory(4 * PAGE_SIZE) as memory:
            address = memory.address
            assert mremap(memory, src.address, memory.nbytes) == "mapping"
            assert read_all(memory.address, 4) == contents
        assert not mapped(address)

    @pytest.mark.needs("fork")
    def test_is_not_inherited_by_a_fork(self, foreign):
        src = foreign(4)
        src.fill()
        src.lost()
        with Memory(4 * PAGE_SIZE) as memory:
            mremap(memory, src.address, memory.nbytes)
            # Its addresses are reserved, without memory.
            found = child(vmas_in, memory.address, memory.nbytes)
            assert [each[2] for each in found] == ["---p"]

    @pytest.mark.needs("move")
    def test_can_be_moved_into(self, foreign):
        src, other = foreign(4), foreign(4)
        src.fill()
        contents = other.fill(60)
        src.lost()
        with Memory(4 * PAGE_SIZE) as memory:
            mremap(memory, src.address, memory.nbytes)
            memory.discard()
            assert remap_anon_pages(memory, other.address, memory.nbytes) == memory.nbytes
            assert read_all(memory.address, 4) == contents


def test_scattered_calls_add_mappings_where_the_call_adds_none(foreign):
    dst, src = foreign(200), foreign(200)
    src.fill()
    before = len(vmas_in(dst.address, dst.nbytes)) + len(vmas_in(src.address, src.nbytes))
    for page in range(1, 199, 2):
        src.lost(page, 1)
        assert mremap(dst.page(page), src.page(page), PAGE_SIZE) == "mapping"
    after = len(vmas_in(dst.address, dst.nbytes)) + len(vmas_in(src.address, src.nbytes))
    assert after - before > 200
    assert at(dst.page(1), 1)[0] == pattern(1)[0]
    assert any(vma.start == dst.page(1) for vma in vmas())
