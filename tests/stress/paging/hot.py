"""Hot writers over a file, with flushes, evictions and prefetches running, and what must hold.

Each word of the region is one thread's, which looks at it before it counts it up, so that a lost
or an invented word is seen as soon as it is touched again. Each flush is compared with what was
counted before it began, and at the end region, file and counters agree word for word.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pagemove import PagedMemory
from support.paging import (
    COUNT,
    RANDOM,
    SEQUENTIAL,
    SLACK,
    VERSION,
    Peak,
    Worker,
    outside,
    paged,
    shared_zeros,
    words,
    wrong_words,
)
from support.slowness import patience

from . import SOAK

PAGE_WORDS = 512


@dataclass
class Hot:
    """One run over a file that begins as a pattern."""

    path: Path
    mode: str = "r+"
    block: int = 65536
    blocks: int = 4  # that may be resident
    seconds: float = 0.6
    kind: int = COUNT
    orders: tuple[int, ...] = (RANDOM, SEQUENTIAL)
    of: int = 0  # shares of the region, of which each writer has one; 0: as many as writers
    how: dict[str, Any] = field(default_factory=dict)
    #: What else runs, each in a thread of its own until it is over.
    others: tuple[Callable[[PagedMemory], object], ...] = ()
    within: Callable[[PagedMemory], contextlib.AbstractContextManager[object]] | None = None

    def __post_init__(self) -> None:
        self.nbytes = self.path.stat().st_size
        self.per = PAGE_WORDS if self.kind == VERSION else 1
        # Shared memory: not what a limit counts, and a parent sees it after the child was killed.
        self.shadow = shared_zeros(self.nbytes // 8 // self.per)
        self.flushed = shared_zeros(self.nbytes // 8 // self.per)
        self.flushes = shared_zeros(1)

    @property
    def limit(self) -> int:
        """The limit in bytes."""
        return self.blocks * self.block

    def run(self) -> dict[str, int]:
        """Run it all; assert what must hold; return what was counted."""
        with Peak() as peak, self.opened() as memory:
            with self.writers(memory), self.within(memory) if self.within else _nothing():
                self.churn(memory)
                self.have_enough(memory)
            over = peak.nbytes - self.limit
            self.check_region(memory)
            stats = memory.stats()
        self.check_file()
        unlimited = self.how.get("resident_limit", 1) is None
        assert unlimited or over <= SLACK, f"{over} bytes above the limit of {self.limit}"
        assert stats.errors == 0, stats.failures
        return {"written": int(self.shadow.sum(dtype=np.uint64)), "evicted": stats.evicted}

    def opened(self) -> contextlib.AbstractContextManager[PagedMemory]:
        """Open the region."""
        how = {"block_size": self.block, "resident_limit": self.limit} | self.how
        return paged(self.path, self.mode, **how)

    @contextlib.contextmanager
    def writers(self, memory: PagedMemory) -> Iterator[None]:
        """Let writers write, one for each order, from now to the end of the block."""
        with contextlib.ExitStack() as stack:
            for number, order in enumerate(self.orders):
                of = self.of or len(self.orders)
                how = {"number": number, "of": of, "shadow": self.shadow}
                stack.enter_context(Worker(memory, self.kind, order, seed=number + 1, **how))
            yield

    def have_enough(self, memory: PagedMemory) -> None:
        """Let the writers go on where the machine was too busy for them to have shown anything."""
        if self.how.get("resident_limit", 1) is None or 2 * self.limit > self.nbytes:
            return
        limit = time.monotonic() + patience(60)
        while time.monotonic() < limit and (
            self.shadow.sum(dtype=np.uint64) <= 100 or memory.stats().evicted <= 10
        ):
            time.sleep(0.01)

    def churn(self, memory: PagedMemory) -> None:
        """Flush, evict and prefetch, each again and again in a thread of its own."""
        end = time.monotonic() + self.seconds * SOAK
        errors: list[BaseException] = []

        def again(call: Callable[[PagedMemory], object], seed: int) -> None:
            rng = random.Random(seed)
            try:
                while time.monotonic() < end:
                    call(memory)
                    time.sleep(rng.random() * 0.004)
            except BaseException as error:
                errors.append(error)

        calls = (self.flush, _evict, _prefetch, *self.others)
        threads = [threading.Thread(target=again, args=pair) for pair in zip(calls, range(99))]  # noqa: B905
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def flush(self, memory: PagedMemory) -> None:
        """Flush, and compare the file with what was counted before."""
        before = self.flushed if self.mode != "r+" else shared_zeros(len(self.shadow))
        np.copyto(before, self.shadow)
        memory.flush()
        if self.mode == "r+":
            self.check_flushed(before)
            # In this order, so that whoever finds one of them torn by a kill sees an older one.
            np.copyto(self.flushed, before)
            self.flushes[0] += 1

    def check_flushed(self, before: np.ndarray) -> None:
        """Compare the file with what a flush that has just returned must have covered."""
        found = outside(self.in_file(), before, self.shadow, per=self.per)
        assert found is None, f"after flush {self.flushes[0] + 1}: {found}"

    def in_file(self) -> np.ndarray:
        """View the file as it is, by its own pages."""
        return np.memmap(self.path, np.uint64, "r")

    def check_region(self, memory: PagedMemory) -> None:
        """Compare the region with the counters, when nobody writes any more."""
        found = wrong_words(words(memory), shadow=self.by_word())
        assert found is None, f"in the region: {found}"

    def check_file(self) -> None:
        """Compare the file with the counters, when the region has been closed."""
        counted = self.by_word() if self.mode == "r+" else None
        found = wrong_words(np.fromfile(self.path, np.uint64), shadow=counted)
        assert found is None, f"in the file: {found}"

    def by_word(self) -> np.ndarray:
        """Return one counter for each word."""
        return self.shadow if self.per == 1 else np.repeat(self.shadow, self.per)


def _evict(memory: PagedMemory) -> None:
    now = time.monotonic_ns()
    if now % 3 == 0:
        memory.evict()
    else:
        memory.evict(now * 4096 % memory.nbytes // 2, memory.nbytes // 8)


def _prefetch(memory: PagedMemory) -> None:
    now = time.monotonic_ns()
    memory.prefetch(now * 4096 % memory.nbytes // 2, memory.nbytes // 8, wait=bool(now % 2))


@contextlib.contextmanager
def _nothing() -> Iterator[None]:
    yield
