"""Two areas and several threads, which bounce pages between them by every call there is."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import pytest

from pagemove import PAGE_SIZE, Memory, move, move_many, remap_anon_pages
from support import child, together

pytestmark = pytest.mark.needs("move")

_SECONDS = 1.5
_PAGES = 24
_THREADS = 4
_WORDS = PAGE_SIZE // 8


def _everything_at_once() -> int:
    """Four threads with pages of their own between the same two areas, by every call there is."""
    shape = (_THREADS * _PAGES, _WORDS)
    one, other = Memory(shape[0] * PAGE_SIZE), Memory(shape[0] * PAGE_SIZE)
    areas = [memory.asarray(np.uint64, shape) for memory in (one, other)]
    areas[0][:] = np.arange(1, shape[0] + 1)[:, None]
    end = time.monotonic() + _SECONDS

    def bounce(number: int) -> int:
        rng = np.random.default_rng(number)
        first = number * _PAGES
        tokens = np.arange(first + 1, first + _PAGES + 1)
        side = rounds = 0
        while time.monotonic() < end:
            dst, src = (areas[s][first : first + _PAGES] for s in (1 - side, side))
            way = rng.integers(4)
            if way == 0:
                order = rng.permutation(_PAGES)
                assert move_many(dst, src, order, order) == src.nbytes
            elif way == 1:
                assert move(dst, src, holes=bool(rng.integers(2))) == src.nbytes
            elif way == 2:
                for page in rng.permutation(_PAGES):
                    assert remap_anon_pages(dst[page], src[page], PAGE_SIZE) == PAGE_SIZE
            else:
                to, of = int(dst.ctypes.data), int(src.ctypes.data)
                assert remap_anon_pages(to, of, src.nbytes) == src.nbytes
            assert np.array_equal(dst[:, 0], tokens)
            assert np.array_equal(dst[:, -1], tokens)
            side = 1 - side
            rounds += 1
        return rounds

    rounds = together(*(partial(bounce, i) for i in range(_THREADS)))
    areas.clear()
    one.close()
    other.close()
    return int(min(rounds))


def test_threads_bounce_pages_by_every_call() -> None:
    assert child(_everything_at_once, deadline=40) > 2
