"""Point 8: frames are recycled; a read-only region in steady state allocates nothing.

Physical page numbers (/proc/self/pagemap, root) tell: whatever is read, and however often, it is
always in the same pages.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pagemove import PAGE_SIZE
from support import child
from support.paging import (
    KIB,
    MIB,
    RANDOM,
    READ,
    SEQUENTIAL,
    Worker,
    chill,
    paged,
    words,
    wrong_words,
)

pytestmark = [pytest.mark.needs("paging_by_move", "root")]

_PFN = (1 << 55) - 1


def frames(memory) -> set[int]:
    """Return the physical page numbers of all that is in the region now."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(memory.address // PAGE_SIZE * 8)
        entries = np.frombuffer(pagemap.read(-(-memory.nbytes // PAGE_SIZE) * 8), np.uint64)
    present = entries[entries >> np.uint64(63) == 1]
    return set((present & np.uint64(_PFN)).tolist())


def _seen(path: Path, block: int, count: int, order: int, cold: bool) -> tuple[int, int, int]:
    """Return the distinct physical pages of the warm-up, and what later passes add to them."""
    with paged(path, block_size=block, resident_limit=count * block) as memory:
        steps = 3 * memory.nbytes // 64 if order == SEQUENTIAL else 10 * memory.nbytes // block
        seen: set[int] = set()

        def one_pass() -> None:
            Worker(memory, READ, order, steps=steps).start().join()
            array = words(memory)
            for place in range(0, len(array), block // 8):
                array[place].item()
                seen.update(frames(memory))
            del array

        one_pass()
        warm = len(seen)
        if cold:
            chill(path)
        for _ in range(3):
            one_pass()
        assert wrong_words(words(memory)) is None
        return warm, len(seen), memory.stats().evicted


@pytest.mark.parametrize("order", [RANDOM, SEQUENTIAL], ids=["random", "sequential"])
@pytest.mark.parametrize("cold", [False, True], ids=["cached", "cold"])
@pytest.mark.parametrize("block", [16 * KIB, 64 * KIB, 512 * KIB, 2 * MIB])
def test_a_read_only_region_stays_in_the_same_physical_pages(file, block, order, cold):
    count = 8
    warm, seen, evicted = child(_seen, file(24 * block), block, count, order, cold, deadline=60)
    assert evicted > 3 * 8
    # A frame may be seen first after the warm-up; there are never more than the limit allows.
    assert seen <= count * block // PAGE_SIZE, f"{seen} pages, {warm} of them in the first pass"
