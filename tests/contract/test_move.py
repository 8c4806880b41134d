"""move(dst, src, *, holes=False): whole buffers of equal length; all of it or `RemapError`."""

from __future__ import annotations

import errno
import gc
import mmap

import numpy as np
import pytest

import pagemove
from pagemove import PAGE_SIZE, Memory, RemapError, lowlevel, move, page_states
from support import at, hole, living_child, pattern, read, read_all, write, write_all

from .checks import GUARDS, address_of, check_moved, look, private_mmap, refusal, signature, zeros

pytestmark = pytest.mark.needs("move")


def test_its_signature_is_the_one_of_the_contract():
    assert signature(move) == "(dst, src, *, holes=False)"


@GUARDS
@pytest.mark.parametrize("pages", [1, 2, 20, 600, 5000])
@pytest.mark.parametrize("holes", [False, True])
def test_moves_all(guarded, pages, holes, guard):
    guarded(guard)
    with Memory(pages * PAGE_SIZE) as dst, Memory(pages * PAGE_SIZE) as src:
        write_all(src.address, pages)
        before = look(dst.address, src.address, dst.nbytes)
        assert move(dst, src, holes=holes) == pages * PAGE_SIZE
        check_moved(before)


@pytest.mark.parametrize(
    "make",
    [
        lambda: pagemove.empty(2 * PAGE_SIZE, np.uint8),
        lambda: private_mmap(2),
        lambda: memoryview(pagemove.empty((2, PAGE_SIZE // 8))),
        lambda: np.frombuffer(private_mmap(2), np.uint16),
    ],
    ids=["empty", "mmap", "memoryview", "array"],
)
def test_any_buffers(make):
    dst, src = make(), make()
    contents = write_all(address_of(src), 2)
    before = look(address_of(dst), address_of(src), 2 * PAGE_SIZE)
    assert move(dst, src) == 2 * PAGE_SIZE
    check_moved(before)
    assert read_all(address_of(dst), 2) == contents


def test_foreign_memory(foreign):
    dst, src = foreign(3), foreign(3)
    src.fill()
    before = look(dst.address, src.address, dst.nbytes)
    assert move(dst.array(), src.array()) == 3 * PAGE_SIZE
    check_moved(before)


class TestPartialLastPage:
    """Two arrays made by `empty` of equal nbytes take the partial last page along."""

    @pytest.mark.parametrize("count", [1, 100, 511, 512, 513, 10_000])
    def test_between_two_arrays(self, count):
        dst, src = pagemove.empty(count), pagemove.empty(count)
        src[:] = np.arange(count)
        length = -(-count * 8 // PAGE_SIZE) * PAGE_SIZE
        assert move(dst, src) == length
        assert not page_states(src).any()
        assert (dst == np.arange(count)).all()
        assert not src.any()

    def test_of_different_shapes_and_dtypes(self):
        dst, src = pagemove.empty((10, 10), np.int32), pagemove.empty(50, np.float64)
        src[:] = 1.5
        assert move(dst, src) == PAGE_SIZE
        assert (dst.view(np.float64) == 1.5).all()

    def test_views_of_the_whole_array(self):
        dst, src = pagemove.empty(100), pagemove.empty(100)
        src[:] = 3
        assert move(dst.reshape(10, 10), memoryview(src)) == PAGE_SIZE
        assert (dst == 3).all()

    def test_a_shorter_view_is_no_whole_page(self):
        dst, src = pagemove.empty(100), pagemove.empty(100)
        src[:] = 3
        for to, of in ((dst[:99], src[:99]), (dst[1:], src[1:])):
            with refusal(errno.EINVAL, "move"):
                move(to, of)
        assert (src == 3).all()
        assert not page_states(dst).any()

    def test_a_memory_of_the_same_bytes_has_no_partial_page(self):
        # Memory rounds its length up: 800 bytes of an array are not 4096.
        with Memory(800) as memory:
            array = pagemove.empty(100)
            with pytest.raises(ValueError, match="bytes"):
                move(memory, array)

    @pytest.mark.parametrize("asked", [PAGE_SIZE, 100])
    def test_part_of_a_memory_is_no_whole_page(self, asked):
        # What is after the part belongs to the user of the Memory, whatever length was asked for.
        with Memory(asked) as dst, Memory(asked) as src:
            write(src.address, 1)
            to, of = dst.asarray(np.uint8, 100), src.asarray(np.uint8, 100)
            with refusal(errno.EINVAL, "move"):
                move(to, of)
            assert read(src.address) == pattern(1)
            # The error keeps the frames it passed through, and these their arrays, until now.
            del to, of
            gc.collect()

    def test_foreign_arrays_have_none(self):
        dst, src = np.zeros(100), pagemove.empty(100)
        src[:] = 1
        for to, of in ((dst, src), (src, dst)):
            with refusal(errno.EINVAL, "move"):
                move(to, of)
        assert (src == 1).all()


class TestAllOrError:
    """What stops it raises, with `.moved` bytes from the start moved."""

    @GUARDS
    @pytest.mark.parametrize("page", [0, 1, 15, 16, 19])
    @pytest.mark.parametrize(
        ("what", "code", "holes"),
        [
            ("hole", errno.ENOENT, False),
            ("occupied", errno.EEXIST, False),
            ("occupied", errno.EEXIST, True),
        ],
    )
    def test_stops_at_the_first_page_that_cannot_move(
        self, guarded, page, what, code, holes, guard
    ):
        guarded(guard)
        with Memory(20 * PAGE_SIZE) as dst, Memory(20 * PAGE_SIZE) as src:
            contents = write_all(src.address, 20)
            at_page = page * PAGE_SIZE
            if what == "hole":
                src.discard(at_page, PAGE_SIZE)
            else:
                write(dst.address + at_page, 99)
            beyond = look(dst.address + at_page, src.address + at_page, dst.nbytes - at_page)
            with refusal(code, "move", moved=at_page) as error:
                move(dst, src, holes=holes)
            side = src if what == "hole" else dst
            assert error().address == side.address + at_page
            assert f"{side.address + at_page:#x}" in str(error())
            assert (str(at_page) in str(error())) or not page
            assert hole(src.address, page)
            assert read_all(dst.address, page) == contents[:at_page]
            after = look(dst.address + at_page, src.address + at_page, dst.nbytes - at_page)
            assert after.dst.states == beyond.dst.states
            assert after.src.states == beyond.src.states
            assert after.src.contents == beyond.src.contents

    @pytest.mark.needs("fork")
    def test_a_shared_page(self, foreign):
        dst, src = foreign(4), foreign(4)
        src.fill()
        with living_child():
            for page in (0, 1, 3):
                write(src.page(page), page)
            with refusal(errno.EBUSY, "move", moved=2 * PAGE_SIZE) as error:
                move(dst.array(), src.array())
            assert error().address == src.page(2)

    def test_continues_after_the_caller_fixes_it(self):
        with Memory(9 * PAGE_SIZE) as dst, Memory(9 * PAGE_SIZE) as src:
            contents = write_all(src.address, 9)
            write(dst.address + 4 * PAGE_SIZE, 99)
            with pytest.raises(pagemove.DestinationMapped) as caught:
                move(dst, src)
            done = caught.value.moved
            dst.discard(done, PAGE_SIZE)
            to, of = (np.frombuffer(m, np.uint8)[done:] for m in (dst, src))
            assert done + move(to, of) == dst.nbytes
            assert read_all(dst.address, 9) == contents
            del to, of


class TestHoles:
    @GUARDS
    def test_are_skipped_and_counted(self, guarded, guard):
        guarded(guard)
        with Memory(10 * PAGE_SIZE) as dst, Memory(10 * PAGE_SIZE) as src:
            for page in (2, 3, 7):
                write(src.address + page * PAGE_SIZE, page)
            assert move(dst, src, holes=True) == 10 * PAGE_SIZE
            assert [bool(s) for s in dst.page_states()] == [page in (2, 3, 7) for page in range(10)]
            assert hole(src.address, 10)

    def test_is_by_keyword_only(self):
        with Memory(PAGE_SIZE) as dst, Memory(PAGE_SIZE) as src, pytest.raises(TypeError):
            move(dst, src, True)


class TestArguments:
    def test_unequal_lengths_are_a_value_error(self):
        with Memory(2 * PAGE_SIZE) as dst, Memory(PAGE_SIZE) as src:
            write(src.address, 1)
            for to, of in ((dst, src), (src, dst)):
                with pytest.raises(ValueError, match=f"{PAGE_SIZE}"):
                    move(to, of)
            assert read(src.address) == pattern(1)

    @pytest.mark.parametrize(
        "wrong", [None, 1.5, "text", [1], object(), 4096, np.int64(4096), np.uint64(0), True]
    )
    def test_anything_but_a_buffer_is_a_type_error(self, wrong):
        with Memory(PAGE_SIZE) as memory:
            for arguments in ((wrong, memory), (memory, wrong)):
                with pytest.raises(TypeError):
                    move(*arguments)

    def test_a_read_only_buffer_is_a_buffer_error(self):
        with Memory(PAGE_SIZE) as memory:
            for arguments in ((bytes(PAGE_SIZE), memory), (memory, bytes(PAGE_SIZE))):
                with pytest.raises(BufferError):
                    move(*arguments)

    def test_a_closed_memory_is_a_value_error(self):
        with Memory(PAGE_SIZE) as memory:
            closed = Memory(PAGE_SIZE)
            closed.close()
            for arguments in ((closed, memory), (memory, closed)):
                with pytest.raises(ValueError, match="closed"):
                    move(*arguments)

    def test_the_same_buffer_is_einval(self):
        with Memory(PAGE_SIZE) as memory:
            write(memory.address, 1)
            with refusal(errno.EINVAL, "move"):
                move(memory, memory)

    def test_forward_overlap_is_einval_and_backward_is_not(self):
        array = pagemove.empty(10 * PAGE_SIZE, np.uint8)
        contents = write_all(array.ctypes.data + PAGE_SIZE, 9)
        up, down = array[PAGE_SIZE:], array[:-PAGE_SIZE]
        with refusal(errno.EINVAL, "move"):
            move(up, down)
        assert move(down, up) == 9 * PAGE_SIZE
        assert read_all(array.ctypes.data, 9) == contents

    @pytest.mark.parametrize("start", [1, 8, 4095])
    def test_a_buffer_not_at_the_start_of_a_page_is_einval(self, start):
        arrays = [pagemove.empty(3 * PAGE_SIZE, np.uint8) for _ in range(2)]
        arrays[1][:] = 1
        for to, of in ((start, 0), (0, start), (start, start)):
            dst, src = arrays[0][to : to + PAGE_SIZE], arrays[1][of : of + PAGE_SIZE]
            with refusal(errno.EINVAL, "move"):
                move(dst, src)
        assert (arrays[1] == 1).all()
        assert not page_states(arrays[0]).any()

    @pytest.mark.parametrize("length", [1, 100, PAGE_SIZE - 1, PAGE_SIZE + 1])
    def test_a_buffer_of_other_than_whole_pages_is_einval(self, foreign, length):
        dst, src = foreign(2), foreign(2)
        src.fill()
        with refusal(errno.EINVAL, "move"):
            move(dst.array()[:length], src.array()[:length])
        assert hole(dst.address, 2)

    def test_empty_buffers_are_einval(self):
        array = pagemove.empty(10)
        with refusal(errno.EINVAL, "move"):
            move(array[:0], array[:0])

    def test_mappings_are_checked(self, foreign):
        dst, src = foreign(2), foreign(2)
        src.fill()
        lowlevel.mprotect(src.address, src.nbytes, mmap.PROT_READ)
        with refusal(errno.EINVAL, "move") as error:
            move(dst.array(), src.array())
        assert error().address == src.address

    def test_buffers_are_held_during_the_call_and_released(self):
        with Memory(PAGE_SIZE) as dst, Memory(PAGE_SIZE) as src:
            for _ in range(3):
                with pytest.raises(RemapError):
                    move(dst, src)
            write(src.address, 1)
            move(dst, src)


def test_the_source_is_fresh_memory_afterwards():
    dst, src = pagemove.empty(PAGE_SIZE, np.uint8), pagemove.empty(PAGE_SIZE, np.uint8)
    src[:] = 5
    move(dst, src)
    assert read(address_of(src)) == zeros()
    src[:] = 6
    assert (dst == 5).all()
    assert at(address_of(src), 1)[0] == 6
