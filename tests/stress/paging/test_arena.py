"""Many threads allocate, grow, shrink and free: contents equal, and at the end nothing is kept."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest

from pagemove.paging.arenas import new_arena

pytestmark = pytest.mark.needs("paging")

_THREADS = 16
_STEPS = 60
_LARGEST = 4 << 30
_PLACES = 12  # bytes of an object that are looked at
_BLOCK = 64 << 10


class Objects:
    """The objects of one thread, and what each should have."""

    def __init__(self, arena, memory, seed):
        self.arena, self.random = arena, random.Random(seed)
        self.base, self.bytes = memory.address, np.frombuffer(memory, np.uint8)
        self.known: dict[int, tuple[int, dict[int, int]]] = {}

    def size(self):
        return int(_LARGEST ** self.random.random()) if self.random.random() > 0.05 else 0

    def write(self, address, nbytes, values):
        """Write somewhere where it should be zero."""
        for _ in range(_PLACES if nbytes else 0):
            at = self.random.randrange(nbytes)
            found = int(self.bytes[address - self.base + at])
            assert found == values.get(at, 0), f"{found} at {at} of {nbytes}"
            values[at] = self.random.randrange(1, 256)
            self.bytes[address - self.base + at] = values[at]
        self.known[address] = nbytes, values

    def check(self, address, nbytes, values):
        for at, value in values.items():
            if at < nbytes:
                assert int(self.bytes[address - self.base + at]) == value

    def step(self):
        what = self.random.random()
        if what < 0.5 or not self.known:
            nbytes = self.size()
            address = self.arena.allocate(nbytes)
            assert address
            assert address not in self.known
            self.write(address, nbytes, {})
            return
        address = self.random.choice(list(self.known))
        nbytes, values = self.known.pop(address)
        self.check(address, nbytes, values)
        if what < 0.8:
            self.arena.release(address)
            return
        # Copying what has no room to grow takes the time that gigabytes take.
        wanted = min(self.size(), 8 << 20) if what < 0.9 else nbytes // 2
        address = self.arena.resize(address, wanted)
        assert address
        least = min(wanted, nbytes)
        kept = {at: value for at, value in values.items() if at < least}
        self.check(address, wanted, kept)
        self.known[address] = wanted, kept


@pytest.mark.slow
@pytest.mark.parametrize("spills", [True, False])
def test_contents_are_kept_and_nothing_leaks(tmp_path, spills):
    arena, memory = new_arena(16 << 20, 8 * _BLOCK, tmp_path if spills else None)
    failed: list[BaseException] = []
    together = threading.Barrier(_THREADS)

    def work(seed):
        try:
            objects = Objects(arena, memory, seed)
            together.wait()
            for _ in range(_STEPS):
                objects.step()
            for address, (nbytes, values) in objects.known.items():
                objects.check(address, nbytes, values)
                arena.release(address)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed
    counters, stats = arena.counters(), memory.stats()
    assert (counters["used"], counters["reserved"], counters["objects"]) == (0, 0, 0)
    assert counters["free"] == counters["largest"] == memory.nbytes
    assert (counters["lost"], counters["refused"]) == (0, 0)
    assert (stats.resident_nbytes, stats.dirty_nbytes, stats.errors) == (0, 0, 0)
    assert not stats.store.get("stored_nbytes")


def test_whole_and_full():
    arena, memory = new_arena(16 << 20, 1 << 20, None)
    whole = arena.allocate(memory.nbytes)
    assert whole == memory.address
    assert arena.allocate(1) == 0
    assert arena.resize(whole, memory.nbytes + 1) == 0
    # What it did not get larger is as it was.
    assert arena.resize(whole, 1) == whole
    arena.release(whole)
    counters = arena.counters()
    assert (counters["refused"], counters["largest"]) == (2, memory.nbytes)


def test_read_ahead_of_a_neighbour_brings_nothing_back():
    """Blocks that were freed are zeros for the next owner, though the store may have had them."""
    arena, memory = new_arena(32 << 20, 1 << 20, None)
    block, count = memory.block_size, 200
    # The pager serves it from its first pin on.
    one = np.array([[0, 1]], np.uint32).tobytes()
    memory.pin_blocks(one, False)
    memory.unpin_blocks(one)
    first = arena.allocate(16 * block)
    assert arena.resize(first, 32 * block) == first
    bytes_ = np.frombuffer(memory, np.uint8)
    offset = first - memory.address
    neighbour = bytes_[offset : offset + 32 * block]
    neighbour[:] = 3
    ended = threading.Event()

    def scan():
        while not ended.is_set():
            memory.evict(offset, 32 * block)
            neighbour[::4096].copy()
            neighbour.view(np.float64).sum()

    thread = threading.Thread(target=scan)
    address = arena.allocate(count * block)
    thread.start()
    try:
        for _ in range(25):
            at = address - memory.address
            bytes_[at : at + count * block] = 7
            memory.evict(at, 32 * block)
            arena.release(address)
            address = arena.allocate(count * block)
            at = address - memory.address
            assert not bytes_[at : at + count * block : 512].any()
    finally:
        ended.set()
        thread.join(60)
    arena.release(address)
