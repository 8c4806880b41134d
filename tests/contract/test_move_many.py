"""move_many: page ``src_pages[i]`` of src to page ``dst_pages[i]`` of dst, in order."""

from __future__ import annotations

import errno
import mmap

import numpy as np
import pytest

import pagemove
from pagemove import (
    PAGE_SIZE,
    Memory,
    PageState,
    RemapError,
    lowlevel,
    move_many,
    remap_anon_pages,
)
from support import Area, hole, living_child, pattern, read, read_all, write, write_all

from .checks import GUARDS, look, refusal, zeros

pytestmark = pytest.mark.needs("move")


def page_by_page(
    dst: Area, src: Area, dst_pages: np.ndarray, src_pages: np.ndarray, flags: int = 0
) -> tuple[int, int | None, int]:
    """Do what move_many promises, one call a page: (bytes moved, position, errno)."""
    moved = 0
    for position, (to, of) in enumerate(zip(dst_pages.tolist(), src_pages.tolist(), strict=True)):
        try:
            moved += remap_anon_pages(dst.page(to), src.page(of), PAGE_SIZE, flags)
        except RemapError as error:
            return moved, position, error.errno
    return moved, None, 0


def outcome(
    dst: Area, src: Area, dst_pages: np.ndarray, src_pages: np.ndarray, holes: bool
) -> tuple[int, int | None, int]:
    """The same by move_many itself."""
    try:
        moved = move_many(dst.array(), src.array(), dst_pages, src_pages, holes=holes)
    except RemapError as error:
        return error.moved, error.index, error.errno
    return moved, None, 0


def contents(area: Area) -> list[bytes | None]:
    """Return the contents of each page, None for a hole."""
    return [read(area.page(page)) if state else None for page, state in enumerate(area.states())]


#: Index arrays of every shape that coalescing could get wrong, as functions of the page count.
ORDERS: dict[str, tuple[list[int], list[int]]] = {
    "one page": ([3], [5]),
    "one run": (list(range(24)), list(range(24))),
    "one run elsewhere": (list(range(4, 20)), list(range(8, 24))),
    "reversed destination": (list(range(23, -1, -1)), list(range(24))),
    "both reversed": (list(range(23, -1, -1)), list(range(23, -1, -1))),
    "runs of four": (
        [8, 9, 10, 11, 0, 1, 2, 3, 16, 17, 18, 19],
        [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7],
    ),
    "run of destinations only": (list(range(8)), [0, 2, 4, 6, 8, 10, 12, 14]),
    "run of sources only": ([0, 2, 4, 6, 8, 10, 12, 14], list(range(8))),
    "every second": (list(range(0, 24, 2)), list(range(1, 24, 2))),
    "a source twice": ([0, 1, 2, 3], [5, 6, 5, 7]),
    "a destination twice": ([0, 1, 0, 3], [5, 6, 7, 8]),
    "a pair twice in a row": ([4, 4], [4, 4]),
    "a run twice": ([*range(6), *range(6)], [*range(6), *range(6)]),
    "runs that overlap": ([0, 1, 2, 2, 3, 4], [5, 6, 7, 7, 8, 9]),
    "almost a run": ([0, 1, 2, 4, 5], [0, 1, 2, 3, 4]),
    "last page first": ([23, 0], [0, 23]),
}


class TestAsIfPageByPage:
    """Coalescing must not change what overlapping or repeated indices do."""

    @GUARDS
    @pytest.mark.parametrize("holes", [False, True])
    @pytest.mark.parametrize("order", ORDERS)
    def test_between_two_buffers(self, foreign, guarded, order, holes, guard):
        guarded(guard)
        to, of = (np.array(pages) for pages in ORDERS[order])
        results = []
        for move_them in (page_by_page, outcome):
            dst, src = foreign(24), foreign(24)
            src.fill()
            done = move_them(dst, src, to, of, holes)
            results.append((done, contents(dst), contents(src)))
        assert results[0] == results[1]

    @GUARDS
    @pytest.mark.parametrize("holes", [False, True])
    @pytest.mark.parametrize(
        ("to", "of"),
        [
            (range(1, 13), range(12)),
            (range(12), range(1, 13)),
            (range(2, 14), range(12)),
            (range(12), range(3, 15)),
            (range(5, 0, -1), range(4, -1, -1)),
            (range(12), range(12)),
            ([12, 0, 1], [0, 1, 12]),
            ([12, 13, 0, 1], [0, 1, 12, 13]),
            ([1, 2, 3, 4], [0, 1, 2, 3]),
            ([12, 11, 10], [11, 10, 9]),
            ([12, 13, 14, 15, 16], [10, 11, 12, 13, 14]),
            (list(range(13, 24)), list(range(10, 21))),
        ],
        ids=str,
    )
    def test_within_one_buffer(self, foreign, guarded, to, of, holes, guard):
        # The sources of late pages may be the destinations of early ones.
        guarded(guard)
        to, of = np.array(to), np.array(of)
        results = []
        for move_them in (page_by_page, outcome):
            area = foreign(24)
            area.fill()
            area.discard(12)
            done = move_them(area, area, to, of, holes)
            results.append((done, contents(area)))
        assert results[0] == results[1]

    @GUARDS
    @pytest.mark.parametrize("holes", [False, True])
    def test_a_page_that_moves_on_and_on(self, foreign, guarded, holes, guard):
        guarded(guard)
        area = foreign(8)
        write(area.page(0), 7)
        moved = move_many(area.array(), area.array(), np.arange(1, 8), np.arange(7), holes=holes)
        assert moved == 7 * PAGE_SIZE
        assert contents(area) == [None] * 7 + [pattern(7)]

    @GUARDS
    @pytest.mark.parametrize("holes", [False, True])
    @pytest.mark.parametrize("seed", range(12))
    def test_at_random(self, foreign, guarded, seed, holes, guard):
        guarded(guard)
        random = np.random.default_rng(seed)
        count = int(random.integers(1, 60))
        starts = random.integers(0, 36, (2, count // 4 + 1))
        # Short runs, as compacting a heap makes them, with repetitions.
        to, of = (np.concatenate([s + np.arange(4) for s in row])[:count] for row in starts)
        absent = random.random(40) < random.choice([0.0, 0.1])
        taken = random.random(40) < random.choice([0.0, 0.1])
        results = []
        for move_them in (page_by_page, outcome):
            dst, src = foreign(40), foreign(40)
            src.fill()
            for page in np.flatnonzero(absent).tolist():
                src.discard(page, 1)
            for page in np.flatnonzero(taken).tolist():
                write(dst.page(page), 1000)
            done = move_them(dst, src, to, of, holes)
            results.append((done, contents(dst), contents(src)))
        assert results[0] == results[1]

    @GUARDS
    @pytest.mark.parametrize("pages", [1000, 1023, 1024, 1025, 2500, 5000])
    def test_a_permutation_of_many(self, foreign, guarded, pages, guard):
        guarded(guard)
        dst, src = foreign(pages), foreign(pages)
        whole = src.fill()
        random = np.random.default_rng(pages)
        to, of = random.permutation(pages), random.permutation(pages)
        before = look(dst.address, src.address, dst.nbytes)
        assert move_many(dst.array(), src.array(), to, of) == dst.nbytes
        after = look(dst.address, src.address, dst.nbytes)
        assert after.mappings == before.mappings
        assert after.rss == before.rss
        assert hole(src.address, pages)
        origin = np.empty(pages, np.intp)
        origin[to] = of
        for page in range(0, pages, 17):
            start = int(origin[page]) * PAGE_SIZE
            assert read(dst.page(page)) == whole[start : start + PAGE_SIZE]

    @GUARDS
    def test_sparse_pages_of_a_large_buffer(self, foreign, guarded, guard):
        guarded(guard)
        dst, src = foreign(100_000), foreign(100_000)
        random = np.random.default_rng(0)
        to, of = (random.choice(100_000, 300, replace=False) for _ in range(2))
        for page in of.tolist():
            write(src.page(page), page)
        assert move_many(dst.array(), src.array(), to, of) == 300 * PAGE_SIZE
        for page, origin in zip(to.tolist(), of.tolist(), strict=True):
            assert read(dst.page(page)) == pattern(origin)

    @GUARDS
    def test_pages_of_zeros_far_apart(self, foreign, guarded, guard):
        guarded(guard)
        dst, src = foreign(2000), foreign(2000)
        pages = np.arange(0, 2000, 100)
        for page in pages.tolist()[::2]:
            write(src.page(page), page)
        for page in pages.tolist()[1::2]:
            assert read(src.page(page)) == bytes(PAGE_SIZE)
        before = src.states()[::100]
        assert PageState.PRESENT | PageState.ZERO in before
        assert move_many(dst.array(), src.array(), pages[::-1], pages) == pages.size * PAGE_SIZE
        assert dst.states()[::100] == before[::-1]
        assert hole(src.address, src.pages)

    @pytest.mark.needs("guard")
    @GUARDS
    @pytest.mark.parametrize("apart", [1, 10, 100])
    def test_a_page_of_zeros_does_not_go_where_a_guard_page_is(
        self, foreign, guarded, guard, apart
    ):
        # A guard page passes for a hole at first, and the zero page says nothing of having moved.
        guarded(guard)
        dst, src = foreign(8 * apart), foreign(8 * apart)
        pages = np.array([3, 1, 6, 2]) * apart
        for page in pages.tolist():
            assert read(src.page(page)) == bytes(PAGE_SIZE)
        dst.advise(lowlevel.MADV_GUARD_INSTALL, 6 * apart, 1)
        assert outcome(dst, src, pages, pages, holes=False) == (2 * PAGE_SIZE, 2, errno.EEXIST)
        # The same within one buffer, the page of zeros having come there by a move itself.
        chain = np.array([4, 6]) * apart, np.array([3, 4]) * apart
        assert outcome(dst, dst, *chain, holes=False) == (PAGE_SIZE, 1, errno.EEXIST)

    @pytest.mark.needs("swap")
    def test_swapped_pages_far_apart(self, foreign, guarded):
        # With the guard only: a page still on its way to swap makes a kernel with the defect deny
        # that it has moved.
        guarded(True)
        dst, src = foreign(2000), foreign(2000)
        pages = np.arange(0, 2000, 100)
        for page in pages.tolist():
            write(src.page(page), page)
        src.page_out()
        assert PageState.SWAPPED in src.states()
        write(dst.page(500), 1)
        dst.page_out()
        assert outcome(dst, src, pages, pages, holes=False) == (5 * PAGE_SIZE, 5, errno.EEXIST)
        for page in pages.tolist():
            where = dst if page < 500 else src
            assert read(where.page(page)) == pattern(page)

    @GUARDS
    def test_rotating_within_one_buffer(self, guarded, guard):
        guarded(guard)
        with Memory(33 * PAGE_SIZE) as memory:
            whole = write_all(memory.address, 32)
            for turn in range(33):
                spare = (32 - turn) % 33
                move_many(memory, memory, [spare], [(spare - 1) % 33])
            # 33 moves of one page into the spare place turn the whole by one.
            assert sorted(read_all(memory.address, 33)) == sorted(whole + zeros())

    @GUARDS
    def test_runs_that_cross_two_mappings(self, foreign, guarded, guard):
        guarded(guard)
        dst, src = foreign(12), foreign(12)
        whole = src.fill()
        dst.advise(mmap.MADV_DONTFORK, 0, 5)  # a mapping of its own
        src.advise(mmap.MADV_DONTFORK, 7, 5)
        pages = np.arange(12)
        assert move_many(dst.array(), src.array(), pages, pages) == dst.nbytes
        assert dst.contents() == whole
        assert hole(src.address, 12)

    @GUARDS
    @pytest.mark.parametrize("holes", [False, True])
    def test_runs_that_cross_into_nothing(self, foreign, guarded, guard, holes):
        guarded(guard)
        dst, src = foreign(6), foreign(6)
        whole = src.fill()
        to_array, of_array = dst.array(), src.array()
        src.unmap(4, 1)
        pages = np.arange(6)
        with refusal(errno.EINVAL, "move_many", moved=4 * PAGE_SIZE) as error:
            move_many(to_array, of_array, pages, pages, holes=holes)
        assert error().index == 4
        assert error().address == src.page(4)
        assert read_all(dst.address, 4) == whole[: 4 * PAGE_SIZE]


class TestErrors:
    """`.moved` and `.index`: everything before it moved, nothing after it tried."""

    @GUARDS
    @pytest.mark.parametrize("run", ["one run", "scattered", "reversed", "far apart"])
    @pytest.mark.parametrize("failing", range(20))
    def test_at_every_position(self, foreign, guarded, failing, run, guard):
        guarded(guard)
        pages = np.arange(20)
        if run == "scattered":
            pages = pages * 7 % 20
        elif run == "reversed":
            pages = pages[::-1]
        elif run == "far apart":
            pages = pages * 7 % 20 * 100
        dst, src = foreign(int(pages.max()) + 1), foreign(int(pages.max()) + 1)
        for page in pages.tolist():
            write(src.page(page), page)
        bad = int(pages[failing])
        if failing % 2:
            src.discard(bad, 1)
        else:
            write(dst.page(bad), 99)
        code = errno.ENOENT if failing % 2 else errno.EEXIST
        with refusal(code, "move_many", moved=failing * PAGE_SIZE) as error:
            move_many(dst.array(), src.array(), pages, pages)
        assert error().index == failing
        assert error().address == (src if failing % 2 else dst).page(bad)
        assert f"{error().address:#x}" in str(error())
        for position, page in enumerate(pages.tolist()):
            if position < failing:
                assert read(dst.page(page)) == pattern(page)
                assert hole(src.page(page))
            elif position > failing:
                assert hole(dst.page(page))
                assert read(src.page(page)) == pattern(page)

    @pytest.mark.needs("fork")
    @GUARDS
    def test_a_shared_page(self, foreign, guarded, guard):
        guarded(guard)
        dst, src = foreign(8), foreign(8)
        src.fill()
        with living_child():
            for page in (0, 1, 2, 4, 5, 6, 7):
                write(src.page(page), page)
            with refusal(errno.EBUSY, "move_many", moved=3 * PAGE_SIZE) as error:
                move_many(dst.array(), src.array(), range(8), range(8))
            assert error().index == 3
            assert error().address == src.page(3)

    @GUARDS
    def test_the_same_source_twice_is_a_hole_the_second_time(self, foreign, guarded, guard):
        guarded(guard)
        dst, src = foreign(4), foreign(4)
        src.fill()
        with refusal(errno.ENOENT, "move_many", moved=2 * PAGE_SIZE) as error:
            move_many(dst.array(), src.array(), [0, 1, 2], [3, 2, 3])
        assert error().index == 2
        assert error().address == src.page(3)

    @GUARDS
    def test_the_same_destination_twice_is_occupied_the_second_time(self, foreign, guarded, guard):
        guarded(guard)
        dst, src = foreign(4), foreign(4)
        src.fill()
        with refusal(errno.EEXIST, "move_many", moved=2 * PAGE_SIZE) as error:
            move_many(dst.array(), src.array(), [0, 1, 0], [3, 2, 1])
        assert error().index == 2
        assert error().address == dst.page(0)

    @pytest.mark.parametrize("failing", [0, 1, 3])
    @pytest.mark.parametrize("part", [0, 1])
    @pytest.mark.parametrize("what", ["hole", "occupied"])
    @GUARDS
    def test_a_page_of_two_of_which_one_part_fails(
        self, foreign, guarded, guard, failing, part, what
    ):
        # .moved counts bytes; .index the page of the index arrays that was not wholly moved.
        guarded(guard)
        dst, src = foreign(8), foreign(8)
        src.fill()
        bad = 2 * failing + part
        if what == "hole":
            src.discard(bad, 1)
        else:
            write(dst.page(bad), 99)
        code = errno.ENOENT if what == "hole" else errno.EEXIST
        with refusal(code, "move_many", moved=bad * PAGE_SIZE) as error:
            move_many(dst.array(), src.array(), range(4), range(4), page_size=2 * PAGE_SIZE)
        assert error().index == failing
        assert error().address == (src if what == "hole" else dst).page(bad)
        assert hole(src.address, bad)

    def test_bad_mappings(self, foreign):
        src = foreign(2)
        src.fill()
        with pytest.raises(RemapError) as caught:
            move_many(np.ones(40 << 20, np.uint8)[:PAGE_SIZE], src.array(), [0], [0])
        assert caught.value.errno == errno.EINVAL
        lowlevel.mprotect(src.address, src.nbytes, mmap.PROT_READ)
        with refusal(errno.EINVAL, "move_many") as error:
            move_many(foreign(2).array(), src.array(), [0, 1], [0, 1])
        assert error().index == 0
        assert error().address == src.address

    def test_an_unaligned_buffer(self):
        array = pagemove.empty(4 * PAGE_SIZE, np.uint8)
        with refusal(errno.EINVAL, "move_many"):
            move_many(array[8:], array, [0], [1])
