"""How cold blocks of a file are read: by io_uring, by threads where it is refused, and directly."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pagemove
from pagemove import PagedMemory
from pagemove._native import pager
from pagemove.stores import FileStore
from support import child, paging
from support.paging import KIB, MODES, Struck, chill, contents, expected, load, make_file, words
from support.system import refuse_io_uring

pytestmark = pytest.mark.needs("paging", "fork")

_BLOCK = 4 * KIB
_COUNT = 256
# The last block is a part of one, and no multiple of what a disk reads.
_NBYTES = _COUNT * _BLOCK - 1000
_RINGS = "io_uring", "threads", "refused"
_TOUCHING = 16


def _by(queue: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it in a child whose regions read in one of the ways."""
    if queue in ("io_uring", "dead") and pager.try_ring():
        pytest.skip(f"no io_uring: {os.strerror(pager.try_ring())}")
    paging.build()
    return child(_in_child, queue, function, arguments, deadline=60)


def _in_child(queue: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    if queue == "refused":
        refuse_io_uring(errno.EPERM)
    elif queue == "dead":
        refuse_io_uring(errno.EPERM, setup=False)
    elif queue == "threads":
        pager.set_rings(False)
    return function(*arguments)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_file(tmp_path / "file", _NBYTES, cold=True)


def _opened(path: Path, mode: str = "r", direct: Any = False, **options: Any) -> PagedMemory:
    with FileStore(path, writable=mode == "r+", direct=direct) as store:
        return PagedMemory(store, mode=mode, **{"block_size": _BLOCK, "prefetch": "off", **options})


def _touch(memory: PagedMemory, threads: int) -> list[bytes]:
    """Load the first word of each block, by several threads, in no order."""
    order = np.random.default_rng(threads).permutation(_COUNT)
    found = [b""] * _COUNT

    def work(part: int) -> None:
        for block in order[part::threads].tolist():
            found[block] = load(memory.address + block * _BLOCK)

    workers = [threading.Thread(target=work, args=(part,)) for part in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return found


def _read(path: Path, mode: str, direct: bool, limit: str) -> tuple[list[bytes], bytes, bytes, Any]:
    with _opened(path, mode, direct, resident_limit=limit) as memory:
        found = _touch(memory, _TOUCHING)
        # Not first, so that it comes to a frame that another block has left.
        memory.evict()
        chill(path)
        for block in range(40):
            load(memory.address + block * _BLOCK)
        beyond = load(memory.address + _NBYTES, _COUNT * _BLOCK - _NBYTES)
        return found, contents(memory), beyond, memory.stats()


@pytest.mark.parametrize(
    ("queue", "mode", "direct", "limit"),
    [
        ("io_uring", "r", False, "unlimited"),
        ("io_uring", "r", True, "128KiB"),
        ("io_uring", "r+", False, "128KiB"),
        ("io_uring", "c", True, "unlimited"),
        ("threads", "r+", True, "128KiB"),
        ("refused", "r", False, "128KiB"),
        ("dead", "r", False, "unlimited"),
        ("dead", "r+", True, "128KiB"),
    ],
)
def test_what_is_read_is_what_the_file_has(path, queue, mode, direct, limit):
    found, rest, beyond, stats = _by(queue, _read, path, mode, direct, limit)
    whole = paging.contents_of(_NBYTES)
    assert found == [bytes(whole[at * _BLOCK :][:8]) for at in range(_COUNT)]
    assert rest == bytes(whole)
    assert not beyond.strip(b"\0")
    assert stats.errors == stats.retries == 0
    assert stats.faults >= _COUNT
    if not stats.io:
        pytest.skip("this file system keeps files in memory")
    opened = queue in ("io_uring", "dead")
    assert stats.io["queue"].startswith("io_uring" if opened else "threads: ")
    if queue == "refused":
        assert "not permitted" in stats.io["queue"]
    if direct:
        assert stats.io["direct"] == "yes" or stats.io["direct"].startswith("no: the file system")


def _past_the_end(path: Path, direct: bool) -> tuple[int, str, list[int]]:
    with _opened(path, direct=direct, store_timeout=0.1) as memory:
        os.truncate(path, _NBYTES // 2)
        assert load(memory.address) == bytes(paging.contents_of(_NBYTES)[:8])
        with pytest.raises(Struck) as struck:
            load(memory.address + (_COUNT - 1) * _BLOCK)
        stats = memory.stats()
        return (
            struck.value.signal,
            str(stats.failures[-1]),
            [stats.errors, stats.failures[-1].offset],
        )


def test_a_switch_has_all_tests_run_without_io_uring():
    tests = Path(__file__).parents[2]
    code = "import conftest; from pagemove._native import pager; print(pager.try_ring())"
    environment = {**os.environ, "PAGEMOVE_TEST_WITHOUT_URING": "1", "PYTHONPATH": str(tests)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tests,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == str(errno.EPERM), done.stderr


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("queue", ["io_uring", "refused"])
def test_a_file_that_has_shrunk_raises_sigbus(path, queue, direct):
    number, text, (errors, offset) = _by(queue, _past_the_end, path, direct)
    assert number == signal.SIGBUS
    assert f"at byte {offset} in " in text
    assert (errors, offset) == (1, (_COUNT - 1) * _BLOCK)


def _rings_in(table: str) -> int:
    count = 0
    # A thread may have ended meanwhile, and the descriptor that lists them is gone by now.
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(table):
            with contextlib.suppress(FileNotFoundError):
                count += "io_uring" in os.readlink(f"{table}/{name}")
    return count


def _rings_here() -> int:
    return _rings_in("/proc/self/fd") + Path("/proc/self/maps").read_text().count("io_uring")


def _count_rings(path: Path) -> tuple[set[int], int, int, int]:
    with _opened(path) as memory:
        _touch(memory, 2)
        tasks = set(os.listdir("/proc/self/task")) - {str(os.getpid())}
        theirs = {_rings_in(f"/proc/self/task/{task}/fd") for task in tasks}
        ours = _rings_in("/proc/self/fd")
        in_child = child(_rings_here, deadline=20)
    return theirs, ours, in_child, _rings_here()


def test_a_ring_is_the_pagers_alone_and_goes_with_the_region(path):
    theirs, ours, in_child, after = _by("io_uring", _count_rings, path)
    if max(theirs) == 0:
        pytest.skip("this file system keeps files in memory")
    # The event loop's table is that of the workers too; other threads have the program's.
    assert max(theirs) == 1
    assert ours == in_child == after == 0


def _close_under_reads(path: Path) -> list[int]:
    memory = _opened(path)
    address = memory.address
    signals: list[int] = []
    begun = threading.Barrier(9)

    def work(part: int) -> None:
        begun.wait()
        for block in range(part, _COUNT, 8):
            try:
                load(address + block * _BLOCK)
            except Struck as struck:
                signals.append(struck.signal)
                return

    workers = [threading.Thread(target=work, args=(part,)) for part in range(8)]
    for worker in workers:
        worker.start()
    begun.wait()
    memory.close()
    for worker in workers:
        worker.join()
    return signals


@pytest.mark.parametrize("queue", ["io_uring", "threads"])
def test_closing_ends_while_reads_are_under_way(path, queue):
    assert set(_by(queue, _close_under_reads, path)) <= {signal.SIGSEGV}


class TestDirect:
    """`FileStore(direct=...)`."""

    @pytest.mark.parametrize("mode", MODES)
    def test_what_others_write_is_read(self, path, mode):
        with _opened(path, mode, True) as memory:
            address = memory.address
            assert load(address) == bytes(paging.contents_of(_NBYTES)[:8])
            memory.evict()
            with path.open("r+b", buffering=0) as file:
                file.write(b"changed!")
                # Dirty in the page cache, and nowhere else.
                assert load(address) == b"changed!"

    def test_what_it_writes_others_read(self, path):
        with _opened(path, "r+", True, resident_limit="32KiB") as memory:
            words(memory)[:: _BLOCK // 8] += 1
            memory.flush()
            wanted = expected(_NBYTES).copy()
            wanted[:: _BLOCK // 8] += 1
            assert (np.fromfile(path, np.uint64, len(wanted)) == wanted).all()
            memory.evict()
            assert (words(memory) == wanted).all()

    @pytest.mark.parametrize("ahead", [False, True])
    def test_it_stays_out_of_the_page_cache(self, path, ahead):
        with _opened(path, "r", True) as memory:
            if ahead:
                memory.prefetch(wait=True)
            _touch(memory, 4)
            if memory.stats().io["direct"] != "yes":
                pytest.skip(memory.stats().io["direct"])
            fd = os.open(path, os.O_RDONLY)
            try:
                with pytest.raises(BlockingIOError):
                    os.preadv(fd, [bytearray(_BLOCK)], _BLOCK, os.RWF_NOWAIT)
            finally:
                os.close(fd)

    def test_where_blocks_are_not_aligned_it_says_so(self, tmp_path):
        path = tmp_path / "arrays.npz"
        np.savez(path, a=np.arange(10_000))
        chill(path)
        with pytest.raises(ValueError, match="is for URLs"):
            pagemove.open_array(path, name="a", storage_options={"key": 1})
        array = pagemove.open_array(path, name="a", storage_options={"direct": True})
        assert (array == np.arange(10_000)).all()
        found = pagemove.region_of(array).stats().io["direct"]
        assert found.startswith("no: ")
        assert "multiple of" in found or "file system" in found

    def test_auto_leaves_a_small_file_to_the_page_cache(self, path):
        with _opened(path, "r", "auto") as memory:
            assert contents(memory) == bytes(paging.contents_of(_NBYTES))
            assert "hold the whole file" in memory.stats().io["direct"]

    def test_auto_reads_a_large_file_directly(self, path, monkeypatch):
        monkeypatch.setattr("pagemove.paging.reading.available", lambda: _NBYTES - 1)
        with _opened(path, "r", "auto") as memory:
            assert contents(memory) == bytes(paging.contents_of(_NBYTES))
            assert "hold the whole file" not in memory.stats().io["direct"]

    @pytest.mark.parametrize("value", ["yes", 2, None])
    def test_other_values_are_refused(self, path, value):
        with pytest.raises(ValueError, match="True, False or 'auto'"):
            FileStore(path, direct=value)
