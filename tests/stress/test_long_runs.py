"""Ranges longer than what the guard looks at in one go."""

from __future__ import annotations

import numpy as np
import pytest

from pagemove import HUGE_PAGE_SIZE, PAGE_SIZE, Memory, PageState, remap_anon_pages
from pagemove._native import remap

pytestmark = pytest.mark.needs("move", "thp")

_HUGE = 22


def _huge_pages(memory: Memory) -> int:
    flags = memory.page_states() & np.uint16(PageState.HUGE)
    return int(np.count_nonzero(flags)) * PAGE_SIZE // HUGE_PAGE_SIZE


@pytest.mark.parametrize("guard", [False, True], ids=["plain", "guarded"])
def test_huge_pages_inside_an_unaligned_range_stay_whole(guard: bool) -> None:
    defects = remap.defects() & ~remap.DEFECT_STALE_EAGAIN
    remap.set_defects(defects | remap.DEFECT_STALE_EAGAIN if guard else defects)
    nbytes, skip = _HUGE * HUGE_PAGE_SIZE, HUGE_PAGE_SIZE // 2
    with Memory(nbytes, huge_pages=True) as src, Memory(nbytes, huge_pages=True) as dst:
        view = memoryview(src)
        view[::PAGE_SIZE] = bytes(i % 251 + 1 for i in range(nbytes // PAGE_SIZE))
        if _huge_pages(src) < _HUGE:
            view.release()
            pytest.skip("the kernel had too few huge pages to give")
        length = nbytes - 2 * skip
        assert remap_anon_pages(dst.address + skip, src.address + skip, length) == length
        moved = memoryview(dst)[skip : skip + length]
        assert moved.tobytes() == b"".join(
            bytes([i % 251 + 1]) + bytes(PAGE_SIZE - 1)
            for i in range(skip // PAGE_SIZE, (skip + length) // PAGE_SIZE)
        )
        # The two at the ends had to be split; all others moved as they were.
        assert _huge_pages(dst) == _HUGE - 2
        moved.release()
        view.release()
