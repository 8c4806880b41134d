"""Many threads allocate, grow, shrink and free: contents equal, and at the end nothing is kept."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest

from pagemove import PAGE_SIZE
from pagemove._native import pager
from pagemove.paging.arenas import new_arena
from support.system import mlock

from .test_fork_storm import forked

pytestmark = pytest.mark.needs("paging")

_THREADS = 16
_STEPS = 60
_FORKING = 3  # threads that fork
_LARGEST = 4 << 30
_PLACES = 12  # bytes of an object that are looked at
_BLOCK = 64 << 10


class Objects:
    """The objects of one thread, and what each should have."""

    def __init__(self, arena, memory, seed):
        self.arena, self.random = arena, random.Random(seed)
        self.base, self.bytes = memory.address, np.frombuffer(memory, np.uint8)
        self.known: dict[int, tuple[int, dict[int, int]]] = {}
        self.refused = self.locked = 0

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

    def lock(self):
        """Have a page of one object, a small part of all, stay in memory until that is freed."""
        address = self.random.choice(list(self.known))
        if self.locked in self.known or not self.known[address][0]:
            return
        at = self.random.randrange(self.known[address][0]) & -PAGE_SIZE
        mlock(address + at, PAGE_SIZE)
        self.locked = address

    def step(self):
        what = self.random.random()
        if self.known:
            self.lock()
        if what < 0.5 or not self.known:
            nbytes = self.size()
            address = self.arena.allocate(nbytes, True)
            if not address:
                self.refused += 1  # no address space is left
                return
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
        grown = self.arena.resize(address, wanted)
        if not grown:
            self.refused += 1
            self.known[address] = nbytes, values
            return
        address = grown
        least = min(wanted, nbytes)
        kept = {at: value for at, value in values.items() if at < least}
        self.check(address, wanted, kept)
        self.known[address] = wanted, kept


def _go_on(every):
    """Of what all threads have, in a child: check it, free a part, and go on with the rest."""
    for objects in every:
        for address, (nbytes, values) in objects.known.items():
            objects.check(address, nbytes, values)
    for objects in every[::4]:
        for _ in range(4):
            objects.step()
    return 0


@pytest.mark.slow
@pytest.mark.parametrize("spills", [False, True])
@pytest.mark.parametrize("how", ["compresses", "forks"])
def test_contents_are_kept_and_nothing_leaks(tmp_path, how, spills):
    if how == "forks" and pager.codec() is None:
        pytest.skip("no liblz4.so.1 nor libzstd.so.1")
    files = (tmp_path, _BLOCK) if spills else (None, None)
    arena, memory = new_arena(16 << 20, 8 * _BLOCK, *files)
    failed: list[BaseException] = []
    together = threading.Barrier(_THREADS)
    every = [Objects(arena, memory, seed) for seed in range(_THREADS)]

    def work(objects):
        try:
            together.wait()
            for _ in range(4 if how == "forks" else 1):
                for _ in range(_STEPS):
                    objects.step()
                while objects.known:
                    address, (nbytes, values) = objects.known.popitem()
                    objects.check(address, nbytes, values)
                    arena.release(address)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(objects,)) for objects in every]
    forks = []

    def fork(seed):
        while any(thread.is_alive() for thread in threads) and not failed:
            # Before that it is ordinary memory, of which a child has no arena.
            if not memory.stats().evicted or not any(objects.known for objects in every):
                continue
            forks.append(seed)
            if forked(lambda _: _go_on(every), seed):
                failed.append(AssertionError(f"child of {seed}"))

    forking = [threading.Thread(target=fork, args=(seed,)) for seed in range(_FORKING)]
    for thread in threads + forking * (how == "forks"):
        thread.start()
    for thread in threads + forking * (how == "forks"):
        thread.join()
    assert not failed, failed
    assert how != "forks" or len(set(forks)) == _FORKING
    counters, stats = arena.counters(), memory.stats()
    assert (counters["used"], counters["reserved"], counters["objects"]) == (0, 0, 0)
    assert counters["free"] == counters["largest"] == memory.nbytes
    refused = sum(objects.refused for objects in every)
    assert (counters["lost"], counters["refused"]) == (0, refused)
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
