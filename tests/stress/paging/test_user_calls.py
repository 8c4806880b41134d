"""No lost write beside what users do to the same memory: MADV_DONTNEED, O_DIRECT, KSM."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pagemove import PagedMemory
from support import child, wait_for
from support.children import newborn
from support.paging import (
    DISCARD,
    KIB,
    MIB,
    RANDOM,
    READ,
    SEQUENTIAL,
    VERSION,
    Worker,
    contents_of,
    expected,
    make_file,
    paged,
    words,
    wrong_words,
)

from . import SOAK
from .hot import Hot

pytestmark = pytest.mark.needs("move")

_BLOCK = 64 * KIB
_NBYTES = 2 * MIB
_PAGE = 4096


@contextlib.contextmanager
def discarded(memory: PagedMemory) -> Iterator[None]:
    """Discard, and read, pages that nobody writes, in blocks of which others are written."""
    with (
        Worker(memory, DISCARD, RANDOM, number=2, of=4, seed=5),
        Worker(memory, READ, RANDOM, number=2, of=4, seed=6),
        Worker(memory, READ, SEQUENTIAL, number=3, of=4, seed=7),
    ):
        yield


@pytest.mark.parametrize("block", [16 * KIB, _BLOCK, 512 * KIB])
@pytest.mark.parametrize("mode", ["r+", "c"])
@pytest.mark.parametrize("blocks", [4, 32])
def test_discards_of_pages_beside_those_that_are_written(file, block, mode, blocks):
    nbytes = max(_NBYTES, 4 * blocks * block)
    hot = Hot(file(nbytes), mode, block, blocks, kind=VERSION, of=4, within=discarded)
    child(hot.run, deadline=90)


def _direct(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_DIRECT)
    except OSError as error:
        pytest.skip(f"no O_DIRECT in {path.parent}: {error.strerror}")


class Transfers:
    """Devices read into the region's pages, and write from them, while blocks come and go.

    Each thread owns every second page; of each of its pages it knows of which file it is.
    """

    def __init__(self, memory: PagedMemory, sources: list[int], sink: Path) -> None:
        self.memory, self.sources = memory, sources
        self.sink, self.check = _direct(sink, os.O_WRONLY), os.open(sink, os.O_RDONLY)
        self.tags = np.zeros(memory.nbytes // _PAGE, np.int64)
        self.done = 0

    def run(self, number: int, until: float) -> None:
        rng = np.random.default_rng(number)
        with memoryview(self.memory) as view:
            while time.monotonic() < until:
                page = int(rng.integers(0, len(self.tags) // 2)) * 2 + number
                at = page * _PAGE
                piece = view[at : at + _PAGE]
                if rng.random() < 0.6:
                    tag = int(rng.integers(0, 2))
                    assert os.preadv(self.sources[tag], [piece], at) == _PAGE
                    self.tags[page] = tag
                else:
                    assert os.pwritev(self.sink, [piece], at) == _PAGE
                    assert os.pread(self.check, _PAGE, at) == self.wanted(page)
                assert bytes(piece) == self.wanted(page), f"page {page} of the region"
                piece.release()
                self.done += 1

    def wanted(self, page: int) -> bytes:
        """Return what a page must be."""
        at = page * _PAGE
        return bytes(contents_of(_NBYTES, int(self.tags[page]))[at : at + _PAGE])


def _device(path: Path, other: Path, sink: Path, blocks: int) -> int:
    sources = [_direct(make_file(path.with_suffix(".copy"), _NBYTES), os.O_RDONLY)]
    sources.append(_direct(other, os.O_RDONLY))
    hot = Hot(path, "r+", _BLOCK, blocks)
    with hot.opened() as memory:
        transfers = Transfers(memory, sources, make_file(sink, _NBYTES))
        until = time.monotonic() + 0.8 * SOAK
        errors: list[BaseException] = []

        def transfer(number: int) -> None:
            try:
                transfers.run(number, until)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=transfer, args=(n,)) for n in (0, 1)]
        for thread in threads:
            thread.start()
        while time.monotonic() < until:
            with contextlib.suppress(OSError):  # a page may be pinned just now
                memory.flush()
            with contextlib.suppress(OSError):
                memory.evict(0, _NBYTES // 2)
            memory.prefetch(_NBYTES // 2, _NBYTES // 4)
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        seen = words(memory).copy()
    for found in (seen, np.fromfile(path, np.uint64)):
        for page, tag in enumerate(transfers.tags.tolist()):
            part = found[page * 512 : (page + 1) * 512]
            wrong = wrong_words(part, tag, first=page * 512)
            assert wrong is None, f"page {page} of file {tag}: {wrong}"
    return transfers.done


@pytest.mark.needs("kernel_faults")
@pytest.mark.parametrize("blocks", [4, 8, 40])
def test_devices_that_read_into_it_and_write_from_it(file, tmp_path, blocks):
    done = child(_device, file(_NBYTES), file(_NBYTES, 1), tmp_path / "sink", blocks, deadline=60)
    assert done > 20


_PR_SET_MEMORY_MERGE = 67


def _merged(path: Path, mode: str) -> tuple[str | None, int, int]:
    """A process whose equal pages the kernel merges: they cannot be moved while they are shared."""
    if ctypes.CDLL(None).prctl(_PR_SET_MEMORY_MERGE, 1, 0, 0, 0):
        return "skip", 0, 0
    how = {"block_size": _BLOCK, "resident_limit": 8 * _BLOCK, "store_timeout": 1.0}
    half = np.fromfile(path, np.uint64)
    with paged(path, mode, **how) as memory:
        merged = 0
        for first in (0, 8):
            for block in range(first, first + 8):
                words(memory)[block * _BLOCK // 8].item()
            with contextlib.suppress(AssertionError):
                wait_for(lambda: _merging() > 64, 20.0)
            merged = max(merged, _merging())
        good = bool((words(memory) == half).all())
        if mode != "r":
            words(memory)[::512] += np.uint64(1)
            memory.flush()
            words(memory)[::512] -= np.uint64(1)
            good = good and bool((words(memory) == half).all())
        return None if good else "other contents", merged, memory.stats().errors


def _merging() -> int:
    for line in Path("/proc/self/ksm_stat").read_text().splitlines():
        if line.startswith("ksm_merging_pages"):
            return int(line.split()[1])
    return 0


@pytest.mark.needs("ksm")
@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_pages_that_the_kernel_merges(tmp_path, mode):
    path = tmp_path / "alike"
    path.write_bytes(bytes(expected(_PAGE)) * (24 * _BLOCK // _PAGE))
    # The kernel looks at all memory of a process, and a fork of this one has a lot.
    wrong, merged, errors = newborn(_merged, path, mode, deadline=120)
    if wrong == "skip":
        pytest.skip("no PR_SET_MEMORY_MERGE (Linux 6.4)")
    assert merged > 0, "nothing was merged"
    assert wrong is None
    assert errors == 0
