"""mremap: detection, a Memory as the source, and errors."""

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
)
from pagemove._native import remap
from support import (
    Area,
    hole,
    living_child,
    pattern,
    read,
    read_all,
    vmas_in,
    write,
    write_all,
)

from .checks import refusal, zeros

PAGES = [1, 4, 40]


@pytest.fixture
def pair(foreign) -> tuple[Area, Area]:
    dst, src = foreign(4), foreign(4)
    src.fill()
    return dst, src


def mapped(address: int) -> bool:
    return bool(vmas_in(address, 1))


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
        src.advise(mmap.MADV_HUGEPAGE)
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
