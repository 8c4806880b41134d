"""Forks at random moments, while threads read and write paged memory: some hundreds of them.

``PAGEMOVE_SOAK=20`` makes it six thousand.

In an interpreter of its own, and its children are of every kind that programs have. Each finds what
is in the files or ends with the signal that is said, the parent never notices, nothing is left.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pagemove
from pagemove.stores import CallableStore
from support.children import newborn
from support.slowness import patience
from support.threads import together

from . import SOAK

pytestmark = [pytest.mark.needs("paging", "fork"), pytest.mark.slow]

COUNT = 300_000
FORKS = 300
_CHILD_DEADLINE = 30.0
Numbers = np.ndarray[Any, np.dtype[np.int64]]


@pytest.mark.timeout(3600)
def test_forks_under_load(tmp_path: Path) -> None:
    np.save(tmp_path / "numbers.npy", np.arange(COUNT))
    np.save(tmp_path / "counters.npy", np.zeros(COUNT, np.int64))
    forks = int(FORKS * SOAK)
    told = newborn(_storm, tmp_path, forks, deadline=60 + 2 * forks)
    assert told.pop("wrong") == []
    assert sum(told.values()) == forks
    assert min(told.values()) > 0


class _Load:
    """Threads that read, and one that counts in a file, until they are stopped."""

    def __init__(self, numbers: Numbers, counters: Numbers) -> None:
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._numbers, self._counters = numbers, counters
        self._rounds = 0
        jobs = [self._read, self._read, self._count]
        self._threads = [threading.Thread(target=job, args=(at,)) for at, job in enumerate(jobs)]
        for thread in self._threads:
            thread.start()

    def _read(self, seed: int) -> None:
        draw = random.Random(seed)
        while not self._stop.wait(draw.expovariate(1000)):
            at = draw.randrange(COUNT - 20_000)
            if int(self._numbers[at : at + 20_000 : 997].sum()) != sum(range(at, at + 20_000, 997)):
                self.wrong.append(f"read at {at}")

    def _count(self, seed: int) -> None:
        draw = random.Random(seed)
        while not self._stop.wait(draw.expovariate(1000)):
            at = self._rounds % 100 * 3000
            self._counters[at : at + 3000 : 500] += 1
            self._rounds += 1
            if int(self._counters[at]) != (self._rounds + 99) // 100:
                self.wrong.append(f"count at {at}")

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if int(self._counters.sum()) != 6 * self._rounds:
            self.wrong.append("counts were lost")


class _Children:
    """What children do. Each kind has the status that it ends with."""

    def __init__(self, arrays: dict[str, Numbers], writes: Numbers) -> None:
        self._arrays, self._writes = arrays, writes
        self.kinds: dict[Callable[[int], int | None], int] = {
            self.computes: 0,
            self.touches_nothing: 0,
            self.computes_in_threads: 0,
            self.closes: 0,
            self.forks_again: 0,
            self.executes: 0,
            self.is_killed: -signal.SIGKILL,
            self.is_killed_in_a_touch: -signal.SIGKILL,
            self.touches_what_is_written: -signal.SIGSEGV,
        }

    def computes(self, seed: int) -> int:
        # A helper process takes long to start.
        return self.computes_of(["file", "budget"] if seed % 8 else ["helper", "file"], seed)

    def computes_of(self, names: list[str], seed: int) -> int:
        draw = random.Random(seed)
        for name in names:
            array = self._arrays[name]
            for _ in range(8):
                at = draw.randrange(COUNT)
                if int(array[at]) != at:
                    return 1
        return 0

    def touches_nothing(self, seed: int) -> int:
        return 0

    def computes_in_threads(self, seed: int) -> int:
        found = together(*(lambda s=s: self.computes(s) for s in range(seed, seed + 3)))
        return int(found != [0, 0, 0])

    def closes(self, seed: int) -> int:
        failed = self.computes(seed) if seed % 2 else 0
        for name in "budget", "helper":  # which no other thread has had
            array = self._arrays.pop(name)
            region = pagemove.region_of(array)
            del array
            region.close()
        return failed or self.computes_of(["file"], seed)

    def forks_again(self, seed: int) -> int:
        before = self.computes(seed) if seed % 2 else 0
        return before or forked(self.computes, seed + 1) or self.computes(seed + 2)

    def executes(self, seed: int) -> None:
        if seed % 2:
            self.computes(seed)
        os.execv("/bin/true", ["true"])

    def is_killed(self, seed: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def is_killed_in_a_touch(self, seed: int) -> None:
        threading.Timer(random.Random(seed).random() / 100, self.is_killed, (seed,)).start()
        while not self.computes(seed):
            seed += 1

    def touches_what_is_written(self, seed: int) -> int:
        return int(self._writes[seed % COUNT])


def forked(act: Callable[[int], int | None], seed: int) -> int:
    """Run it in a child, and return how that ended; -999 if it did not in time."""
    child = os.fork()
    if not child:
        status = 99
        try:
            status = act(seed) or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    limit = time.monotonic() + patience(_CHILD_DEADLINE)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > limit:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -999
        time.sleep(0.001)


def _squeezed(offset: int, size: int) -> bytes:
    words = np.arange(offset // 8, (offset + size + 7) // 8)
    return words.tobytes()[offset % 8 :][:size]


def _left() -> tuple[int, int, int]:
    """Count descriptors, mappings and child processes."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    mappings = Path("/proc/self/maps").read_text().count("\n")
    return len(os.listdir("/proc/self/fd")), mappings, len(children)


def _storm(folder: Path, forks: int) -> dict[str, Any]:
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    # On a busy machine a helper takes long to start.
    how = {"resident_limit": "512KiB", "block_size": 16 << 10, "store_timeout": 100.0}
    budget = pagemove.Budget("512KiB")
    arrays = {
        "file": pagemove.open_array(folder / "numbers.npy", **how),
        "budget": pagemove.open_array(
            folder / "numbers.npy", **{**how, "resident_limit": budget}
        ),
        "helper": pagemove.open_array(
            CallableStore(_squeezed, 8 * COUNT), dtype=np.int64, **how
        ),
    }  # fmt: skip
    counters = pagemove.open_array(folder / "counters.npy", mode="r+", **how)
    children = _Children(arrays, counters)
    assert [int(array[5]) for array in arrays.values()] == [5, 5, 5]
    load = _Load(arrays["file"], counters)
    draw = random.Random(os.environ.get("PAGEMOVE_SEED", "1"))
    told: dict[str, Any] = dict.fromkeys((act.__name__ for act in children.kinds), 0)
    kinds = list(children.kinds.items())
    before = after = _left()
    for number in range(forks):
        time.sleep(draw.random() / 500)
        act, expected = kinds[number % len(kinds)] if number < len(kinds) else draw.choice(kinds)
        status = forked(act, number)
        told[act.__name__] += 1
        if status != expected:
            load.wrong.append(f"fork {number}: {act.__name__} ended with {status}")
        if number == len(kinds) - 1:
            before = _left()
        if len(load.wrong) > 5:
            break
    load.end()
    after = _left()
    # The allocator's own mappings may be a few more.
    if after[0] > before[0] or after[1] > before[1] + 16 or after[2] != before[2]:
        load.wrong.append(f"(descriptors, mappings, processes) {before} became {after}")
    counters.flush()
    if int(np.load(folder / "counters.npy").sum()) != int(counters.sum()):
        load.wrong.append("the file has other counts")
    return told | {"wrong": load.wrong}
