"""Changed blocks are written back though nothing makes them leave: soon, all of them, no others,
and not made durable. A store that takes nothing is left alone for a while, not forever.
"""

from __future__ import annotations

import errno
import os
import signal
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pagemove import PagedMemory, PageState, StoreError
from pagemove.introspect import states_at
from pagemove.testing import FaultyStore
from support import child, wait_for
from support.paging import KIB, Fault, Words, expected, make_file, paged, words, wrong_words
from support.programs import running, said
from support.slowness import SLOWNESS
from support.stores import BytesStore
from support.threads import thread_names

pytestmark = pytest.mark.needs("paging")

_BLOCK = 64 * KIB
_COUNT = 24
_NBYTES = _COUNT * _BLOCK
_WORDS = _BLOCK // 8
_SOON = 0.05


def _changed(path: Path) -> list[int]:
    """Blocks of the file whose first word is not as it was."""
    found = np.fromfile(path, np.uint64)[::_WORDS]
    return np.flatnonzero(found != expected(_NBYTES)[::_WORDS]).tolist()


def _threads() -> set[str]:
    return set(thread_names().values())


@pytest.mark.parametrize("limit", [None, 12, 4], ids=["unlimited", "limit", "least"])
@pytest.mark.parametrize("block", [4 * KIB, _BLOCK, 2048 * KIB])
def test_what_was_changed_is_in_the_store_soon(file, limit, block):
    path = file(_COUNT * block)
    with paged(
        path,
        "r+",
        block_size=block,
        resident_limit=limit and limit * block,
        writeback_interval=_SOON,
    ) as memory:
        array = words(memory)
        for turn in range(1, 4):
            array[3 :: block // 8] = turn
            wait_for(
                lambda turn=turn: (np.fromfile(path, np.uint64)[3 :: block // 8] == turn).all()
            )
        assert (array[3 :: block // 8] == 3).all()
        stats = memory.stats()
        assert stats.background_failures == stats.errors == 0
        assert stats.dirty_nbytes == 0
        del array


def test_only_what_was_changed_and_once(file):
    path = file(_NBYTES)
    with paged(path, "r+", writeback_interval=_SOON) as memory:
        array = words(memory)
        assert array[::_WORDS].sum()
        array[[5 * _WORDS, 9 * _WORDS]] += np.uint64(1)
        wait_for(lambda: memory.stats().background_written == 2)
        assert memory.stats().written_back == 2
        assert _changed(path) == [5, 9]
        # The next change is known to have come after several more rounds of the writer.
        for turn in range(1, 4):
            array[7 * _WORDS] += np.uint64(1)
            wait_for(lambda turn=turn: memory.stats().background_written == 2 + turn)
        assert memory.stats().written_back == 2 + 3
        del array


@pytest.mark.parametrize("interval", [None, 0, 3600.0, 2.0**62 / 1e9], ids=str)
def test_not_before_its_time(file, interval):
    path = file(_NBYTES)
    with paged(path, "r+", writeback_interval=interval) as slow:
        array = words(slow)
        array[::_WORDS] += np.uint64(1)
        # Meanwhile another region writes, several times over.
        other = make_file(path.with_name("other"), _NBYTES)
        with paged(other, "r+", writeback_interval=_SOON) as quick:
            own = words(quick)
            for turn in range(1, 4):
                own[0] += np.uint64(1)
                wait_for(lambda turn=turn: quick.stats().background_written == turn)
            del own
        assert (slow.stats().written_back, _changed(path)) == (0, [])
        del array
    assert _changed(path) == list(range(_COUNT))


def test_not_made_durable(file):
    """Only a flush asks for that, and it does though it finds nothing to write."""
    path = file(_NBYTES)
    with paged(
        path, "r+", writeback_interval=_SOON, faults=[Fault("flush", count=1, errno=errno.EIO)]
    ) as memory:
        array = words(memory)
        array[0] += np.uint64(1)
        wait_for(lambda: memory.stats().background_written == 1)
        assert memory.stats().errors == 0
        with pytest.raises(StoreError, match="durable"):
            memory.flush()
        assert memory.stats().dirty_nbytes or memory.stats().background_written > 1
        memory.flush()
        del array


def test_a_reader_and_private_changes_are_left_alone(file):
    path = file(_NBYTES)
    for mode in ("r", "c"):
        with paged(path, mode, writeback_interval=0.01) as memory:
            assert "pagemove-write" not in _threads()
            array = words(memory)
            if mode == "c":
                array[0] += np.uint64(1)
            assert array.sum()
            assert memory.stats().written_back == 0
            del array
    assert _changed(path) == []


def _compressed() -> tuple[set[str], int]:
    with PagedMemory(nbytes=_NBYTES, writeback_interval=0.01) as memory:
        memory.asarray("u1")[:] = 1
        return _threads(), memory.stats().background_written


def test_memory_that_does_not_outlive_the_process_is_left_alone():
    names, written = child(_compressed, deadline=60)
    assert "pagemove-work" in names
    assert "pagemove-write" not in names
    assert written == 0


def _in_a_helper() -> tuple[int, bool]:
    store = BytesStore(bytes(_NBYTES), writable=True)
    with PagedMemory(store, mode="r+", writeback_interval=_SOON) as memory:
        array = words(memory)
        array[::_WORDS] = 7
        wait_for(lambda: memory.stats().background_written == _COUNT)
        memory.evict()
        found = memory.stats().written_back, bool((array[::_WORDS] == 7).all())
        del array
        return found


def test_a_store_in_a_helper():
    assert child(_in_a_helper, deadline=60) == (_COUNT, True)


def _older_on_its_way(path: Path, delay: float) -> tuple[bool, list[int]]:
    """Change a block again while an eviction writes what it was, with the writer at work."""
    one, other, third = (number * _WORDS for number in (0, 3, 6))
    # The writer is kept busy until the eviction has the block, and that is the later of the two.
    late = [Fault("write", count=1, delay=0.5), Fault("write", first=1, count=1, delay=delay)]
    with paged(path, "r+", faults=late, prefetch="off", writeback_interval=0.01) as memory:
        array = words(memory)
        array[other] = 1
        wait_for(lambda: not memory.stats().dirty_nbytes)
        array[one] = 1
        evicting = threading.Thread(target=memory.evict, args=[0, _BLOCK])
        evicting.start()
        wait_for(lambda: not states_at(memory.address, 1)[0] & PageState.PRESENT)
        array[one] = 2
        for turn in (1, 2, 3):
            wait_for(lambda turn=turn: memory.stats().background_written >= turn)
            array[third] = turn
        shown = evicting.is_alive()
        evicting.join(60)
        wait_for(lambda: not memory.stats().dirty_nbytes)
        memory.flush()
        found = np.fromfile(path, np.uint64)[[one, other, third]].tolist()
        assert array[one] == 2
        del array
    return shown, found


def test_nothing_is_written_while_something_older_is(file):
    """Of two writes of one block at the same time nobody knows which comes last."""
    for delay in (1.5, 15.0):  # a busy machine needs longer for what happens meanwhile
        shown, found = child(_older_on_its_way, file(_NBYTES), delay, deadline=120)
        assert found == [2, 1, 3]
        if shown:
            break
    assert shown, "the older write was over before: this has shown nothing"


class TestTrouble:
    def test_it_is_counted_reported_once_and_retried(self, file, capfd):
        path = file(_NBYTES)
        faults = [Fault("write", count=4, errno=errno.ENOSPC)]
        with paged(path, "r+", faults=faults, writeback_interval=_SOON) as memory:
            array = words(memory)
            array[::_WORDS] += np.uint64(1)
            wait_for(lambda: _changed(path) == list(range(_COUNT)))
            stats = memory.stats()
            assert stats.background_failures == 4
            assert stats.errors == 1
            assert [(each.errno, each.operation) for each in stats.failures] == [
                (errno.ENOSPC, "write")
            ]
            assert _changed(path) == list(range(_COUNT))
            memory.flush()
            del array
        assert capfd.readouterr().err == (
            f"pagemove: cannot write changed blocks to {path}: No space left on device; they stay "
            "in memory, and are retried\n"
        )

    def test_flush_says_so_as_long_as_it_is_not(self, file):
        path = file(_NBYTES)
        faults = [Fault("write", count=1000, errno=errno.EDQUOT)]
        with paged(
            path, "r+", faults=faults, writeback_interval=_SOON, store_timeout=0.05
        ) as memory:
            array = words(memory)
            array[0] += np.uint64(1)
            wait_for(lambda: memory.stats().background_failures)
            with pytest.raises(StoreError, match="EDQUOT"):
                memory.flush()
            assert memory.stats().dirty_nbytes == _BLOCK
            memory._save_before_close = lambda: None  # it would fail as well
            del array

    def test_it_does_not_spin(self, file):
        faults = [Fault("write", count=0, errno=errno.ENOSPC)]
        path = file(_NBYTES)
        code = child(_tries, path, faults)
        # 0.1 s, 0.2 s, 0.4 s, then each second.
        assert 1 <= code <= 5

    def test_a_block_that_cannot_be_written_does_not_keep_others_from_it(self, file):
        """Each attempt begins behind the block at which the last has failed."""
        path = file(_NBYTES)
        faults = [Fault("write", first=first, count=1, errno=errno.EIO) for first in (0, 2, 4)]
        with paged(
            path, "r+", faults=faults, writeback_interval=_SOON, resident_limit=12 * _BLOCK
        ) as memory:
            array = words(memory)
            array[: 8 * _WORDS : _WORDS] += np.uint64(1)
            wait_for(lambda: _changed(path) == list(range(8)))
            del array


def _tries(path: Path, faults: list[Fault]) -> int:
    memory = PagedMemory(
        FaultyStore(path, writable=True, faults=faults),
        mode="r+",
        writeback_interval=0.01,
        store_timeout=0.1,  # for the end of the region, which tries to save
    )
    array = words(memory)
    array[0] += np.uint64(1)
    wait_for(lambda: memory.stats().background_failures)
    before = memory.stats().background_failures
    began = time.monotonic()
    while time.monotonic() < began + 1.0:
        time.sleep(0.1)
    return memory.stats().background_failures - before


def test_writers_lose_nothing(file):
    """Threads count up words while blocks are written, evicted and flushed."""
    path = file(_NBYTES)
    turns = 300
    with paged(
        path, "r+", resident_limit=8 * _BLOCK, writeback_interval=0.01, prefetch="off"
    ) as memory:
        array = words(memory)

        def count(array: Words, which: int) -> None:
            for turn in range(turns):
                array[which + turn % 7 * _WORDS :: 5 * _WORDS] += np.uint64(1)

        threads = [threading.Thread(target=count, args=[array, which]) for which in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            memory.flush()
        for thread in threads:
            thread.join()
        del threads, thread
        want = expected(_NBYTES).copy()
        for which in range(4):
            for turn in range(turns):
                want[which + turn % 7 * _WORDS :: 5 * _WORDS] += np.uint64(1)
        wait_for(lambda: (np.fromfile(path, np.uint64) == want).all())
        assert memory.stats().background_written
        assert (array == want).all()
        del array


def test_a_killed_program_has_lost_little(file):
    path = file(_NBYTES)
    script = """
        memory = opened(resident_limit=None, writeback_interval=0.05)
        array = count_up(memory)
        while not np.array_equal(np.fromfile(sys.argv[1], np.uint64), array):
            time.sleep(0.01)
        print("here", flush=True)
        time.sleep(60)
    """
    with running(path, textwrap.dedent(script)) as process:
        assert said(process, 60) == "here"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    found = np.fromfile(path, np.uint64)
    found[::64] -= np.uint64(1)
    assert wrong_words(found) is None


def _closed_while_it_writes(path: Path) -> float:
    faults = [Fault("write", count=1, delay=0.3)]
    memory = PagedMemory(
        FaultyStore(path, writable=True, faults=faults), mode="r+", writeback_interval=0.01
    )
    array = words(memory)
    array[0] += np.uint64(1)
    wait_for(lambda: not memory.stats().dirty_nbytes)  # it has been copied, and is being written
    del array
    began = time.monotonic()
    memory.close()
    return time.monotonic() - began


def test_close_ends_it(file):
    path = file(_NBYTES)
    assert child(_closed_while_it_writes, path) < 5 * SLOWNESS
    assert _changed(path) == [0]
    with paged(path, "r+", writeback_interval=3600.0) as memory:
        began = time.monotonic()
        del memory
    assert time.monotonic() - began < 5 * SLOWNESS


@pytest.mark.needs("fork")
def test_a_child_writes_nothing(file):
    path = file(_NBYTES)
    with paged(path, "r+", writeback_interval=_SOON) as memory:
        array = words(memory)
        array[0] += np.uint64(1)

        assert not [name for name in child(_threads) if name.startswith("pagemove")]
        wait_for(lambda: _changed(path) == [0])
        del array
