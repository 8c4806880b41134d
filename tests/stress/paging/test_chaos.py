"""No lost write while the kernel, other threads, other processes and the store misbehave."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagemove import PagedMemory
from stress.siblings import COLD, FORK, PAGEOUT, Sibling
from support import child
from support.paging import (
    COUNT,
    DISCARD,
    KIB,
    MIB,
    RANDOM,
    READ,
    SEQUENTIAL,
    SLACK,
    Fault,
    Peak,
    Worker,
    make_file,
    paged,
    words,
    wrong_words,
)

from . import SOAK
from .hot import Hot

pytestmark = pytest.mark.needs("paging")

_BLOCK = 64 * KIB
_NBYTES = 2 * MIB
_PAGE = 4096


def unforked() -> list[tuple[int, int]]:
    """List (start, length) of the mappings that a fork leaves out: a region, and its staging."""
    text = Path("/proc/self/smaps").read_text(errors="surrogateescape")
    pattern = r"(?m)^([0-9a-f]+)-([0-9a-f]+) rw.. .* 0 +\n(?:\w+:.*\n)*?VmFlags:.* dc(?: |$)"
    bounds = [(int(a, 16), int(b, 16)) for a, b in re.findall(pattern, text)]
    return [(start, end - start) for start, end in bounds]


@contextlib.contextmanager
def advised(kind: int) -> Iterator[None]:
    """Change the page table entries of region and staging all the time.

    It is what provokes the kernel's stale EAGAIN: a page is moved, and the call says EEXIST.
    """
    places = unforked()
    assert len(places) > 1, "region or staging not found"
    with contextlib.ExitStack() as stack:
        for start, length in places:
            stack.enter_context(Sibling(kind, start, length // _PAGE))
        yield


@pytest.mark.parametrize("block", [4 * KIB, _BLOCK, 2 * MIB])
@pytest.mark.parametrize("mode", ["r+", "c"])
def test_a_page_table_that_changes_under_every_move(file, block, mode):
    hot = Hot(file(16 * block), mode, block, 4, within=lambda _: advised(COLD))
    assert child(hot.run, deadline=90)["evicted"] > 10


@pytest.mark.needs("swap")
@pytest.mark.parametrize("mode", ["r+", "c"])
def test_pages_that_are_swapped_out(file, mode):
    hot = Hot(file(_NBYTES), mode, _BLOCK, 8, within=lambda _: advised(PAGEOUT))
    child(hot.run, deadline=120)


@pytest.mark.needs("fork")
@pytest.mark.parametrize("mode", ["r+", "c"])
def test_forks(file, mode):
    hot = Hot(file(_NBYTES), mode, blocks=8, within=lambda m: Sibling(FORK, m.address, 1))
    child(hot.run, deadline=90)


TROUBLE = [
    *(Fault("read", first=n, count=1, errno=errno.EIO) for n in range(3, 2000, 7)),
    *(Fault("read", first=n, count=1, short=1000) for n in range(5, 2000, 11)),
    *(Fault("read", first=n, count=1, delay=0.002) for n in range(0, 2000, 13)),
    *(Fault("write", first=n, count=1, errno=errno.EIO) for n in range(2, 2000, 5)),
    *(Fault("write", first=n, count=1, short=5000) for n in range(4, 2000, 9)),
    *(Fault("write", first=n, count=1, delay=0.002) for n in range(0, 2000, 17)),
]


class Troubled(Hot):
    """Hot writers over a store that fails now and then."""

    def opened(self) -> contextlib.AbstractContextManager[PagedMemory]:
        how = {"block_size": self.block, "resident_limit": self.limit, "store_timeout": 30.0}
        return paged(self.path, self.mode, faults=TROUBLE, **how)


@pytest.mark.parametrize("mode", ["r+", "c"])
@pytest.mark.parametrize("blocks", [4, 8])
def test_a_store_that_fails_now_and_then(file, mode, blocks):
    child(Troubled(file(_NBYTES), mode, _BLOCK, blocks).run, deadline=120)


@contextlib.contextmanager
def signalled() -> Iterator[None]:
    """Interrupt every thread of the process all the time, those that wait in a fault too."""
    signal.signal(signal.SIGUSR1, lambda *_: None)
    libc = ctypes.CDLL(None)
    pid, own = os.getpid(), os.fork()
    if not own:
        while os.getppid() == pid:
            for task in os.listdir(f"/proc/{pid}/task"):
                libc.syscall(234, pid, int(task), int(signal.SIGUSR1))
            time.sleep(0.001)
        os._exit(0)
    try:
        yield
    finally:
        os.kill(own, signal.SIGKILL)
        os.waitpid(own, 0)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="tgkill(2) by its number")
@pytest.mark.parametrize("mode", ["r+", "c"])
def test_signals_to_every_thread(file, mode):
    # Reading and writing files is interrupted too: a short count is no error of the store.
    child(Hot(file(_NBYTES), mode, blocks=8, within=lambda _: signalled()).run, deadline=90)


def _readers(path: Path, block: int, blocks: int, seconds: float) -> tuple[int, int]:
    """Readers in mode r against discards, a changing page table, evictions and prefetches."""
    how = {"block_size": block, "resident_limit": blocks * block}
    with Peak() as peak, paged(path, "r", **how) as memory:
        with (
            Worker(memory, READ, RANDOM, seed=1),
            Worker(memory, READ, SEQUENTIAL, seed=2),
            Worker(memory, DISCARD, RANDOM, seed=3),
            advised(COLD),
        ):
            end = time.monotonic() + seconds * SOAK
            while time.monotonic() < end:
                memory.evict(0, memory.nbytes // 2)
                memory.prefetch(memory.nbytes // 4, memory.nbytes // 2, wait=True)
        wrong = wrong_words(words(memory))
        assert wrong is None, wrong
        stats = memory.stats()
        assert stats.errors == 0
        return peak.nbytes - blocks * block, stats.evicted


@pytest.mark.parametrize("block", [4 * KIB, 16 * KIB, _BLOCK, 2 * MIB])
@pytest.mark.parametrize("blocks", [4, 16])
def test_readers(file, block, blocks):
    over, evicted = child(_readers, file(4 * blocks * block), block, blocks, 0.6, deadline=60)
    assert over <= SLACK
    assert evicted > 10


def _two_regions(path: Path, mode: str) -> None:
    """Two hot regions at once in one process, over two files."""
    one = Hot(path, mode, blocks=4)
    two = Hot(make_file(path.with_suffix(".two"), _NBYTES), mode, blocks=8)
    with one.opened() as first, one.writers(first):
        two.run()
        one.churn(first)
    one.check_file()


@pytest.mark.parametrize("mode", ["r+", "c"])
def test_two_regions(file, mode):
    child(_two_regions, file(_NBYTES), mode, deadline=90)


def _restarted(path: Path) -> None:
    """Close and open again and again, with what was counted before still to be there."""
    hot = Hot(path, "r+", blocks=6, kind=COUNT, seconds=0.05)
    blocks = [4 * KIB, 2 * MIB, _BLOCK, 16 * KIB, 512 * KIB, 8 * KIB]
    for turn in range(int(12 * SOAK)):
        hot.block = blocks[turn % len(blocks)]
        hot.run()


def test_opened_again_and_again_with_other_blocks(file):
    child(_restarted, file(_NBYTES), deadline=90)
