"""Forks at random moments, while threads read and write arrays beyond the limit, and devices do.

``PAGEMOVE_SOAK=20`` makes it twenty times as many. Each child finds the contents of the moment in
which it was forked, and the parent never notices.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import pagemove
from pagemove._native import pager
from support.children import newborn
from support.paging import KIB, MIB, contents_of, make_file, wrong_words
from support.slowness import patience
from support.threads import together

from . import SOAK
from .test_fork_storm import forked

pytestmark = [
    pytest.mark.needs("paging", "fork"),
    pytest.mark.skipif(pager.codec() is None, reason="no liblz4.so.1 nor libzstd.so.1"),
    pytest.mark.slow,
]

_FORKS = 300
_COUNT = 200_000
_GROUP = 4096  # numbers that are counted up together, from the first on
_PAGE = 4096
Numbers = npt.NDArray[np.int64]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("where", ["memory", "files"])
def test_forks_under_load(where: str, tmp_path: Path) -> None:
    forks = int(_FORKS * SOAK)
    files = {"spill": tmp_path, "store_limit": "64KiB"} if where == "files" else {}
    told = newborn(_storm, forks, files, deadline=60 + 2 * forks)
    assert told.pop("wrong") == []
    assert told.pop("evicted") > 1000
    assert sum(told.values()) == forks
    assert min(told.values()) > 0


class _Load:
    """Threads that read, and that count, until they are stopped."""

    def __init__(self, constant: list[Numbers], counted: list[Numbers]) -> None:
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._constant, self._counted = constant, counted
        jobs = [self._read, self._read, *[self._count] * len(counted)]
        self._threads = [threading.Thread(target=job, args=(at,)) for at, job in enumerate(jobs)]
        for thread in self._threads:
            thread.start()

    def _read(self, seed: int) -> None:
        draw = random.Random(seed)
        while not self._stop.wait(draw.expovariate(1000)):
            which = draw.randrange(len(self._constant))
            if not is_constant(self._constant[which], which, draw):
                self.wrong.append(f"a reader met something else in {which}")

    def _count(self, seed: int) -> None:
        draw = random.Random(seed)
        mine = self._counted[seed - 2]
        while not self._stop.wait(draw.expovariate(1000)):
            at = draw.randrange(_COUNT // _GROUP) * _GROUP
            mine[at : at + _GROUP] += 1

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def is_constant(array: Numbers, which: int, draw: random.Random) -> bool:
    at = draw.randrange(_COUNT - 20_000)
    wanted = np.arange(at, at + 20_000) if which % 2 else np.full(20_000, which)
    return bool((array[at : at + 20_000] == wanted).all())


def is_counted(array: Numbers) -> bool:
    """Whether of all groups but one each has one number, and of that those in front one more."""
    groups = array[: _COUNT // _GROUP * _GROUP].reshape(-1, _GROUP)
    torn = groups[(groups != groups[:, :1]).any(axis=1)]
    steps = np.diff(torn, axis=1)
    return len(torn) <= 1 and bool(((steps == 0) | (steps == -1)).all()) and steps.sum() >= -1


class _Children:
    """What children do. Each kind has the status that it ends with."""

    def __init__(self, constant: list[Numbers], counted: list[Numbers]) -> None:
        self._constant, self._counted = constant, counted
        self.kinds: dict[Callable[[int], int | None], int] = {
            self.looks: 0,
            self.touches_nothing: 0,
            self.writes: 0,
            self.works_in_threads: 0,
            self.allocates: 0,
            self.forks_again: 0,
            self.executes: 0,
            self.is_killed_in_a_touch: -signal.SIGKILL,
        }

    def looks(self, seed: int) -> int:
        draw = random.Random(seed)
        for which, array in enumerate(self._constant):
            if not is_constant(array, which, draw):
                return 1
        before = [int(array.sum()) for array in self._counted]
        if not all(is_counted(array) for array in self._counted):
            return 2
        return 0 if before == [int(array.sum()) for array in self._counted] else 3

    def touches_nothing(self, seed: int) -> int:
        return 0

    def writes(self, seed: int) -> int:
        failed = self.looks(seed)
        for array in self._counted:
            array[:] = seed
        return failed or int(not all((array == seed).all() for array in self._counted))

    def works_in_threads(self, seed: int) -> int:
        found = together(*(lambda s=s: self.looks(s) for s in range(seed, seed + 3)))
        return int(found != [0, 0, 0])

    def allocates(self, seed: int) -> int:
        self._counted.pop()
        fresh = [np.zeros(_COUNT, np.int64) for _ in range(4)]
        if any(array.any() for array in fresh):
            return 4
        for number, array in enumerate(fresh):
            array += number
        return self.looks(seed) or int(
            not all((array == number).all() for number, array in enumerate(fresh))
        )

    def forks_again(self, seed: int) -> int:
        before = self.looks(seed) if seed % 2 else 0
        return before or forked(self.writes, seed + 1) or self.looks(seed + 2)

    def executes(self, seed: int) -> None:
        if seed % 2:
            self.looks(seed)
        os.execv("/bin/true", ["true"])

    def is_killed_in_a_touch(self, seed: int) -> None:
        delay = random.Random(seed).random() / 100
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        while not self.looks(seed):
            seed += 1


def _left() -> tuple[int, int, int]:
    """Count descriptors, mappings and child processes."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    mappings = Path("/proc/self/maps").read_text().count("\n")
    return len(os.listdir("/proc/self/fd")), mappings, len(children)


def _storm(forks: int, files: dict[str, Any]) -> dict[str, Any]:
    with pagemove.paged_allocations("2MiB", min_size="256KiB", **files) as arena:
        constant = [
            np.arange(_COUNT) if which % 2 else np.full(_COUNT, which) for which in range(4)
        ]
        counted = [np.zeros(_COUNT, np.int64) for _ in range(2)]
    children, load = _Children(constant, counted), _Load(constant, counted)
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
        if number == 2 * len(kinds):
            before = _left()
        if len(load.wrong) > 5:
            break
    load.end()
    after = _left()
    # The allocator's own mappings may be a few more.
    if after[0] > before[0] or after[1] > before[1] + 16 or after[2] != before[2]:
        load.wrong.append(f"(descriptors, mappings, processes) {before} became {after}")
    if not all(is_counted(array) for array in counted):
        load.wrong.append("counts were lost")
    if not all(is_constant(array, which, draw) for which, array in enumerate(constant)):
        load.wrong.append("a constant has changed")
    return told | {"wrong": load.wrong, "evicted": arena.stats().paging.evicted}


class _Transfers:
    """A device reads into pages of a region, each of which belongs to one thread."""

    def __init__(self, region: pagemove.PagedMemory, sources: list[int]) -> None:
        self.region, self.sources = region, sources
        self.tags = np.zeros(region.nbytes // _PAGE, np.int64)
        self.done = 0

    def run(self, number: int, until: float) -> None:
        draw = random.Random(number)
        with memoryview(self.region) as view:
            while time.monotonic() < until:
                page = draw.randrange(len(self.tags) // 2) * 2 + number
                at = page * _PAGE
                with view[at : at + _PAGE] as piece:
                    self.tags[page] = draw.randrange(len(self.sources))
                    got = os.preadv(self.sources[self.tags[page]], [piece], at)
                    assert got == _PAGE, got
                    assert bytes(piece) == self.wanted(page), f"page {page}"
                self.done += 1

    def wanted(self, page: int) -> bytes:
        contents = contents_of(self.region.nbytes, int(self.tags[page]))
        return bytes(contents[page * _PAGE : (page + 1) * _PAGE])


def _devices(paths: list[Path], nbytes: int) -> int:
    sources = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in paths]
    with pagemove.PagedMemory(
        nbytes=nbytes, resident_limit=nbytes // 4, block_size=16 * KIB
    ) as region:
        with memoryview(region) as view:
            view[:] = bytes(contents_of(nbytes, 0))
        transfers = _Transfers(region, sources)
        until = time.monotonic() + 3 * SOAK
        failed: list[BaseException] = []

        def transfer(number: int) -> None:
            try:
                transfers.run(number, until)
            except BaseException as error:
                failed.append(error)

        def look(number: int) -> int:
            # One that has been read into, and is not now: by whom, its thread alone knows.
            with memoryview(region) as view:
                for page in range(number % 7, len(transfers.tags), 7):
                    part = view[page * _PAGE : (page + 1) * _PAGE]
                    if not any(
                        wrong_words(np.frombuffer(part, np.uint64), tag, first=page * 512) is None
                        for tag in range(len(sources))
                    ):
                        return 1
            return 0

        threads = [threading.Thread(target=transfer, args=(n,)) for n in (0, 1)]
        for thread in threads:
            thread.start()
        number = 0
        while time.monotonic() < until:
            with contextlib.suppress(OSError):  # a page may be pinned just now
                region.evict(0, nbytes // 2)
            # While it lives its pages are shared; after it they are not, and cannot move.
            assert forked(look if number % 5 == 4 else lambda _: 0, number) == 0
            number += 1
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]
        with memoryview(region) as view:
            for page in range(len(transfers.tags)):
                assert bytes(view[page * _PAGE : (page + 1) * _PAGE]) == transfers.wanted(page)
    return transfers.done


@pytest.mark.needs("kernel_faults")
def test_devices_that_read_into_pages_that_children_have_had(file: Any, tmp_path: Path) -> None:
    nbytes = 2 * MIB
    paths = [make_file(tmp_path / str(tag), nbytes, tag) for tag in range(3)]
    try:
        os.close(os.open(paths[0], os.O_RDONLY | os.O_DIRECT))
    except OSError as error:
        pytest.skip(f"no O_DIRECT in {tmp_path}: {error.strerror}")
    assert newborn(_devices, paths, nbytes, deadline=patience(60)) > 20
