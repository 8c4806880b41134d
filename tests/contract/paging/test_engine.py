"""What regions over files share: one thread for faults, a pool of threads, one file table."""

from __future__ import annotations

import collections
import ctypes
import os
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest

import pagemove
from support import child, native, wait_for
from support.paging import KIB, MIB, Fault, load, paged, words, wrong_words
from support.slowness import SLOWNESS

pytestmark = pytest.mark.needs("paging")

_MANY = 150
_BLOCK = 64 * KIB
_HOW = {"block_size": _BLOCK, "resident_limit": 4 * _BLOCK, "prefetch": "off"}
#: More than the pool has for all files that answer.
_LATE = 8


def _threads() -> collections.Counter[str]:
    tasks = Path("/proc/self/task").iterdir()
    return collections.Counter((task / "comm").read_text().strip() for task in tasks)


def _pagers_descriptors() -> int:
    (faults,) = (
        task
        for task in Path("/proc/self/task").iterdir()
        if (task / "comm").read_text() == "pagemove-faults\n"
    )
    return len(os.listdir(faults / "fd"))


def _many(paths: list[Path]) -> tuple[list[int], collections.Counter[str], int, int]:
    before = len(os.listdir("/proc/self/fd"))
    arrays = [pagemove.open_array(path, dtype="u8", resident_limit=None) for path in paths]
    values = [int(array[3]) for array in arrays]
    threads, pagers = _threads(), _pagers_descriptors()
    programs = len(os.listdir("/proc/self/fd")) - before
    del arrays
    return values, threads, pagers, programs


def test_many_regions_share_threads_and_descriptors(tmp_path):
    paths = [tmp_path / str(number) for number in range(_MANY)]
    for number, path in enumerate(paths):
        np.full(16, number, np.uint64).tofile(path)
    values, threads, pagers, programs = child(_many, paths, deadline=120)
    assert values == list(range(_MANY))
    assert threads["pagemove-faults"] == 1
    assert 1 <= threads["pagemove-work"] + threads["pagemove-calls"] <= 5
    assert pagers <= _MANY + 16
    assert programs == 1


def _beside_late_ones(late: list[Path], path: Path) -> tuple[bool, str | None, list[str | None]]:
    """Use a region while each of several others has two threads that wait for its file."""
    waits = [Fault("read", count=2, delay=4.0)]
    with ExitStack() as stack:
        others = [stack.enter_context(paged(one, "r", faults=waits, **_HOW)) for one in late]
        memory = stack.enter_context(paged(path, "r+", **_HOW))
        threads = [
            threading.Thread(target=load, args=(other.address + offset,))
            for other in others
            for offset in (0, 2 * _BLOCK)
        ]
        for thread in threads:
            thread.start()
        assert wait_for(lambda: all(other.stats().faults == 2 for other in others), 20)
        wrong = wrong_words(words(memory))
        words(memory)[::64] += np.uint64(1)
        memory.flush()
        waiting = all(thread.is_alive() for thread in threads)
        for thread in threads:
            thread.join()
        return waiting, wrong, [wrong_words(words(other)) for other in others]


def test_files_that_do_not_answer_hold_up_no_other(file):
    late = [file(4 * _BLOCK) for _ in range(_LATE)]
    found = child(_beside_late_ones, late, file(16 * _BLOCK), deadline=120)
    assert found == (True, None, [None] * _LATE)


_PROGRAM = """
    import ctypes, os, sys, threading, time
    import numpy as np, pagemove
    from pagemove._native import pager
    late, path, gate = sys.argv[1:]
    pager.set_rings(False)
    whole = np.fromfile(path, np.uint64)
    a, b = (pagemove.open_array(p, dtype="u8", prefetch="off") for p in (late, path))
    word = ctypes.create_string_buffer(8)
    copy, address = ctypes.CDLL(None).memcpy, ctypes.c_void_p(pagemove.region_of(a).address + 40)
    thread = threading.Thread(target=lambda: copy(word, address, 8))
    thread.start()
    while not os.path.exists(gate):
        time.sleep(0.001)
    assert b[70_000] == whole[70_000]
    assert thread.is_alive()
    os.unlink(gate)
    thread.join()
    print(int.from_bytes(word.raw, "little") == whole[5])
    """


def test_a_file_system_that_always_waits_holds_up_no_other(file, tmp_path):
    """Where a read cannot be asked not to wait, the thread that answers faults makes none."""
    source = Path(native.__file__).parent / "hung_io.c"
    library, gate = native.library_file(source, tmp_path), tmp_path / "gate"
    late, path = file(MIB), file(MIB)
    hung = {"HUNG_FILE": str(late), "HUNG_GATE": str(gate), "LD_PRELOAD": str(library)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_PROGRAM), late, path, gate],
        env={**os.environ, **hung},
        capture_output=True,
        text=True,
        timeout=60 * SLOWNESS,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def _opened_and_closed(path: Path, others: int) -> tuple[list[bool], bool]:
    """Open and close from several threads at once, down to none and up again."""
    right: list[bool] = []

    def use() -> None:
        for _ in range(20):
            with paged(path, "r", block_size=_BLOCK) as memory:
                right.append(wrong_words(words(memory)) is None)

    threads = [threading.Thread(target=use) for _ in range(others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # A thread that has been joined is listed until the kernel has closed its files.
    return right, wait_for(lambda: not _threads()["pagemove-faults"], 20)


def test_regions_come_and_go_at_the_same_time(file):
    right, ended = child(_opened_and_closed, file(2 * _BLOCK), 4, deadline=120)
    assert right == [True] * 80
    assert ended


def _in_time(path: Path) -> float:
    """Changes of a region are written back though another's file takes none."""
    late = [Fault("write", count=1, delay=4.0)]
    how = {"block_size": _BLOCK, "writeback_interval": 0.02}
    other = path.with_name("other")
    other.write_bytes(bytes(4 * _BLOCK))
    with paged(other, "r+", faults=late, **how) as hangs, paged(path, "r+", **how) as memory:
        words(hangs)[0] = np.uint64(7)
        assert wait_for(lambda: hangs.stats().faults, 20)
        began = time.monotonic()
        words(memory)[0] += np.uint64(1)
        assert wait_for(lambda: memory.stats().background_written, 20)
        return time.monotonic() - began


def test_a_file_that_takes_nothing_keeps_no_other_from_being_written(file):
    assert child(_in_time, file(4 * _BLOCK), deadline=120) < 3


def _rings() -> int:
    """How many rings of io_uring the thread has that answers faults."""
    found = 0
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text() != "pagemove-faults\n":
            continue
        for fd in (task / "fd").iterdir():
            with suppress(OSError):
                found += os.readlink(fd) == "anon_inode:[io_uring]"
    return found


def _direct(path: Path) -> pagemove.PagedMemory:
    """Open a file of which no block is ever there at once."""
    with pagemove.stores.FileStore(path, direct=True) as store:
        return pagemove.PagedMemory(store, block_size=4 * KIB, prefetch="off")


def _read_by_all(paths: list[Path]) -> tuple[list[str], int, list[str | None]]:
    """Read files at random, each from three threads; return how, by how many rings, and what."""
    regions = [_direct(path) for path in paths]
    arrays = [region.asarray("u8") for region in regions]
    order = np.random.default_rng(0).permutation(len(arrays[0]) // 512) * 512
    threads = [
        threading.Thread(target=lambda array=array, part=part: array[order[part::3]].sum())
        for array in arrays
        for part in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    how = [region.stats().io.get("queue", "") for region in regions]
    return how, _rings(), [wrong_words(array) for array in arrays]


@pytest.mark.needs("io_uring")
def test_one_ring_reads_for_all(file):
    how, rings, wrong = child(_read_by_all, [file(256 * KIB) for _ in range(3)], deadline=60)
    assert wrong == [None] * 3
    if not all(way.startswith("io_uring") for way in how):
        pytest.skip("this file system keeps files in memory, or reads no other way")
    assert rings == 1


def _closed_meanwhile(paths: list[Path]) -> int:
    """Close regions while threads are in system calls that wait for blocks of theirs."""
    whole = [np.fromfile(path, np.uint64) for path in paths]
    copied = 0
    write = ctypes.CDLL(None, use_errno=True).pwrite

    def copy(address: int, words: np.ndarray, first: int, closing: threading.Event) -> None:
        nonlocal copied
        file = os.memfd_create("copy")
        for at in range(first, len(words), 1024):
            late = closing.is_set()
            if write(file, ctypes.c_void_p(address + 8 * at), 8, ctypes.c_long(0)) != 8:
                break
            assert late or closing.is_set() or os.pread(file, 8, 0) == words[at].tobytes()
            copied += 1
        os.close(file)

    for _ in range(30):
        regions = [_direct(path) for path in paths]
        closing = threading.Event()
        threads = [
            threading.Thread(target=copy, args=(region.address, words, first, closing))
            for region, words in zip(regions, whole, strict=True)
            for first in (0, 512)
        ]
        for thread in threads:
            thread.start()
        assert wait_for(lambda begun=copied: copied > begun, 20)
        closing.set()
        for region in regions:
            region.close()
        for thread in threads:
            thread.join()
    return copied


@pytest.mark.needs("kernel_faults")
def test_regions_are_closed_while_reads_are_under_way(file):
    assert child(_closed_meanwhile, [file(4 * MIB) for _ in range(3)], deadline=120) >= 30
