"""No lost write: hot writers at a limit of a quarter, all block sizes, random and sequential.

The resident size is watched at the same time: never above the limit by more than a mebibyte.
"""

from __future__ import annotations

import pytest

from support import child
from support.paging import (
    BLOCKS,
    COUNT,
    KIB,
    MIB,
    RANDOM,
    SEQUENTIAL,
    STRIDED,
    VERSION,
)

from .hot import Hot

pytestmark = pytest.mark.needs("paging")

ORDERS = {
    "random": (RANDOM, RANDOM),
    "sequential": (SEQUENTIAL, SEQUENTIAL),
    "mixed": (RANDOM, SEQUENTIAL, STRIDED),
}


def frames(block: int) -> int:
    """Return a number of blocks that makes about a mebibyte, at least four."""
    return max(4, min(64, MIB // block))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("orders", ["random", "sequential"])
def test_every_block_size(file, block, orders):
    path = file(4 * frames(block) * block)
    hot = Hot(path, "r+", block, frames(block), orders=ORDERS[orders])
    counted = child(hot.run, deadline=90)
    assert counted["written"] > 100
    assert counted["evicted"] > 10


@pytest.mark.parametrize("block", [4 * KIB, 64 * KIB, 2 * MIB])
def test_private_changes(file, block):
    path = file(4 * frames(block) * block)
    counted = child(Hot(path, "c", block, frames(block), orders=ORDERS["mixed"]).run, deadline=90)
    assert counted["evicted"] > 10


@pytest.mark.parametrize("block", [4 * KIB, 8 * KIB, 64 * KIB])
@pytest.mark.parametrize("mode", ["r+", "c"])
def test_four_blocks_and_many_threads(file, block, mode):
    orders = (*ORDERS["mixed"], *ORDERS["mixed"])
    counted = child(Hot(file(16 * block), mode, block, 4, orders=orders).run, deadline=90)
    assert counted["evicted"] > 10


@pytest.mark.parametrize("mode", ["r+", "c"])
def test_without_a_limit(file, mode):
    path = file(4 * MIB)
    hot = Hot(path, mode, 64 * KIB, 64, orders=ORDERS["mixed"], how={"resident_limit": None})
    child(hot.run, deadline=90)


@pytest.mark.parametrize("block", [4 * KIB, 64 * KIB])
@pytest.mark.parametrize("orders", ["random", "sequential"])
def test_whole_pages_in_versions(file, block, orders):
    path = file(4 * frames(block) * block)
    hot = Hot(path, "r+", block, frames(block), kind=VERSION, orders=ORDERS[orders])
    child(hot.run, deadline=90)


@pytest.mark.parametrize("mode", ["r+", "c"])
def test_a_file_of_odd_length(file, mode):
    path = file(40 * 64 * KIB + 12344)
    child(Hot(path, mode, orders=ORDERS["mixed"], blocks=10).run, deadline=90)


@pytest.mark.parametrize("mode", ["r+", "c"])
def test_without_read_ahead(file, mode):
    path = file(2 * MIB)
    child(Hot(path, mode, orders=(COUNT,), blocks=8, how={"prefetch": "off"}).run, deadline=90)
