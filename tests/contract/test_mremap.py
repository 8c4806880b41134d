"""mremap: the alternative, which moves the mapping; with and without its three flags."""

from __future__ import annotations

import errno
import itertools
import mmap

import numpy as np
import pytest

import pagemove
from pagemove import (
    HUGE_PAGE_SIZE,
    PAGE_SIZE,
    Memory,
    PageState,
    RemapError,
    lowlevel,
    mremap,
    remap_anon_pages,
    vmas,
)
from pagemove._native import remap
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


class TestMemoryAsTheSource:
    """Only with keep_source, or when pages were moved: else ValueError."""

    @pytest.mark.parametrize("no_replace", [False, True])
    @pytest.mark.parametrize("how", ["object", "address", "array", "part", "page before"])
    def test_is_a_value_error(self, foreign, how, no_replace):
        dst = foreign(4)
        with Memory(4 * PAGE_SIZE) as memory:
            contents = write_all(memory.address, 4)
            src, length = {
                "object": (memory, 4 * PAGE_SIZE),
                "address": (memory.address, 4 * PAGE_SIZE),
                "array": (memory.asarray(np.uint8), 4 * PAGE_SIZE),
                "part": (memory.address + PAGE_SIZE, PAGE_SIZE),
                "page before": (memory.address - PAGE_SIZE, 2 * PAGE_SIZE),
            }[how]
            with pytest.raises(ValueError, match="keep_source"):
                mremap(dst.address, src, length, no_replace=no_replace)
            del src
            assert read_all(memory.address, 4) == contents
            assert mapped(memory.address)
            assert hole(dst.address, 4)

    @pytest.mark.needs("move")
    def test_is_allowed_when_pages_were_moved(self, foreign):
        dst = foreign(4)
        with Memory(4 * PAGE_SIZE) as memory:
            contents = write_all(memory.address, 4)
            assert mremap(dst.address, memory, memory.nbytes, detect=True) == "pages"
            assert dst.contents() == contents

    @pytest.mark.needs("move")
    def test_is_a_value_error_when_detection_says_no(self, foreign):
        dst = foreign(4)
        dst.fill(50)
        with Memory(4 * PAGE_SIZE) as memory:
            contents = write_all(memory.address, 4)
            with pytest.raises(ValueError, match="keep_source"):
                mremap(dst.address, memory, memory.nbytes, detect=True)
            assert read_all(memory.address, 4) == contents
            assert dst.contents() == b"".join(map(pattern, range(50, 54)))

    def test_an_array_made_by_empty(self, foreign):
        array = pagemove.empty(PAGE_SIZE, np.uint8)
        array[:] = 1
        with pytest.raises(ValueError, match="keep_source"):
            mremap(foreign().address, array, PAGE_SIZE)
        assert (array == 1).all()


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
            assert child(vmas_in, memory.address, memory.nbytes) == []

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


@pytest.mark.needs("move")
class TestDetect:
    """First checks that every source page is exclusive and every destination page a hole."""

    @pytest.mark.parametrize("pages", PAGES)
    @pytest.mark.parametrize("keep_source", [False, True])
    def test_moves_the_pages_and_leaves_the_mappings(self, foreign, pages, keep_source):
        dst, src = foreign(pages), foreign(pages)
        contents = src.fill()
        before = vmas_in(dst.address, dst.nbytes), vmas_in(src.address, src.nbytes)
        how = mremap(dst.address, src.address, src.nbytes, detect=True, keep_source=keep_source)
        assert how == "pages"
        assert (vmas_in(dst.address, dst.nbytes), vmas_in(src.address, src.nbytes)) == before
        assert hole(src.address, pages)
        assert dst.contents() == contents

    @pytest.mark.parametrize("page", range(4))
    @pytest.mark.parametrize("kind", ["a page", "the zero page"])
    def test_an_occupied_destination_goes_the_normal_way(self, pair, page, kind):
        dst, src = pair
        write(dst.page(page), 50) if kind == "a page" else read(dst.page(page), 1)
        src.lost()
        assert mremap(dst.address, src.address, 4 * PAGE_SIZE, detect=True) == "mapping"
        assert not mapped(src.address)
        assert dst.contents() == b"".join(map(pattern, range(4)))

    @pytest.mark.parametrize("page", range(4))
    def test_a_hole_in_the_source_goes_the_normal_way(self, pair, page):
        dst, src = pair
        src.discard(page, 1)
        src.lost()
        assert mremap(dst.address, src.address, 4 * PAGE_SIZE, detect=True) == "mapping"
        assert [bool(s) for s in dst.states()] == [other != page for other in range(4)]

    @pytest.mark.needs("fork")
    @pytest.mark.parametrize("lives", [True, False], ids=["living", "ended"])
    def test_pages_left_by_a_fork_go_the_normal_way(self, pair, lives):
        # After the child has ended each page looks exclusive, and cannot move all the same.
        dst, src = pair
        with living_child() as one:
            if not lives:
                one.end()
            write(src.address, 0)
            src.lost()
            assert mremap(dst.address, src.address, 4 * PAGE_SIZE, detect=True) == "mapping"
            assert not mapped(src.address)
        assert dst.contents() == b"".join(map(pattern, range(4)))

    def test_the_zero_page_in_the_source_is_not_exclusive(self, pair):
        dst, src = pair
        src.discard(2, 1)
        read(src.page(2), 1)
        src.lost()
        assert mremap(dst.address, src.address, 4 * PAGE_SIZE, detect=True) == "mapping"
        assert read(dst.page(2)) == zeros()

    def test_mappings_between_which_nothing_moves_go_the_normal_way(self, pair):
        dst, src = pair
        lowlevel.mprotect(src.address, src.nbytes, mmap.PROT_READ)
        src.lost()
        assert mremap(dst.address, src.address, 4 * PAGE_SIZE, detect=True) == "mapping"
        assert vmas_in(dst.address, dst.nbytes)[0][2] == "r--p"

    def test_nothing_at_the_destination_goes_the_normal_way(self, foreign):
        src, free = foreign(4), foreign(4)
        contents = src.fill()
        free.unmap()
        src.lost()
        assert mremap(free.address, src.address, 4 * PAGE_SIZE, detect=True) == "mapping"
        assert read_all(free.address, 4) == contents
        lowlevel.munmap(free.address, free.nbytes)

    @pytest.mark.needs("thp")
    def test_huge_pages(self, foreign):
        pages = HUGE_PAGE_SIZE // PAGE_SIZE
        dst, src = (foreign(pages, align=HUGE_PAGE_SIZE) for _ in range(2))
        src.advise(14)
        src.fill()
        assert mremap(dst.address, src.address, HUGE_PAGE_SIZE, detect=True) == "pages"
        assert dst.states()[0] & PageState.HUGE

    def test_a_registered_destination(self, pair):
        dst, src = pair
        assert mremap(dst.address, src.address, 2 * PAGE_SIZE, detect=True) == "pages"
        assert mremap(dst.page(2), src.page(2), 2 * PAGE_SIZE, detect=True) == "pages"
        assert dst.contents() == b"".join(map(pattern, range(4)))

    @pytest.mark.parametrize("answer", [2 * PAGE_SIZE, -errno.EBUSY, -errno.EEXIST, -errno.ENOMEM])
    def test_pages_that_change_under_the_detection(self, pair, monkeypatch, answer):
        # What moved already has to come back before the mapping moves.
        dst, src = pair
        native, calls = remap.move, itertools.count()

        def move(to: int, of: int, length: int, flags: int) -> int:
            if next(calls):
                return native(to, of, length, flags)
            if answer > 0:
                for offset in range(0, answer, PAGE_SIZE):
                    remap_anon_pages(to + offset, of + offset, PAGE_SIZE)
            return answer

        monkeypatch.setattr(remap, "move", move)
        src.lost()
        assert mremap(dst.address, src.address, 4 * PAGE_SIZE, detect=True) == "mapping"
        assert not mapped(src.address)
        assert dst.contents() == b"".join(map(pattern, range(4)))


class TestErrors:
    @pytest.mark.parametrize("keep_source", [False, True])
    @pytest.mark.parametrize("detect", [False, True])
    def test_arguments(self, pair, keep_source, detect):
        dst, src = pair
        to, of, length = dst.address, src.address, 4 * PAGE_SIZE
        bad = [
            (to + 1, of, length),
            (to, of + 8, length),
            (to, of, length + 1),
            (to, of, 0),
            (to, of, -PAGE_SIZE),
            (to, of, 2**64),
            (2**64 - PAGE_SIZE, of, 2 * PAGE_SIZE),
            (of, of, length),
            (of + PAGE_SIZE, of, 2 * PAGE_SIZE),
        ]
        for arguments in bad:
            with refusal(errno.EINVAL, "mremap"):
                mremap(*arguments, keep_source=keep_source, detect=detect)
        assert src.contents() == b"".join(map(pattern, range(4)))
        assert hole(to, 4)

    @pytest.mark.parametrize("keep_source", [False, True])
    @pytest.mark.parametrize("no_replace", [False, True])
    def test_overlap_is_einval_in_both_directions(self, foreign, keep_source, no_replace):
        area = foreign(6)
        area.fill()
        for to, of in ((1, 0), (0, 1)):
            with pytest.raises(RemapError) as caught:
                mremap(
                    area.page(to), area.page(of), 3 * PAGE_SIZE,
                    keep_source=keep_source, no_replace=no_replace,
                )  # fmt: skip
            assert caught.value.errno in (errno.EINVAL, errno.EEXIST)
        assert area.contents() == b"".join(map(pattern, range(6)))

    def test_a_source_that_is_not_mapped(self, foreign):
        dst, src = foreign(4), foreign(4)
        dst.fill(50)
        src.unmap()
        with pytest.raises(RemapError) as caught:
            mremap(dst.address, src.address, 4 * PAGE_SIZE)
        assert caught.value.errno in (errno.EFAULT, errno.EINVAL)
        assert f"{src.address:#x}" in str(caught.value)

    @pytest.mark.parametrize("wrong", [None, "text", 1.5, [1], np.float64(0)], ids=repr)
    def test_wrong_types(self, foreign, wrong):
        area = foreign()
        for arguments in (
            (wrong, area.address, PAGE_SIZE),
            (area.address, wrong, PAGE_SIZE),
            (area.address, area.address, wrong),
        ):
            with pytest.raises(TypeError):
                mremap(*arguments)

    def test_length_may_not_exceed_a_buffer(self, foreign):
        src = foreign(2)
        contents = src.fill()
        for arguments in (
            (foreign().array(), src.address),
            (foreign(2).address, src.array()[:PAGE_SIZE]),
        ):
            with pytest.raises(ValueError, match="exceeds"):
                mremap(*arguments, 2 * PAGE_SIZE)
        assert src.contents() == contents

    def test_read_only_buffers(self, foreign):
        for arguments in (
            (bytes(PAGE_SIZE), foreign().address),
            (foreign().address, bytes(PAGE_SIZE)),
        ):
            with pytest.raises(BufferError):
                mremap(*arguments, PAGE_SIZE)

    def test_flags_are_by_keyword_only(self, pair):
        with pytest.raises(TypeError):
            mremap(pair[0].address, pair[1].address, PAGE_SIZE, True)


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
