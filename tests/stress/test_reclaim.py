"""Reclaim swaps pages out while they move; every answer is true all the same.

A page that is swapped out between the kernel's two looks moves as a swap entry, and on a kernel
with the stale EAGAIN is denied like any other.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from pagemove import PAGE_SIZE, Memory, PageState, RemapError, move_many, remap_anon_pages
from pagemove._native import remap
from support import child

from .siblings import PAGEOUT, Sibling, apart

pytestmark = [pytest.mark.needs("move", "swap"), pytest.mark.usefixtures("siblings")]

_SECONDS = 1.5
_BURST = 50
_COUNT = 4
_THERE = np.uint16(PageState.PRESENT | PageState.SWAPPED)

#: Moves the pages of one side of a `Memory` to the other; gives how many it says it has moved.
Ask = Callable[[Memory, int], int]


def _one_by_one(memory: Memory, side: int) -> int:
    of, to = (memory.address + s * _COUNT * PAGE_SIZE for s in (side, 1 - side))
    for page in range(_COUNT):
        try:
            remap_anon_pages(to + page * PAGE_SIZE, of + page * PAGE_SIZE, PAGE_SIZE)
        except RemapError:
            return page
    return _COUNT


def _in_one_run(memory: Memory, side: int) -> int:
    of, to = (memory.address + s * _COUNT * PAGE_SIZE for s in (side, 1 - side))
    try:
        return remap_anon_pages(to, of, _COUNT * PAGE_SIZE) // PAGE_SIZE
    except RemapError:
        return 0


def _by_index(memory: Memory, side: int) -> int:
    pages = np.arange(_COUNT) + side * _COUNT
    try:
        return move_many(memory, memory, pages + (1 - 2 * side) * _COUNT, pages) // PAGE_SIZE
    except RemapError as error:
        return error.moved // PAGE_SIZE


def _is_true(memory: Memory, side: int, moved: int) -> bool:
    there = ((memory.page_states() & _THERE) != 0).reshape(2, _COUNT)
    gone = np.arange(_COUNT) < moved
    return bool(np.array_equal(there[1 - side], gone) and np.array_equal(there[side], ~gone))


def _lies(words: np.ndarray, memory: Memory, ask: Ask) -> int:
    """Make a burst of calls; return 1 if an answer was wrong. The pages begin in the first half."""
    memory.discard()
    words[:_COUNT, 0] = np.arange(1, _COUNT + 1)
    side = moved = 0
    for _ in range(_BURST):
        # Touched lately, or there is nothing for reclaim to change.
        words[side * _COUNT : (side + 1) * _COUNT, 0].sum()
        moved = ask(memory, side)
        if moved < _COUNT:
            break
        side, moved = 1 - side, 0
    if not _is_true(memory, side, moved):
        return 1
    tokens = words[:, 0].reshape(2, _COUNT)
    assert np.array_equal(tokens[0] | tokens[1], np.arange(1, _COUNT + 1))
    return 0


def _under_reclaim(ask: Ask) -> tuple[int, int, int]:
    """Count wrong answers without the guard and with it, to the same number of bursts."""
    guarded = remap.defects()
    without = having = bursts = 0
    memory = Memory(2 * _COUNT * PAGE_SIZE)
    words = memory.asarray(np.uint64, (2 * _COUNT, PAGE_SIZE // 8))
    end = time.monotonic() + _SECONDS
    with apart() as cpu, Sibling(PAGEOUT, memory.address, len(words), cpu=cpu) as sibling:
        while time.monotonic() < end:
            sibling.pause(bursts % 8 * 4000)
            remap.set_defects(guarded & ~remap.DEFECT_STALE_EAGAIN)
            without += _lies(words, memory, ask)
            remap.set_defects(guarded)
            having += _lies(words, memory, ask)
            bursts += 1
    del words
    memory.close()
    return without, having, bursts


@pytest.mark.parametrize("ask", [_one_by_one, _in_one_run, _by_index])
def test_every_answer_is_true(ask: Ask) -> None:
    _, having, bursts = child(_under_reclaim, ask, deadline=40)
    assert having == 0, f"{having} of {bursts} bursts with a wrong answer"
