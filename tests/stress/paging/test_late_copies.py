"""Regions that are closed while their helpers are late, and what is mapped there afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pagemove import PagedMemory, lowlevel
from pagemove.registration import register
from support import child, together
from support.helpers import has_ended, helpers, numbered, touch
from support.late_stores import Unruly, unruly

from . import SOAK

pytestmark = [pytest.mark.needs("paging", "fork"), pytest.mark.slow]

K = 1024
COUNT = 16
AT_ONCE = 4
PRIVATE, ANONYMOUS, ONLY_IF_FREE = 2, 0x20, 0x100000


class Parting(Unruly):
    """Its reads are late more often than not, and closing it takes a while."""

    def close(self) -> None:
        time.sleep(self._random.uniform(0, 0.9))
        super().close()


def _parting(folder: Path, block: int, seed: int) -> Parting:
    made = unruly(folder, numbered(COUNT * block))
    return Parting(made._path, seed=seed, late=0.7, swapped=0.2, seconds=0.9)


def _take(start: int, nbytes: int) -> None:
    """Map memory as soon as the addresses are free, and register it as the library's own is."""
    while True:
        with contextlib.suppress(FileExistsError):
            lowlevel.mmap(start, nbytes, 3, PRIVATE | ANONYMOUS | ONLY_IF_FREE)
            break
        time.sleep(0.0002)
    register(start, nbytes)


class Cycle:
    """One region that is opened, read in part, closed, and followed by other memory."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        block = chance.choice([4 * K, 4 * K, 64 * K])
        before = set(helpers())
        self.region = PagedMemory(
            _parting(folder, block, seed),
            block_size=block,
            store_timeout=0.1,
            prefetch="off",
            isolated=True,
        )
        (self.helper,) = set(helpers()) - before
        self.start, self.nbytes = self.region.address, self.region.nbytes
        self.refused = 0
        self.foreign = 0

    def run(self) -> None:
        """Close it with reads still under way, and its helper stopped for a time or not."""
        chance, block = self.chance, self.region.block_size
        stopped = chance.random() < 0.4
        later = threading.Timer(chance.uniform(0, 1.5), self._continue)
        moment = threading.Timer(chance.uniform(0, 0.3), self._stop)
        blocks = chance.sample(range(COUNT), 6)
        if stopped:
            moment.start()
        together(*(lambda at=self.start + n * block: self._touch(at) for n in blocks), deadline=60)
        if stopped:
            later.start()
        together(lambda: _take(self.start, self.nbytes), self.region.close, deadline=60)
        for timer in (moment, later):
            timer.cancel()
        self._continue()
        limit = time.monotonic() + 30
        while not has_ended(self.helper) and time.monotonic() < limit:
            time.sleep(0.01)
        found = ctypes.string_at(self.start, self.nbytes)
        self.foreign = self.nbytes - found.count(0)

    def _touch(self, address: int) -> None:
        try:
            touch(address)
        except OSError:
            self.refused += 1

    def _stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.helper, signal.SIGSTOP)

    def _continue(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.helper, signal.SIGCONT)


def _cycles(folder: Path, seed: int, rounds: int) -> dict[str, Any]:
    refused, foreign = 0, []
    for number in range(rounds):
        first = seed + number * AT_ONCE
        cycles = [Cycle(folder, first + n) for n in range(AT_ONCE)]
        together(*(cycle.run for cycle in cycles), deadline=90)
        refused += sum(cycle.refused for cycle in cycles)
        foreign += [(first + n, each.foreign) for n, each in enumerate(cycles) if each.foreign]
        for cycle in cycles:
            lowlevel.munmap(cycle.start, cycle.nbytes)
    return {"foreign": foreign, "late": refused > 0, "helpers": helpers()}


@pytest.mark.parametrize("seed", range(0, 1000 * max(1, int(SOAK)), 1000))
def test_nothing_of_a_closed_region_arrives_in_what_follows_it(tmp_path, seed):
    found = child(_cycles, tmp_path, seed, 2, deadline=240)
    assert found == {"foreign": [], "late": True, "helpers": []}
