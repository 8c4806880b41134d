"""Readers of the destinations see a page whole, or zeros, and nothing else."""

from __future__ import annotations

import contextlib
import time

import numpy as np
import pytest

from pagemove import PAGE_SIZE, DestinationMapped, Memory, lowlevel, move_many, remap_anon_pages
from support import child

from .siblings import READ, Sibling

pytestmark = [pytest.mark.needs("move"), pytest.mark.usefixtures("siblings")]

_PAGES = 16
_SECONDS = 1.0
_DONTNEED = 4


def _bounce_under_readers(by_many: bool) -> tuple[int, int, int]:
    """Move pages to and fro; return the rounds, the zero pages in the way, and the mixed words."""
    words = PAGE_SIZE // 8
    memories = [Memory(_PAGES * PAGE_SIZE), Memory(_PAGES * PAGE_SIZE)]
    areas = [memory.asarray(np.uint64, (_PAGES, words)) for memory in memories]
    tokens = np.arange(1, _PAGES + 1, dtype=np.uint64) << np.uint64(20)
    areas[0][:] = tokens[:, None]
    every = np.arange(_PAGES)
    readers = [Sibling(READ, memory.address, _PAGES, number=7) for memory in memories]
    side = rounds = in_the_way = 0
    with contextlib.ExitStack() as stack:
        for reader in readers:
            stack.enter_context(reader).pause(20000)
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end:
            src, dst = memories[side], memories[1 - side]
            page = 0
            while page < _PAGES:
                at = page * PAGE_SIZE
                # What readers got there since the pages left.
                lowlevel.madvise(dst.address + at, (_PAGES - page) * PAGE_SIZE, _DONTNEED)
                try:
                    if by_many:
                        move_many(dst, src, every[page:], every[page:])
                        page = _PAGES
                    else:
                        remap_anon_pages(dst.address + at, src.address + at, PAGE_SIZE)
                        page += 1
                except DestinationMapped as error:
                    # A reader was quicker; the page itself has not left.
                    page += error.moved // PAGE_SIZE
                    assert np.array_equal(areas[side][page], np.full(words, tokens[page]))
                    in_the_way += 1
            side = 1 - side
            rounds += 1
    assert np.array_equal(areas[side], np.repeat(tokens[:, None], words, 1))
    assert not areas[1 - side].any()
    mixed = sum(reader.found for reader in readers)
    del areas
    for memory in memories:
        memory.close()
    return rounds, in_the_way, mixed


@pytest.mark.parametrize("by_many", [False, True], ids=["one by one", "move_many"])
def test_readers_see_whole_pages(by_many: bool) -> None:
    rounds, _, mixed = child(_bounce_under_readers, by_many, deadline=40)
    assert mixed == 0
    assert rounds > 2
