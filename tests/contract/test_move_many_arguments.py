"""move_many: page sizes, buffers, holes."""

from __future__ import annotations

import errno

import numpy as np
import pytest

import pagemove
from pagemove import (
    HUGE_PAGE_SIZE,
    PAGE_SIZE,
    Memory,
    RemapError,
    move_many,
)
from support import pattern, read, write

from .checks import GUARDS, private_mmap, refusal

pytestmark = pytest.mark.needs("move")


class TestHoles:
    @GUARDS
    def test_are_skipped_and_counted(self, foreign, guarded, guard):
        guarded(guard)
        dst, src = foreign(10), foreign(10)
        for page in (0, 4, 5, 9):
            write(src.page(page), page)
        moved = move_many(dst.array(), src.array(), range(10), range(9, -1, -1), holes=True)
        assert moved == dst.nbytes
        assert [bool(s) for s in dst.states()] == [9 - page in (0, 4, 5, 9) for page in range(10)]
        for page in (0, 4, 5, 9):
            assert read(dst.page(9 - page)) == pattern(page)

    @GUARDS
    def test_do_not_excuse_an_occupied_destination(self, foreign, guarded, guard):
        guarded(guard)
        dst, src = foreign(4), foreign(4)
        write(dst.page(2), 9)
        with refusal(errno.EEXIST, "move_many", moved=2 * PAGE_SIZE) as error:
            move_many(dst.array(), src.array(), range(4), range(4), holes=True)
        assert error().index == 2


class TestPageSize:
    """page_size: bytes of a page of the index arrays, a multiple of PAGE_SIZE."""

    @GUARDS
    @pytest.mark.parametrize("factor", [1, 2, 3, 16])
    def test_multiples(self, foreign, guarded, factor, guard):
        guarded(guard)
        dst, src = foreign(4 * factor), foreign(4 * factor)
        whole = src.fill()
        unit = factor * PAGE_SIZE
        moved = move_many(dst.array(), src.array(), [3, 0, 2, 1], [0, 1, 2, 3], page_size=unit)
        assert moved == dst.nbytes
        parts = [whole[i * unit : (i + 1) * unit] for i in (1, 3, 2, 0)]
        assert dst.contents() == b"".join(parts)

    @pytest.mark.needs("thp")
    @GUARDS
    def test_of_two_mebibytes_without_huge_pages(self, foreign, guarded, guard):
        guarded(guard)
        pages = HUGE_PAGE_SIZE // PAGE_SIZE
        dst, src = foreign(2 * pages), foreign(2 * pages)
        whole = src.fill()
        moved = move_many(dst.array(), src.array(), [1, 0], [0, 1], page_size=HUGE_PAGE_SIZE)
        assert moved == dst.nbytes
        assert dst.contents() == whole[HUGE_PAGE_SIZE:] + whole[:HUGE_PAGE_SIZE]

    @pytest.mark.parametrize("wrong", [0, -1, -PAGE_SIZE, 1, 8, PAGE_SIZE - 1, PAGE_SIZE + 1])
    def test_anything_else_is_a_value_error(self, foreign, wrong):
        area = foreign(2)
        area.fill()
        with pytest.raises(ValueError, match="page_size"):
            move_many(foreign(2).array(), area.array(), [0], [0], page_size=wrong)

    @pytest.mark.parametrize("wrong", [4096.0, "4096", None, [4096]], ids=repr)
    def test_anything_but_an_integer_is_a_type_error(self, foreign, wrong):
        with pytest.raises(TypeError):
            move_many(foreign(2).array(), foreign(2).array(), [0], [0], page_size=wrong)

    @pytest.mark.parametrize("size", [2**62, 2**63, 2**64, 2**64 + PAGE_SIZE, 2**80])
    def test_beyond_the_buffers_leaves_no_page_in_range(self, foreign, size):
        area = foreign(2)
        area.fill()
        with pytest.raises((IndexError, ValueError)):
            move_many(foreign(2).array(), area.array(), [0], [0], page_size=size)
        assert area.contents() == pattern(0) + pattern(1)

    def test_a_rest_of_the_buffer_is_out_of_range(self, foreign):
        dst, src = foreign(5), foreign(5)
        src.fill()
        for to, of in ((2, 0), (0, 2)):
            with pytest.raises(IndexError):
                move_many(dst.array(), src.array(), [to], [of], page_size=2 * PAGE_SIZE)
        assert move_many(dst.array(), src.array(), [1], [1], page_size=2 * PAGE_SIZE)


class TestBuffers:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: pagemove.empty((4, PAGE_SIZE // 8)),
            lambda: private_mmap(4),
            lambda: Memory(4 * PAGE_SIZE),
        ],
        ids=["empty", "mmap", "Memory"],
    )
    def test_any_kind(self, make):
        dst, src = make(), make()
        memoryview(src).cast("B")[:] = write_bytes = bytes(range(256)) * (PAGE_SIZE // 64)
        assert move_many(dst, src, [1, 0, 3, 2], [0, 1, 2, 3]) == 4 * PAGE_SIZE
        parts = [write_bytes[i * PAGE_SIZE : (i + 1) * PAGE_SIZE] for i in (1, 0, 3, 2)]
        assert bytes(memoryview(dst).cast("B")) == b"".join(parts)
        for one in (dst, src):
            if isinstance(one, Memory):
                one.close()

    def test_the_partial_last_page_of_an_array(self):
        count = PAGE_SIZE // 8 + 188
        dst, src = pagemove.empty(count), pagemove.empty(count)
        src[:] = np.arange(count)
        assert move_many(dst, src, [0, 1], [0, 1]) == 2 * PAGE_SIZE
        assert (dst == np.arange(count)).all()

    def test_the_partial_last_page_of_anything_else_is_out_of_range(self, foreign):
        dst, src = foreign(2), foreign(2)
        src.fill()
        with pytest.raises(IndexError):
            move_many(dst.array(), src.array()[: PAGE_SIZE + 8], [1], [1])

    def test_buffers_of_different_length(self, foreign):
        dst, src = foreign(2), foreign(9)
        src.fill()
        assert move_many(dst.array(), src.array(), [1, 0], [8, 3]) == 2 * PAGE_SIZE
        assert dst.contents() == pattern(3) + pattern(8)

    @pytest.mark.parametrize("wrong", [None, 4096, np.int64(1), "text", [1]], ids=repr)
    def test_anything_but_a_buffer_is_a_type_error(self, foreign, wrong):
        for arguments in ((wrong, foreign().array()), (foreign().array(), wrong)):
            with pytest.raises(TypeError):
                move_many(*arguments, [0], [0])

    def test_a_read_only_buffer_is_a_buffer_error(self, foreign):
        for arguments in (
            (bytes(PAGE_SIZE), foreign().array()),
            (foreign().array(), bytes(PAGE_SIZE)),
        ):
            with pytest.raises(BufferError):
                move_many(*arguments, [0], [0])

    def test_are_held_and_released(self):
        with Memory(PAGE_SIZE) as dst, Memory(PAGE_SIZE) as src:
            for pages in ([0], [1], [-1], [0, 0]):
                with pytest.raises((RemapError, IndexError)):
                    move_many(dst, src, pages, pages)
