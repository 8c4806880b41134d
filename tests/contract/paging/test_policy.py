"""What is used again and again stays: blocks read by one thread, against LRU on its touches."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagemove import PagedMemory
from pagemove.stores import FileStore
from support import child, traces
from support.paging import KIB, words

pytestmark = pytest.mark.needs("paging")

BLOCK, BLOCKS = 4 * KIB, 1024
FRAMES = BLOCKS // 4


def _read(path: Path, trace: traces.Trace, prefetch: str) -> tuple[int, int]:
    """Return blocks read, and the most bytes that were resident."""
    peak = 0
    with (
        FileStore(path) as store,
        PagedMemory(
            store, block_size=BLOCK, resident_limit=FRAMES * BLOCK, prefetch=prefetch
        ) as region,
    ):
        array = words(region)
        for number, block in enumerate(trace.tolist()):
            assert array.item(block * BLOCK // 8) == 0
            if number % 1000 == 0:
                peak = max(peak, region.stats().resident_nbytes)
        del array
        return region.stats().bytes_read // BLOCK, peak


@pytest.mark.parametrize("prefetch", ["auto", "off"])
@pytest.mark.parametrize(
    ("trace", "most"),
    [
        (traces.binary_search(BLOCKS, 2000), 1.05),
        (traces.zipf(BLOCKS, 20_000), 1.1),
        (traces.hot_and_others(BLOCKS, FRAMES, 20_000), 1.2),
    ],
    ids=["binary search", "zipf", "hot set"],
)
def test_blocks_read(tmp_path, trace, most, prefetch):
    path = tmp_path / "data"
    with path.open("wb") as file:
        file.truncate(BLOCKS * BLOCK)
    read, peak = child(_read, path, trace, prefetch, deadline=60)
    assert read <= most * traces.lru(trace, FRAMES)
    assert peak <= FRAMES * BLOCK
