"""move_many: its index arrays. All are checked before anything moves, whoever changes them then."""

from __future__ import annotations

import array
import errno
import threading

import numpy as np
import pytest

from pagemove import PAGE_SIZE, Memory, RemapError, move_many, page_states, remap_anon_pages
from pagemove._native import remap
from support import hole, pattern, read, read_all, together, write, write_all
from support.selection import few

from .checks import GUARDS, signature

pytestmark = pytest.mark.needs("move")

DTYPES = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]


@pytest.fixture
def pair(foreign):
    dst, src = foreign(8), foreign(8)
    src.fill()
    return dst, src


def untouched(dst, src) -> None:
    assert hole(dst.address, dst.pages)
    assert src.contents() == b"".join(map(pattern, range(src.pages)))


def test_its_signature_is_the_one_of_the_contract():
    expected = f"(dst, src, dst_pages, src_pages, *, page_size={PAGE_SIZE}, holes=False)"
    assert signature(move_many) == expected


class TestAnyIntegers:
    def check(self, pair, to: object, of: object) -> None:
        dst, src = pair
        assert move_many(dst.array(), src.array(), to, of) == 4 * PAGE_SIZE
        for page, origin in ((7, 1), (0, 2), (1, 3), (4, 4)):
            assert read(dst.page(page)) == pattern(origin)
        assert [bool(s) for s in src.states()] == [True] + [False] * 4 + [True] * 3

    @pytest.mark.parametrize("of_type", DTYPES, ids=lambda d: d.__name__)
    @pytest.mark.parametrize("to_type", DTYPES, ids=lambda d: d.__name__)
    def test_all_dtypes(self, pair, to_type, of_type):
        self.check(pair, np.array([7, 0, 1, 4], to_type), np.array([1, 2, 3, 4], of_type))

    @pytest.mark.parametrize("dtype", DTYPES[2:], ids=lambda d: d.__name__)
    def test_byte_swapped(self, pair, dtype):
        swapped = np.dtype(dtype).newbyteorder()
        self.check(pair, np.array([7, 0, 1, 4], swapped), np.array([1, 2, 3, 4], swapped))

    @pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
    def test_strided(self, pair, dtype):
        to = np.array([7, 99, 0, 99, 1, 99, 4], dtype)[::2]
        of = np.array([4, 3, 2, 1], dtype)[::-1]
        self.check(pair, to, of)

    def test_a_column_of_an_array(self, pair):
        table = np.array([[7, 1], [0, 2], [1, 3], [4, 4]])
        self.check(pair, table[:, 0], table[:, 1])

    def test_not_aligned(self, pair):
        raw = np.zeros(4 * 8 + 1, np.uint8)
        to = raw[1:].view(np.int64)
        to[:] = [7, 0, 1, 4]
        assert not to.flags.aligned
        self.check(pair, to, np.array([1, 2, 3, 4]))

    def test_read_only(self, pair):
        to, of = np.array([7, 0, 1, 4]), np.array([1, 2, 3, 4])
        to.flags.writeable = of.flags.writeable = False
        self.check(pair, to, of)

    def test_broadcast(self, foreign):
        dst, src = foreign(2), foreign(2)
        src.fill()
        with pytest.raises(RemapError) as caught:
            move_many(dst.array(), src.array(), np.array([0, 1]), np.broadcast_to(1, 2))
        assert (caught.value.index, caught.value.errno) == (1, errno.ENOENT)

    @pytest.mark.parametrize(
        "kind",
        [list, tuple, lambda p: range(p[0], p[0] + len(p)), lambda p: array.array("q", p)],
        ids=["list", "tuple", "range", "array.array"],
    )
    def test_sequences(self, foreign, kind):
        dst, src = foreign(8), foreign(8)
        src.fill()
        assert move_many(dst.array(), src.array(), kind([3, 4]), kind([1, 2])) == 2 * PAGE_SIZE
        assert read_all(dst.page(3), 2) == pattern(1) + pattern(2)

    def test_the_arrays_are_left_as_they_were(self, pair):
        to, of = np.array([7, 0, 1, 4]), np.array([1, 2, 3, 4], np.int16)
        self.check(pair, to, of)
        assert to.tolist() == [7, 0, 1, 4]
        assert of.tolist() == [1, 2, 3, 4]

    @pytest.mark.parametrize(
        "empty",
        [[], (), np.zeros(0, np.int64), np.zeros(0, np.uint8), range(0)],
        ids=["list", "tuple", "int64", "uint8", "range"],
    )
    @pytest.mark.parametrize("holes", [False, True])
    def test_empty_moves_nothing(self, pair, empty, holes):
        dst, src = pair
        assert move_many(dst.array(), src.array(), empty, empty, holes=holes) == 0
        untouched(dst, src)


class TestOutOfRange:
    """Out of range or negative: IndexError, before anything moves."""

    @GUARDS
    @pytest.mark.parametrize("position", [0, 1, 4, 7])
    @pytest.mark.parametrize("side", ["dst", "src"])
    @pytest.mark.parametrize(
        "wrong", [8, 9, -1, -8, 127, -128, 2**31, 2**52, 2**63 - 1, -(2**63), 2**51 - 1]
    )
    def test_anywhere(self, pair, guarded, side, wrong, position, guard):
        guarded(guard)
        dst, src = pair
        pages = {"dst": np.arange(8), "src": np.arange(8)}
        pages[side][position] = wrong
        with pytest.raises(IndexError) as caught:
            move_many(dst.array(), src.array(), pages["dst"], pages["src"])
        assert str(wrong) in str(caught.value)
        assert f"{side}_pages" in str(caught.value)
        assert str(position) in str(caught.value)
        untouched(dst, src)

    @pytest.mark.parametrize("side", ["dst", "src"])
    @pytest.mark.parametrize("wrong", [2**63, 2**63 + 3, 2**64 - 1, 2**64 - 8])
    def test_large_uint64_is_not_taken_for_a_negative_or_small_number(self, pair, side, wrong):
        dst, src = pair
        pages = {"dst": np.arange(4, dtype=np.uint64), "src": np.arange(4, dtype=np.uint64)}
        pages[side][2] = wrong
        with pytest.raises(IndexError, match=str(wrong)):
            move_many(dst.array(), src.array(), pages["dst"], pages["src"])
        untouched(dst, src)

    @pytest.mark.parametrize("side", ["dst", "src"])
    def test_numbers_too_large_for_any_integer_dtype(self, pair, side):
        dst, src = pair
        pages = {"dst": [0], "src": [0], side: [2**64]}
        with pytest.raises((IndexError, TypeError, OverflowError)):
            move_many(dst.array(), src.array(), pages["dst"], pages["src"])
        untouched(dst, src)

    def test_the_limit_is_that_of_each_buffer(self, foreign):
        dst, src = foreign(2), foreign(5)
        src.fill()
        with pytest.raises(IndexError):
            move_many(dst.array(), src.array(), [2], [4])
        assert move_many(dst.array(), src.array(), [1], [4]) == PAGE_SIZE

    def test_before_an_error_of_the_mappings(self, pair):
        dst, src = pair
        src.discard()
        with pytest.raises(IndexError):
            move_many(dst.array(), src.array(), [0, 8], [0, 0])


class TestUnequalLengths:
    @pytest.mark.parametrize(
        ("to", "of"),
        [([], [0]), ([0], []), ([0], [0, 1]), ([0, 1, 2], [0, 1]), (range(8), range(7))],
    )
    def test_are_a_value_error_before_anything_moves(self, pair, to, of):
        dst, src = pair
        with pytest.raises(ValueError, match=f"{len(to)}.*{len(of)}"):
            move_many(dst.array(), src.array(), to, of)
        untouched(dst, src)


class TestNoIntegers:
    @pytest.mark.parametrize(
        "wrong",
        [[0.0], np.array([0.0]), ["0"], [None], np.array([True]), [1j], np.array([0], object), "0"],
        ids=repr,
    )
    def test_are_a_type_error(self, pair, wrong):
        dst, src = pair
        for to, of in ((wrong, [0]), ([0], wrong)):
            with pytest.raises(TypeError):
                move_many(dst.array(), src.array(), to, of)
        untouched(dst, src)

    @pytest.mark.parametrize("wrong", [[[0, 1]], np.zeros((2, 2), int), np.zeros((1, 1, 1), int)])
    def test_arrays_of_more_dimensions_are_a_value_error(self, pair, wrong):
        dst, src = pair
        with pytest.raises(ValueError, match="dimension"):
            move_many(dst.array(), src.array(), wrong, wrong)
        untouched(dst, src)

    @pytest.mark.parametrize("wrong", [0, np.int64(0), np.array(0)])
    def test_a_single_number_is_refused(self, pair, wrong):
        dst, src = pair
        with pytest.raises((ValueError, TypeError)):
            move_many(dst.array(), src.array(), wrong, wrong)
        untouched(dst, src)


class TestChangedMeanwhile:
    """An index array changed by another thread never moves a page outside the buffers."""

    PAGES = 256

    @GUARDS
    @pytest.mark.parametrize("wild", [2**62, -1, -(2**40), 256, 511, 2**51])
    def test_by_a_hammering_thread(self, foreign, guarded, wild, guard):
        guarded(guard)
        pages = self.PAGES
        # Both buffers lie in the middle of larger areas: a move outside would show there.
        dst, src = foreign(3 * pages), foreign(3 * pages)
        whole = src.fill()
        to, of = np.arange(pages), np.arange(pages)
        inner = slice(pages * PAGE_SIZE, 2 * pages * PAGE_SIZE)
        stop = threading.Event()

        def hammer() -> None:
            at = 0
            while not stop.is_set():
                at = (at * 5 + 37) % pages
                to[at] = of[pages - 1 - at] = wild
                to[at] = at
                of[pages - 1 - at] = pages - 1 - at

        stopped: list[RemapError] = []

        def call() -> int:
            moved = 0
            try:
                for _ in range(few(50, 8)):
                    try:
                        moved += move_many(dst.array()[inner], src.array()[inner], to, of)
                    except IndexError:
                        continue
                    except RemapError as error:
                        stopped.append(error)
                    self.put_back(dst, src)
            finally:
                stop.set()
            return moved

        assert together(call, hammer)[0] or stopped
        assert all(error.moved == error.index * PAGE_SIZE for error in stopped)
        outside = [page for page in range(3 * pages) if not pages <= page < 2 * pages]
        assert not any(dst.states()[page] for page in outside)
        for page in outside[::7]:
            start = page * PAGE_SIZE
            assert read(src.page(page)) == whole[start : start + PAGE_SIZE]

    def put_back(self, dst, src) -> None:
        """Move what is in dst back to where there is room in src, one page at a time."""
        states = page_states(dst.array())
        present = np.flatnonzero(states)
        free = np.flatnonzero(page_states(src.array()) == 0)
        for page, home in zip(present.tolist(), free.tolist(), strict=True):
            remap_anon_pages(src.page(home), dst.page(page), PAGE_SIZE)

    def test_changed_before_the_call_goes_on(self, foreign, monkeypatch):
        # Deterministic: changed between the check of all indices and the first move.
        dst, src = foreign(8), foreign(8)
        src.fill()
        to, of = np.arange(4), np.arange(4)
        native = remap.move_many

        def late(*args):
            to[2] = 1 << 40
            return native(*args)

        monkeypatch.setattr(remap, "move_many", late)
        with pytest.raises(RemapError) as caught:
            move_many(dst.array(), src.array(), to, of)
        assert caught.value.index == 2
        assert caught.value.moved == 2 * PAGE_SIZE
        assert caught.value.errno == errno.EINVAL
        assert "changed" in str(caught.value)
        assert hole(dst.page(2), 6)
        assert read(src.page(2)) == pattern(2)

    @pytest.mark.parametrize("side", ["dst", "src"])
    @pytest.mark.parametrize("wild", [8, -1, 2**62, -(2**63), 2**52 + 1, 100])
    @GUARDS
    def test_each_index_is_checked_again(self, foreign, monkeypatch, guarded, side, wild, guard):
        guarded(guard)
        # 200 pages of room around, so that a page moved wrongly would have where to go.
        dst, src = foreign(408), foreign(408)
        src.fill()
        inner = slice(200 * PAGE_SIZE, 208 * PAGE_SIZE)
        pages = {"dst": np.arange(8), "src": np.arange(8)}
        native = remap.move_many

        def late(*args):
            pages[side][5] = wild
            return native(*args)

        monkeypatch.setattr(remap, "move_many", late)
        with pytest.raises(RemapError) as caught:
            move_many(dst.array()[inner], src.array()[inner], pages["dst"], pages["src"])
        assert (caught.value.index, caught.value.moved) == (5, 5 * PAGE_SIZE)
        assert [bool(s) for s in dst.states()] == [200 <= page < 205 for page in range(408)]
        assert [not s for s in src.states()] == [200 <= page < 205 for page in range(408)]

    @GUARDS
    def test_a_run_that_grows_beyond_the_buffers_ends_with_them(
        self, foreign, monkeypatch, guarded, guard
    ):
        guarded(guard)
        dst, src = foreign(24), foreign(24)
        src.fill()
        inner = slice(8 * PAGE_SIZE, 16 * PAGE_SIZE)
        to, of = np.arange(12) % 8, np.arange(12) % 8
        native = remap.move_many

        def late(*args):
            to[:] = of[:] = np.arange(12)
            return native(*args)

        monkeypatch.setattr(remap, "move_many", late)
        with pytest.raises(RemapError) as caught:
            move_many(dst.array()[inner], src.array()[inner], to, of)
        assert (caught.value.index, caught.value.moved) == (8, 8 * PAGE_SIZE)
        assert [bool(s) for s in dst.states()] == [8 <= page < 16 for page in range(24)]
        assert [not s for s in src.states()] == [8 <= page < 16 for page in range(24)]


class TestWithoutTheInterpreter:
    """The whole loop runs without the GIL."""

    def test_another_thread_runs_meanwhile(self):
        pages = 4096
        with Memory(2 * pages * PAGE_SIZE) as dst, Memory(2 * pages * PAGE_SIZE) as src:
            write_all(src.address, 1)
            for page in range(0, 2 * pages, 2):
                write(src.address + page * PAGE_SIZE, page)
            scattered = np.random.default_rng(0).permutation(pages) * 2
            ticks, stop = [0], threading.Event()
            started = threading.Event()

            def tick() -> None:
                while not stop.is_set():
                    ticks[0] += 1
                    started.set()

            thread = threading.Thread(target=tick)
            thread.start()
            try:
                started.wait(10)
                # One call takes about as long as the interpreter's own switch interval.
                for _ in range(5):
                    before = ticks[0]
                    assert move_many(dst, src, scattered, scattered) == pages * PAGE_SIZE
                    meanwhile = ticks[0] - before
                    assert move_many(src, dst, scattered, scattered) == pages * PAGE_SIZE
                    if meanwhile > 1:
                        break
            finally:
                stop.set()
                thread.join(10)
            assert meanwhile > 1
