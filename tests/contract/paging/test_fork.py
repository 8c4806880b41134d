"""Point 6: a child has the region whole or not at all, and never reads zeros; the parent does not
notice it. Regions that are there again are in test_fork_again.py."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stress.siblings import FORK, Sibling, library
from support import ChildFailed, child, fork, living_child, vmas_in
from support.paging import (
    COUNT,
    KIB,
    MODES,
    RANDOM,
    Fault,
    Struck,
    Worker,
    load,
    paged,
    store,
    words,
    wrong_words,
)

pytestmark = pytest.mark.needs("paging", "fork")

_BLOCK = 64 * KIB
_NBYTES = 16 * _BLOCK
_HOW = {"block_size": _BLOCK, "resident_limit": 6 * _BLOCK}


def in_fork(function: Callable[[], int | None]) -> int:
    """Run a function in a forked child; return its status, negative for a signal."""
    pid = fork()
    if not pid:
        status = 99
        try:
            status = function() or 0
        finally:
            os._exit(status)
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -999


def _struck(touch: Callable[[], object]) -> int:
    try:
        touch()
    except Struck as error:
        return int(error.signal)
    return 0


def _touches(path: Path, mode: str) -> dict[str, int]:
    """Let children touch blocks that are there, absent, evicted, dirty; by load and by store."""
    found = {}
    with paged(path, mode, fork="message", **_HOW) as memory:
        array = words(memory)
        if mode != "r":
            array[0] = 1
        array[_BLOCK // 8].item()
        memory.prefetch(2 * _BLOCK, _BLOCK, wait=True)
        array[3 * _BLOCK // 8].item()
        memory.evict(3 * _BLOCK, _BLOCK)
        for block in (0, 1, 2, 3, 9):
            at = memory.address + block * _BLOCK
            found[f"load of {block}"] = in_fork(lambda a=at: _struck(lambda: load(a)))
            found[f"store to {block}"] = in_fork(
                lambda a=at: _struck(lambda: store(a, b"12345678"))
            )
        kept = [array]
        del array
        found["index"] = -in_fork(lambda: int(kept[0][5]))
        kept.clear()
    return found


@pytest.mark.parametrize("mode", MODES)
def test_a_child_that_touches_it_dies_of_sigsegv(file, mode):
    found = child(_touches, file(_NBYTES), mode)
    assert found == dict.fromkeys(found, signal.SIGSEGV)


def _mapped_in_child(path: Path) -> int:
    with paged(path, "r+", **_HOW) as memory:
        words(memory)[:: _BLOCK // 8] = 1
        address, nbytes = memory.address, memory.nbytes
        return in_fork(lambda: sum(vma[2] != "---p" for vma in vmas_in(address, nbytes)))


def test_a_child_does_not_have_its_mapping(file):
    assert child(_mapped_in_child, file(_NBYTES)) == 0


def _dead(path: Path, mode: str) -> int:
    with paged(path, mode, fork="message", **_HOW) as memory:
        if mode != "r":
            words(memory)[:] = 1

        def use() -> int:
            number = 0
            uses = [
                lambda: memoryview(memory),
                lambda: words(memory),
                memory.flush,
                memory.evict,
                memory.prefetch,
                lambda: memory.prefetch(wait=True),
            ]
            for call in uses:
                number += 1
                try:
                    call()
                except ValueError:
                    continue
                return number
            repr(memory)
            memory.close()
            memory.close()
            return 0

        status = in_fork(use)
        # And in the parent all is as it was.
        memory.flush()
        seen = int(words(memory).max())
        assert mode == "r" or seen == 1
        return status


@pytest.mark.parametrize("mode", MODES)
def test_in_a_child_it_is_dead(file, mode):
    assert child(_dead, file(_NBYTES), mode) == 0


def _own_region_in_child(path: Path, other: Path) -> int:
    """A child pages for itself, in a region of its own, while the parent's lives on."""
    with paged(path, "r+", **_HOW) as memory:
        words(memory)[::64] += np.uint64(1)

        def use() -> int:
            with paged(other, "r+", **_HOW) as own:
                words(own)[::64] += np.uint64(1)
                shadow = np.zeros(_NBYTES // 8, np.uint32)
                shadow[::64] = 1
                if wrong_words(words(own), shadow=shadow):
                    return 1
            return 2 if wrong_words(np.fromfile(other, np.uint64), shadow=shadow) else 0

        status = in_fork(use)
        words(memory)[::64] -= np.uint64(1)
        assert wrong_words(words(memory)) is None
        return status


def test_a_child_may_have_a_region_of_its_own(file):
    assert child(_own_region_in_child, file(_NBYTES), file(_NBYTES)) == 0


def _while_child_lives(path: Path, mode: str) -> str | None:
    """Evict, write back and refault while a child holds whatever it has inherited."""
    with paged(path, mode, **_HOW) as memory:
        shadow = np.zeros(_NBYTES // 8, np.uint32)
        if mode == "r":
            with living_child():
                return wrong_words(words(memory)) or wrong_words(words(memory))
        words(memory)[::64] += np.uint64(1)
        shadow[::64] += 1
        with living_child() as one, living_child() as other:
            for turn in range(3):
                words(memory)[turn::64] += np.uint64(1)
                shadow[turn::64] += 1
                memory.flush()
            other.end()  # it has the first one's pipes, too
            memory.evict()
            one.end()
        return wrong_words(words(memory), shadow=shadow)


@pytest.mark.parametrize("mode", MODES)
def test_while_a_child_lives(file, mode):
    assert child(_while_child_lives, file(_NBYTES), mode) is None


def _close_while_child_lives(path: Path) -> str | None:
    """The child has the descriptors, too: a region that is closed is closed all the same."""
    with paged(path, "r+", **_HOW) as memory:
        words(memory)[::64] += np.uint64(1)
        with living_child():
            memory.close()
            with paged(path, "r+", **_HOW) as again:
                words(again)[::64] -= np.uint64(1)
                return wrong_words(words(again))


def test_closing_while_a_child_lives(file):
    path = file(_NBYTES)
    assert child(_close_while_child_lives, path) is None
    assert wrong_words(np.fromfile(path, np.uint64)) is None


def _fork_storm(path: Path, mode: str) -> tuple[str | None, int]:
    shadow = np.zeros(_NBYTES // 8, np.uint32)
    with (
        paged(path, mode, **_HOW) as memory,
        Sibling(FORK, memory.address, 1) as forks,
        Worker(memory, COUNT, RANDOM, number=0, of=2, shadow=shadow) as one,
        Worker(memory, COUNT, RANDOM, number=1, of=2, shadow=shadow, seed=2) as other,
    ):
        limit = time.monotonic() + 1.5
        while time.monotonic() < limit or forks.steps < 20:
            memory.flush()
            memory.evict()
        one.stop()
        other.stop()
        count = forks.steps
        wrong = wrong_words(words(memory), shadow=shadow)
    if mode == "r+":
        wrong = wrong or wrong_words(np.fromfile(path, np.uint64), shadow=shadow)
    return wrong, count


@pytest.mark.parametrize("mode", ["r+", "c"])
def test_a_storm_of_forks_under_writers(file, mode):
    library()
    wrong, count = child(_fork_storm, file(_NBYTES), mode, deadline=40)
    assert wrong is None
    assert count >= 20


def _fork_in_fault(path: Path) -> int:
    """Fork while threads wait in a fault, and while the pager reads."""
    late = [Fault("read", count=0, delay=0.2)]
    with paged(path, "r", faults=late, **_HOW) as memory:
        threads = [Worker(memory, number=n, seed=n, steps=1).start() for n in range(3)]
        statuses = [in_fork(lambda: 0) for _ in range(3)]
        for thread in threads:
            thread.join()
        return sum(statuses)


def test_forking_while_threads_wait(file):
    assert child(_fork_in_fault, file(_NBYTES)) == 0


def _fork_in_a_handler(path: Path) -> tuple[int, int]:
    """A signal handler forks while this thread waits for a flush, and returns in the child too."""
    found: list[int] = []
    late = [Fault("flush", count=1, delay=1.0)]
    with paged(path, "r+", faults=late, store_timeout=20.0, **_HOW) as memory:
        words(memory)[0] = 1
        signal.signal(signal.SIGALRM, lambda *_: found.append(fork()))
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            memory.flush()
        except ValueError as error:
            os._exit(7 if found == [0] and "child of the process" in str(error) else 8)
        if found == [0]:
            os._exit(9)
        limit = time.monotonic() + 20
        while not (ended := os.waitpid(found[0], os.WNOHANG))[0]:
            if time.monotonic() > limit:
                os.kill(found[0], signal.SIGKILL)
            time.sleep(0.01)
    return os.waitstatus_to_exitcode(ended[1]), int(np.fromfile(path, np.uint64)[0])


def test_a_child_that_is_forked_while_its_thread_waits_for_the_pager_is_told(file):
    assert child(_fork_in_a_handler, file(_NBYTES), deadline=60) == (7, 1)


def _multiprocessing(path: Path) -> list[int]:
    import multiprocessing

    with paged(path, "r", **_HOW) as memory:
        int(words(memory)[::64].sum())
        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(abs, range(-10, 0))


@pytest.mark.filterwarnings("ignore")
def test_a_pool_of_forked_workers_beside_it(file):
    assert child(_multiprocessing, file(_NBYTES), deadline=30) == list(range(10, 0, -1))


def test_an_array_in_a_forked_child_is_dropped_quietly(file):
    """The child ends as an interpreter does, finalisers and all; it says and stores nothing.

    A region that a child inherits was never the child's to close: no ResourceWarning either.
    """
    path = file(_NBYTES)
    script = """
import gc, os, sys
import numpy as np, pagemove
from pagemove.stores import FileStore
store = FileStore(sys.argv[1], writable=True)
memory = pagemove.PagedMemory(store, mode="r+")
array = memory.asarray(np.uint64)
array[0] += np.uint64(1)
pid = os.fork()
if not pid:
    del array, memory
    gc.collect()
    sys.exit(0)
status = os.waitpid(pid, 0)[1]
del array
memory.close(); store.close()
sys.exit(os.waitstatus_to_exitcode(status))
"""
    # But for what unprivileged users are told.
    options = ["-W", "error", "-W", "ignore:system calls on paged memory"]
    command = [sys.executable, *options, "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    assert "Region" not in done.stderr
    assert "PagedMemory" not in done.stderr
    found = np.fromfile(path, np.uint64)
    found[0] -= np.uint64(1)
    assert wrong_words(found) is None


def test_a_child_that_reads_zeros_would_be_seen():
    """The other tests' way of telling: memory that is not there is SIGSEGV."""
    with pytest.raises(ChildFailed) as caught:
        child(_plain_read, 4096)
    assert caught.value.signal == signal.SIGSEGV


def _plain_read(address: int) -> bytes:
    import ctypes

    return ctypes.string_at(address, 8)


def _userfaultfds() -> int:
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum("userfaultfd" in link for link in links)


def _descriptors_of(path: Path) -> tuple[int, int, int]:
    before, others = _userfaultfds(), len(os.listdir("/proc/self/fd"))
    with paged(path, "r+", **_HOW) as memory:
        words(memory)[0] = 1
        return (
            _userfaultfds() - before,
            len(os.listdir("/proc/self/fd")) - others,
            in_fork(lambda: len(os.listdir("/proc/self/fd")) - others),
        )


def test_a_region_leaves_one_descriptor_to_the_program_and_none_to_a_child(file):
    userfaultfds, all_of_parent, all_of_child = child(_descriptors_of, file(_NBYTES))
    assert userfaultfds == 0
    assert all_of_parent == 3  # the end of a pipe, that of the FileStore, and its lock
    assert all_of_child == 1


def test_a_pid_that_is_used_again_is_no_identity(file, monkeypatch):
    number = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: number)
    with paged(file(_NBYTES), "r", fork="message") as memory:
        assert child(lambda: (memory.inherited, memory.closed)) == (True, True)
        assert not memory.closed
