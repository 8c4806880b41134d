"""Regions over stores in trouble, compared with their model word by word: one seed, one run.

    cd tests && python -m stress.paging --minutes 60

runs seeds until the time is over and prints a line for each; a line with FAILED has the seed that
``--seed`` runs again. What is drawn by a seed is a `Scenario`.

Each page belongs to one thread. Its words are their original contents plus the page's version, so
each shows which page it is of, and how old. Whatever is read is what was last stored, or no data
at all (a signal). What is durable is never older than the last flush that returned, whatever lands
afterwards, and never newer than what was stored.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import mmap
import os
import random
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from pagemove import PagedMemory, PageState, StoreError, lowlevel, pinned
from pagemove.introspect import states_at
from support import wait_for
from support.helpers import Words, helpers, numbered
from support.paging import Struck, load, store
from support.unruly import Plan

from . import chaos
from .backings import KINDS, Order
from .scenario import Scenario

PAGE = 4096


class Run:
    """One scenario, on its way."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        self.chance = random.Random(f"run {scenario.seed}")
        nwords = scenario.blocks * scenario.block // 8 - self.chance.choice([0, 0, 8, 300])
        self.base = numbered(8 * nwords)
        if "merged" in scenario.chaos:
            self.base = np.resize(self.base[: 4 * PAGE // 8], nwords)
        self.starts = np.arange(0, nwords, PAGE // 8)
        pages = len(self.starts)
        self.low, self.high, self.flushed = (np.zeros(pages, np.uint64) for _ in range(3))
        self.counts = dict.fromkeys(("loads", "stores", "struck", "flushes", "refused", "pins"), 0)
        #: Whether threads discard pages that are in the store, pinned or not.
        self.discards = "pinned" not in scenario.chaos or self.chance.random() < 0.5
        self.flushing = threading.Lock()
        self.over = threading.Event()
        #: Each held by a thread while it uses the region: who works, who churns, who pins.
        self.busy = [threading.Lock() for _ in range(scenario.threads + 2)]
        #: Whether the region has lost what it is served by: what it had is no data from then on.
        self.doomed = False
        plan = Plan(scenario.seed, scenario.troubles, 2 * scenario.timeout)
        how = (scenario.mode, scenario.block, plan, scenario.patience)
        self.backing = KINDS[scenario.kind].make(Order(folder, self.base, *how))

    # What is right.

    def words(self, page: int, version: int) -> Words:
        """Return what a page reads as."""
        first = int(self.starts[page])
        return self.base[first : first + PAGE // 8] + np.uint64(version)

    def check_durable(self, found: Words, where: str) -> None:
        """Compare what is durable with what was flushed and with what was stored."""
        flushed = self.flushed.copy()
        versions = found - self.base
        oldest = np.minimum.reduceat(versions, self.starts)
        newest = np.maximum.reduceat(versions, self.starts)
        high = self.high if self.scenario.mode == "r+" else np.zeros_like(self.high)
        for page in np.flatnonzero((oldest < flushed) | (newest > high)).tolist():
            raise AssertionError(
                f"{where}: page {page} of block {page * PAGE // self.scenario.block} has versions "
                f"{oldest[page]} to {newest[page]}; flushed {flushed[page]}, stored {high[page]}"
            )

    def look(self) -> None:
        """Look at what is durable now."""
        if self.backing.durable is not None:
            # What was flushed is taken first: `check_durable` must not ask more than the file has.
            with self.flushing:
                found = self.backing.durable()
                self.check_durable(found, "durable")

    # What is done.

    def may_fail(self, error: Exception) -> None:
        """Count a failure, unless there may be none."""
        assert not self.scenario.strict, f"a sound store failed: {error}"
        self.counts["refused"] += 1

    def address(self, page: int) -> int:
        """Return where a page is."""
        return self.memory.address + page * PAGE

    def work(self, me: int) -> None:
        """Read and write pages of one thread until it is over."""
        chance = random.Random(f"{self.scenario.seed} {me}")
        pages, threads = len(self.starts), self.scenario.threads
        own = list(range(me, pages, threads))
        at = 0
        while not self.over.is_set():
            # Some follow each other, some are any, and some are used again and again.
            at = chance.choice(
                [(at + 1) % len(own), chance.randrange(len(own)), chance.randrange(9)]
            )
            at = min(at, len(own) - 1)
            page = own[at]
            try:
                with self.busy[me]:
                    self.step(page, chance)
            except Struck as error:
                self.may_fail(error)
                self.counts["struck"] += 1
                with contextlib.suppress(StoreError):
                    self.memory.evict(page * PAGE, 1)
            except StoreError as error:
                self.may_fail(error)

    def step(self, page: int, chance: random.Random) -> None:
        """Do one thing to a page."""
        kind, low = chance.random(), int(self.low[page])
        if self.high[page] > low:
            self.store(page)  # one that was struck, again
        elif kind < 0.45 and self.scenario.mode != "r":
            self.high[page] = low + 1
            self.store(page, gil=kind < 0.02)
        elif kind < 0.93:
            self.load(page, gil=kind > 0.9)
        elif kind < 0.96:
            self.memory.prefetch(page * PAGE, 1, wait=kind < 0.94)
        elif kind < 0.98:
            self.memory.evict(
                page * PAGE, min(3 * self.scenario.block, self.memory.nbytes - page * PAGE)
            )
        elif kind < 0.985:
            self.flush()
        elif kind < 0.99 and self.scenario.mode == "r":
            self.trespass(page)
        elif (
            self.discards and self.flushed[page] == low and (self.scenario.mode == "r+" or not low)
        ):
            with contextlib.suppress(OSError):
                lowlevel.madvise(self.address(page), PAGE, mmap.MADV_DONTNEED)

    def load(self, page: int, *, gil: bool = False) -> None:
        """Read a page, and compare it."""
        wanted = self.words(page, int(self.low[page]))
        found = np.frombuffer(load(self.address(page), wanted.nbytes, gil=gil), np.uint64)
        wrong = np.flatnonzero(found != wanted)
        if len(wrong):
            at = int(wrong[0])
            raise AssertionError(
                f"{len(wrong)} words of page {page} wrong, from {at} on: {found[at]:#x}, version "
                f"{found[at] - wanted[at] + self.low[page]} instead of {self.low[page]}"
            )
        self.counts["loads"] += 1

    def store(self, page: int, *, gil: bool = False) -> None:
        """Write the next version of a page; again and again the same, until it is done."""
        version = int(self.high[page])
        store(self.address(page), self.words(page, version).tobytes(), gil=gil)
        self.low[page] = version
        self.counts["stores"] += 1

    def trespass(self, page: int) -> None:
        """Write to what is only to be read: that is a signal, and nothing has changed.

        Always, once one such store has been refused (`run` sees to that). Before, one that comes
        between a block's move and its protection is not noticed.
        """
        with contextlib.suppress(Struck):
            store(self.address(page), bytes(8))
            raise AssertionError(f"page {page} of a region that is only read was written to")
        # For a moment it may be no data for anybody.
        limit = time.monotonic() + 10
        while error := self.cannot_have(page):
            assert time.monotonic() < limit, f"page {page} stays away after a refusal: {error}"
            if not self.scenario.strict:  # it may have been given up for another reason
                with contextlib.suppress(StoreError):
                    self.memory.evict(page * PAGE, 1)

    def pin(self, first: int, end: int, *, write: bool) -> contextlib.ExitStack | None:
        """Pin some bytes, until what is returned is closed; None if that cannot be."""
        stack = contextlib.ExitStack()
        with memoryview(self.memory) as whole, whole[first:end] as view:
            try:
                stack.enter_context(pinned(view, write=write))
            except StoreError as error:
                self.may_fail(error)
                return None
            except ValueError as error:
                if "of its limit" not in str(error):
                    raise
                return None  # all of it or nothing
        self.counts["pins"] += 1
        return stack

    def check_present(self, first: int, end: int) -> None:
        """See that all of the blocks that have these bytes is in memory."""
        if self.discards:
            return
        block = self.scenario.block
        start, stop = first // block * block, -(-end // block) * block
        states = states_at(self.memory.address + start, (stop - start) // PAGE)
        there = states & (PageState.PRESENT | PageState.SWAPPED) != 0
        assert there.all(), (
            f"{(~there).sum()} pages of {first} to {end} are pinned, and not in memory"
        )

    def flush(self) -> bool:
        """Flush, and remember what that has promised; return whether it has."""
        before = self.low.copy()
        try:
            self.memory.flush()
        except StoreError as error:
            self.may_fail(error)
            return False
        with self.flushing:
            if self.scenario.mode == "r+":
                np.maximum(self.flushed, before, out=self.flushed)
        self.counts["flushes"] += 1
        return True

    def churn(self) -> None:
        """Flush, evict and look, until it is over."""
        chance = random.Random(f"churn {self.scenario.seed}")
        while not self.over.wait(chance.random() * 0.1):
            with self.busy[-2]:
                if chance.random() < 0.3:
                    try:
                        self.memory.evict()
                    except StoreError as error:
                        self.may_fail(error)
                else:
                    self.flush()
                self.look()

    # From the beginning to the end.

    def run(self) -> dict[str, Any]:
        """Run it all; return what was counted."""
        scenario, backing = self.scenario, self.backing
        self.memory = PagedMemory(
            backing.store,
            mode=scenario.mode,
            block_size=scenario.block,
            resident_limit=scenario.limit * scenario.block,
            prefetch="auto" if scenario.ahead else "off",
            store_timeout=scenario.patience,
            writeback_interval=scenario.interval,
        )
        if backing.unruly:
            backing.unruly.whims.lives = 1
            backing.unruly.whims.wild = scenario.wild
        if scenario.mode == "r":
            self.trespass(0)
        jobs = [self.churn, *(lambda me=me: self.work(me) for me in range(scenario.threads))]
        jobs += [lambda name=name: chaos.ACTIONS[name](self) for name in scenario.chaos]
        try:
            self.together(jobs)
            if backing.unruly:
                backing.unruly.whims.wild = 0
            if self.chance.random() < 0.5:
                self.wait_for_the_late()
            saved = self.settle()
        except BaseException as error:
            self.describe(error)
            raise
        self.background = self.memory.stats().background_written
        self.close(saved)
        self.wait_for_the_late()
        # One that was frozen ends when it is thawed, and has its locks until then.
        wait_for(lambda: not helpers())
        self.look()
        if backing.kept is not None:
            found = backing.kept()
            self.check_durable(found, "kept")
            if saved and scenario.mode == "r+" and not self.doomed:
                assert (found == self.base + np.repeat(self.low, PAGE // 8)[: len(found)]).all()
        backing.stack.close()
        troubles = backing.unruly.whims.counts if backing.unruly else {}
        return {**self.counts, **troubles, "saved": saved, "background": self.background}

    def describe(self, error: BaseException) -> None:
        """Say with an error what the region knows."""
        stats = self.memory.stats()
        error.add_note(f"{self.counts}, {self.memory.counters()}")
        for each in stats.failures[-4:]:
            error.add_note(str(each))
        if self.backing.unruly:
            error.add_note(f"troubles: {self.backing.unruly.whims.counts}")

    def together(self, jobs: list[Any]) -> None:
        """Run all for the time that there is."""
        errors: list[BaseException] = []

        def run(job: Any) -> None:
            try:
                job()
            except BaseException as error:
                errors.append(error)
                self.over.set()

        threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
        for thread in threads:
            thread.start()
        self.over.wait(self.scenario.seconds)
        self.over.set()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def wait_for_the_late(self) -> None:
        """Wait until nothing that was late is still on its way."""
        unruly, limit = self.backing.unruly, time.monotonic() + 30
        while unruly and not unruly.landed():
            assert time.monotonic() < limit, "a late call does not end"
            time.sleep(0.01)

    def settle(self) -> bool:
        """Read all, now that nothing fails any more, and flush; return whether that is saved."""
        if self.doomed:
            return self.flush()
        limit = time.monotonic() + 20 + 4 * self.scenario.timeout
        for page in range(len(self.starts)):
            while error := self.cannot_have(page):
                self.may_fail(error)
                assert time.monotonic() < limit, f"page {page} cannot be had again: {error}"
                with contextlib.suppress(StoreError):
                    self.memory.evict(page * PAGE, 1)
        if self.scenario.lossy:
            limit = time.monotonic() + 1.0
        while not self.flush():
            if time.monotonic() > limit:
                assert self.scenario.lossy, "a sound store cannot be flushed again"
                return False
        return True

    def cannot_have(self, page: int) -> Struck | None:
        """Read a page, after having stored what could not be; return what struck, if it did."""
        try:
            if self.high[page] > self.low[page]:
                self.store(page)
            self.load(page)
        except Struck as error:
            return error
        return None

    def close(self, saved: bool) -> None:
        """Close the region; what cannot be saved is said."""
        gc.collect()
        if saved:
            self.memory.close()
            return
        try:
            self.memory.close()
        except StoreError:
            # It would stay open, and its helper with it.
            self.memory._save_before_close = lambda: None
            self.memory.close()
        else:
            assert self.doomed, "closed, though flush said that changes were lost"


def run(scenario: Scenario, deadline: float = 90.0) -> dict[str, Any]:
    """Run a scenario in this process, which is its own; return what was counted."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = os.open(folder / "stderr", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        said = os.dup(2)
        os.dup2(log, 2)
        with open(said, "w", closefd=False) as file:
            # By a signal: the thread that faulthandler has for this is the parent's, which watches
            # its test, and a child would wait for that forever.
            faulthandler.register(signal.SIGALRM, file=file)
            signal.setitimer(signal.ITIMER_REAL, deadline)
            try:
                if "merged" in scenario.chaos:
                    chaos.merge()
                return Run(scenario, folder).run()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                faulthandler.unregister(signal.SIGALRM)
