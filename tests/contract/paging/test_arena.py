"""The arena behind `paged_allocations`, by itself."""

from __future__ import annotations

from pathlib import Path

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


def test_an_array_made_anew_a_little_larger_has_the_old_ones_memory():
    arena, memory = new_arena(64 * _MIB, _MIB, None)
    whole = np.frombuffer(memory, np.uint8)
    first = arena.allocate(4 * _MIB)
    content = whole[first - memory.address :]
    content[: 4 * _MIB] = 7
    arena.release(first)
    assert arena.allocate(9 * _MIB) != first  # twice as large: there is no room for that
    assert arena.allocate(5 * _MIB, True) == first
    assert not content[: 5 * _MIB].any()
    content[: 5 * _MIB] = 7
    arena.release(first)
    assert arena.counters()["kept"] == 5 * _MIB
    assert arena.allocate(6 * _MIB) == first
    assert not content[5 * _MIB : 6 * _MIB].any()
    assert arena.counters()["kept"] == 0
    assert arena.counters()["used"] == 15 * _MIB


def test_hundreds_of_arrays_that_were_freed_are_used_again():
    arena, _ = new_arena(512 * _MIB, _MIB, None)
    first = [arena.allocate(_MIB) for _ in range(200)]
    for address in first:
        arena.release(address)
    assert sorted(arena.allocate(_MIB) for _ in range(200)) == sorted(first)


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


def _grown_past_another(
    limit: int, nbytes: int, served: bool, spill: Path | None = None
) -> dict[str, int]:
    """Have an object grow that has another behind it; look at all of it before and after."""
    arena, memory = new_arena(limit, _MIB, spill, _MIB if spill else None)
    if served:
        _served(memory)
    whole = np.frombuffer(memory, np.uint64)
    first, behind = arena.allocate(nbytes), arena.allocate(_MIB)
    content = whole[(first - memory.address) // 8 :][: nbytes // 8]
    numbers = np.arange(len(content), dtype=np.uint64)
    # Blocks that were never touched, of one value, that shrink and that do not.
    content[len(content) // 4 :] = numbers[len(content) // 4 :]
    content[len(content) // 3 : len(content) // 2] = 7
    random = np.random.default_rng(2).integers(0, 2**64, len(content) // 8, np.uint64)
    content[: len(random)] = random
    expected = content.copy()
    expected[-1] = content[-1] = 5
    moved = arena.resize(first, 3 * nbytes)
    assert moved not in (0, first)
    content = whole[(moved - memory.address) // 8 :][: nbytes // 8]
    for _ in range(2):  # the second time nothing of it is where it was
        assert (content == expected).all()
        if served:
            memory.evict()
    content += np.uint64(1)
    memory.evict()
    assert (content == expected + np.uint64(1)).all()
    assert not whole[(moved - memory.address + nbytes) // 8 :][: nbytes // 8].any()
    counters = arena.counters()
    arena.release(behind)
    arena.release(moved)
    if not arena.counters()["kept"]:
        assert arena.counters()["largest"] == memory.nbytes
    again = arena.allocate(nbytes, True)
    assert not whole[(again - memory.address) // 8 :][: nbytes // 8].any()
    return counters


@pytest.mark.parametrize("limit", [4 * _MIB, 64 * _MIB])
def test_what_grows_moves_and_is_not_copied(limit):
    counters = _grown_past_another(limit, 16 * _MIB, served=True)
    assert counters["moved"] == 0
    assert counters["objects"] == 2


def test_what_grows_within_the_limit_moves_too():
    counters = _grown_past_another(256 * _MIB, 16 * _MIB, served=False)
    assert counters["moved"] in (0, 16 * _MIB)  # copied where the kernel's moves are not safe
    assert counters["used"] == 49 * _MIB == counters["peak"] or counters["moved"]


def test_what_is_in_a_file_moves_too(tmp_path):
    counters = _grown_past_another(4 * _MIB, 16 * _MIB, served=True, spill=tmp_path)
    assert counters["moved"] == 0
