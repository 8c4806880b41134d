"""Threads that use a region over a store in Python, and know what is in it."""

from __future__ import annotations

import random
import threading

import numpy as np

from pagemove import PagedMemory, StoreError
from support.helpers import Words

from . import SOAK

K = 1024
MODES = ("r", "r+", "c")
BLOCKS = (4 * K, 8 * K, 64 * K)
COUNT = 48
THREADS = 3
STEPS = int(150 * SOAK)


class Load:
    """Threads that read all blocks of a region, each changing its own, and know what is there."""

    def __init__(self, region: PagedMemory, original: Words, seed: int) -> None:
        self.region, self.original, self.seed = region, original, seed
        self.rows = region.asarray(np.uint64, (COUNT, region.block_size // 8))
        self.expected = original.reshape(self.rows.shape)
        self.changes = np.zeros(COUNT, np.uint64)
        self.flushed = np.zeros(COUNT, np.uint64)
        self.steps = 0
        self.flushing = False
        self.unconfirmed: list[StoreError] = []  # of flushes that a killed helper had begun with
        self.tolerated = 1  # so many of them; one more is raised
        self.stop = threading.Event()

    def run(self, me: int, steps: int) -> None:
        """Make so many steps, or steps until it is stopped."""
        chance = random.Random(f"{self.seed} {me}")
        while steps and not self.stop.is_set():
            block = chance.randrange(COUNT)
            mine = block % THREADS == me
            if mine or self.region.mode == "r":
                want = self.expected[block] + self.changes[block]
                wrong = np.flatnonzero(self.rows[block] != want)
                assert not len(wrong), f"{len(wrong)} words of block {block}, from {wrong[0]} on"
            if mine and self.region.mode != "r" and chance.random() < 0.5:
                self.rows[block] += np.uint64(1)
                self.changes[block] += np.uint64(1)
            if me == 0 and self.flushing and chance.random() < 0.05:
                before = self.changes.copy()
                try:
                    self.region.flush()
                    self.flushed = before
                except StoreError as error:
                    # Nobody knows what that has done: so it says, and is not tried again unasked.
                    if len(self.unconfirmed) == self.tolerated:
                        raise
                    self.unconfirmed.append(error)
            self.steps += 1
            steps -= 1

    def check(self) -> None:
        """Compare every word."""
        want = self.expected + self.changes[:, None]
        assert np.array_equal(self.rows, want)
