"""Others who want the same pages: movers, discards, forks. Answers agree with the contents."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest

from pagemove import (
    PAGE_SIZE,
    DestinationMapped,
    Memory,
    PageShared,
    SourceHole,
    lowlevel,
    move,
    move_many,
    remap_anon_pages,
    unshare,
)
from pagemove._native import remap
from support import child, foreign, together

from .siblings import DISCARD, FORK, Sibling

pytestmark = [pytest.mark.needs("move"), pytest.mark.usefixtures("siblings")]

_SECONDS = 1.0
_WORDS = PAGE_SIZE // 8

#: Moves the first pages of one memory to another; gives how many it says it has moved.
Mover = Callable[[Memory, Memory, int], int]


def _by_address(dst: Memory, src: Memory, pages: int) -> int:
    try:
        return remap_anon_pages(dst.address, src.address, pages * PAGE_SIZE) // PAGE_SIZE
    except (SourceHole, DestinationMapped):
        return 0


def _many_backwards(dst: Memory, src: Memory, pages: int) -> int:
    order = np.arange(pages)[::-1]
    try:
        return move_many(dst, src, order, order) // PAGE_SIZE
    except (SourceHole, DestinationMapped) as error:
        return error.index or 0


def _present(memory: Memory) -> npt.NDArray[np.bool_]:
    resident = lowlevel.mincore(memory.address, memory.nbytes)
    return np.array(np.frombuffer(resident, np.uint8) & 1, bool)


def _race(mover: Mover, pages: int, same_place: bool) -> None:
    """Four threads move the same pages, each to a place of its own or all to the same."""
    threads, tokens = 4, np.arange(1, pages + 1, dtype=np.uint64)
    src = Memory(pages * PAGE_SIZE)
    places = [Memory(pages * PAGE_SIZE) for _ in range(1 if same_place else threads)]
    targets = places * threads if same_place else places
    words = [memory.asarray(np.uint64, (pages, _WORDS)) for memory in places]
    for _ in range(30):
        src.asarray(np.uint64, (pages, _WORDS))[:, 0] = tokens
        said = together(*(partial(mover, target, src, pages) for target in targets))
        assert sum(said) == pages, f"{pages} pages, and the threads say they moved {said}"
        assert not _present(src).any()
        there = [_present(memory) for memory in places]
        assert sum(int(t.sum()) for t in there) == pages
        for memory, array, present in zip(places, words, there, strict=True):
            assert np.array_equal(array[present, 0], tokens[present])
            moved = said if same_place else [said[places.index(memory)]]
            assert int(present.sum()) == sum(moved)
            memory.discard()
    del words, array
    for memory in (src, *places):
        memory.close()


@pytest.mark.parametrize("same_place", [False, True], ids=["own places", "one place"])
@pytest.mark.parametrize("pages", [1, 40])
@pytest.mark.parametrize("mover", [_by_address, _many_backwards])
def test_exactly_one_thread_moves_a_page(mover: Mover, pages: int, same_place: bool) -> None:
    child(_race, mover, pages, same_place, deadline=40)


def _discard_while_moving(holes: bool) -> tuple[int, int]:
    """Count moves, and pages that were discarded before they could move."""
    pages, moved, gone = 32, 0, 0
    src, dst = Memory(pages * PAGE_SIZE), Memory(pages * PAGE_SIZE)
    sources = src.asarray(np.uint64, (pages, _WORDS))
    arrived = dst.asarray(np.uint64, (pages, _WORDS))
    with Sibling(DISCARD, src.address, pages, number=5) as sibling:
        end = time.monotonic() + _SECONDS
        token = 1
        # Which pace leaves something to move differs from machine to machine.
        while time.monotonic() < end or not (moved and gone):
            sibling.pause(token // pages % 64 * 50)
            sources[:, 0] = np.arange(token, token + pages)
            if holes:
                assert move(dst, src, holes=True) == src.nbytes
            for page in range(0 if not holes else pages, pages):
                at = page * PAGE_SIZE
                try:
                    remap_anon_pages(dst.address + at, src.address + at, PAGE_SIZE)
                    assert arrived[page, 0] == token + page
                    moved += 1
                except SourceHole:
                    gone += 1
                    assert not _present(dst)[page]
            present = _present(dst)
            expected = np.arange(token, token + pages)[present]
            assert np.array_equal(arrived[present, 0], expected)
            assert not _present(src).any()
            moved += int(present.sum()) if holes else 0
            gone += int((~present).sum()) if holes else 0
            token += pages
            dst.discard()
    del sources, arrived
    src.close()
    dst.close()
    return moved, gone


@pytest.mark.parametrize("holes", [False, True], ids=["one by one", "holes allowed"])
def test_discards_of_the_source(holes: bool) -> None:
    moved, gone = child(_discard_while_moving, holes, deadline=40)
    assert moved > 0
    assert gone > 0


def _discard_and_move_to_occupied(pages: int) -> tuple[int, set[int]]:
    """Move where something is already; count the calls, and give all answers."""
    calls, answers = 0, set()
    src, dst = Memory(pages * PAGE_SIZE), Memory(pages * PAGE_SIZE)
    sources = src.asarray(np.uint64, (pages, _WORDS))
    occupied = dst.asarray(np.uint64, (pages, _WORDS))
    occupied[:, 0] = 7
    with Sibling(DISCARD, src.address, pages, number=5) as sibling:
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end:
            sources[:, 0] = 1
            # Beneath the call: to explain a failure takes a hundred times as long.
            answers.add(remap.move(dst.address, src.address, src.nbytes, 0))
            assert (occupied[:, 0] == 7).all()
            calls += 1
            sibling.pause(calls % 64 * 50)
    del sources, occupied
    src.close()
    dst.close()
    return calls, answers


@pytest.mark.parametrize("pages", [1, 8])
def test_an_occupied_destination_is_never_taken_for_a_page_that_moved(pages: int) -> None:
    calls, answers = child(_discard_and_move_to_occupied, pages, deadline=40)
    assert answers <= {-errno.EEXIST, -errno.ENOENT}
    assert calls > 1000


def _fork_while_moving() -> tuple[int, int]:
    """Count moves, and pages that could not move at first because a fork had shared them."""
    pages, shared, moved, side = 16, 0, 0, 0
    with foreign(pages) as one, foreign(pages) as other, Sibling(FORK, 0, 1) as forker:
        forker.pause(30_000)
        areas = [one, other]
        arrays = [area.array().view(np.uint64).reshape(pages, _WORDS) for area in areas]
        tokens = np.arange(1, pages + 1)
        arrays[0][:, 0] = tokens
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end:
            src, dst = areas[side], areas[1 - side]
            page = 0
            while page < pages:
                at = page * PAGE_SIZE
                try:
                    page += (
                        remap_anon_pages(
                            dst.address + at, src.address + at, (pages - page) * PAGE_SIZE
                        )
                        // PAGE_SIZE
                    )
                except PageShared:
                    shared += 1
                    with contextlib.suppress(PageShared):
                        unshare(arrays[side][page], copy=True)
            moved += pages
            side = 1 - side
            assert np.array_equal(arrays[side][:, 0], tokens)
        del arrays
    return moved, shared


@pytest.mark.needs("fork")
def test_forks_while_pages_move() -> None:
    moved, shared = child(_fork_while_moving, deadline=40)
    assert moved > 0
    assert shared > 0


def _bounce(one: Memory, other: Memory, first: int, pages: int, done: list[bool]) -> int:
    order = np.arange(first, first + pages)[::-1]
    rounds = 0
    while not done:
        for dst, src in ((other, one), (one, other)):
            move_many(dst, src, order, order)
        rounds += 1
    return rounds


def _children_that_move() -> int:
    """Fork while other threads hold the library's locks; each child has to find its own free."""
    pages, threads, forks = 64, 2, 12
    one, other = Memory(threads * pages * PAGE_SIZE), Memory(threads * pages * PAGE_SIZE)
    one.asarray(np.uint64, (threads * pages, _WORDS))[:, 0] = 1
    done: list[bool] = []

    def in_a_child() -> None:
        with Memory(2 * PAGE_SIZE) as memory:
            memoryview(memory)[0] = 9
            array = memory.asarray(np.uint8, (2, PAGE_SIZE))
            assert move_many(memory, memory, [1], [0]) == PAGE_SIZE
            assert array[1, 0] == 9
            del array
        with pytest.raises(ValueError, match="parent"):
            memoryview(one)

    def fork_again_and_again() -> int:
        try:
            for _ in range(forks):
                child(in_a_child, deadline=15)
        finally:
            done.append(True)
        return forks

    movers = [partial(_bounce, one, other, i * pages, pages, done) for i in range(threads)]
    rounds = together(fork_again_and_again, *movers)
    assert one.asarray(np.uint64, (threads * pages, _WORDS))[:, 0].all()
    one.close()
    other.close()
    return int(min(rounds))


@pytest.mark.needs("fork")
def test_children_of_a_process_whose_threads_move() -> None:
    assert child(_children_that_move, deadline=60) > 0
