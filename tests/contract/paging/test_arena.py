"""The arena behind `paged_allocations`, by itself."""

from __future__ import annotations

import numpy as np
import pytest

import pagemove
from pagemove.paging.arenas import new_arena

pytestmark = pytest.mark.needs("paging")

_MIB = 1 << 20


def test_what_is_made_smaller_and_larger_again_has_zeros_behind():
    arena, memory = new_arena(16 * _MIB, _MIB, None)
    block = memory.block_size
    address = arena.allocate(4 * block)
    content = np.frombuffer(memory, np.uint8)[address - memory.address :]
    content[: 4 * block] = 7
    assert arena.resize(address, block) == address
    assert arena.resize(address, 4 * block) == address
    assert (content[:block] == 7).all()
    assert not content[block : 4 * block].any()
    arena.release(address)


def _served(memory: pagemove.PagedMemory) -> None:
    """Have the pager serve an arena: it does from its first pin on."""
    one = np.array([[0, 1]], np.uint32).tobytes()
    memory.pin_blocks(one, False)
    memory.unpin_blocks(one)


def test_what_was_freed_and_kept_makes_room():
    arena, _ = new_arena(16 * _MIB, _MIB, None)
    space = arena.counters()["free"]
    most = 15 * _MIB
    address = arena.allocate(most)
    arena.release(address)
    assert arena.counters()["kept"] == most
    assert arena.allocate(space - 8 * _MIB) == 0 or arena.counters()["kept"] == 0
    assert arena.counters()["kept"] == 0


def test_what_cannot_grow_where_it_is_moves():
    arena, memory = new_arena(16 * _MIB, _MIB, None)
    _served(memory)
    block, whole = memory.block_size, np.frombuffer(memory, np.uint8)
    first, second = arena.allocate(block), arena.allocate(block)
    whole[first - memory.address :][:block] = 7
    moved = arena.resize(first, 8 * block)
    assert moved not in (0, first, second)
    content = whole[moved - memory.address :][: 8 * block]
    assert (content[:block] == 7).all()
    assert not content[block:].any()
    assert arena.counters()["moved"] == block
    assert arena.resize(moved, 2 * memory.nbytes) == 0
    assert (content[:block] == 7).all()
    arena.release(second)
    arena.release(moved)
    assert arena.counters()["largest"] == memory.nbytes


def test_what_was_freed_is_not_read_from_the_store_again(tmp_path):
    arena, memory = new_arena(16 * _MIB, _MIB, tmp_path)
    _served(memory)
    nbytes = 4 * _MIB
    address = arena.allocate(nbytes)
    content = np.frombuffer(memory, np.uint8)[address - memory.address :][:nbytes]
    content[:] = 7
    memory.evict()
    arena.release(address)
    assert arena.allocate(nbytes) == address
    before = memory.stats().bytes_read
    assert not content.any()
    assert memory.stats().bytes_read == before
    arena.release(address)
