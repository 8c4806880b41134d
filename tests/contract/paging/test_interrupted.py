"""Control-C, and handlers that raise, end what the main thread waits for; nothing is half done.

The store says when it is in the midst of a call, and is held there; each test has a child that is
killed at its deadline.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pagemove import PagedMemory, StoreError
from support import child, fork, wait_for
from support.helpers import helpers, numbered, reined, stop_helper, stored
from support.late_stores import Unruly, in_file, unruly
from support.paging import KIB, Fault, paged
from support.slowness import SLOWNESS
from support.threads import thread_names

pytestmark = pytest.mark.needs("paging", "fork")

_BLOCK = 64 * KIB
_COUNT = 40
#: As a flush writes them: the first batch is through, the second is held, the third has not begun.
_BATCH = 16
_HELD = 20
#: s. The store is held for much longer.
_PROMPT = 3 * SLOWNESS

#: What is raised where the wait is.
RAISED = {"ctrl-c": (signal.SIGINT, KeyboardInterrupt), "alarm": (signal.SIGALRM, TimeoutError)}


def _raise_timeout(*_: object) -> None:
    raise TimeoutError("alarm")


def _at(block: int) -> int:
    """A knob's value: calls with this block are held."""
    return block * _BLOCK + 1


@contextmanager
def _changed(folder: Path, **how: Any) -> Iterator[tuple[Unruly, PagedMemory]]:
    """A region over a store that can be held; every word is changed, nothing written."""
    signal.signal(signal.SIGALRM, _raise_timeout)
    store = unruly(folder, numbered(_COUNT * _BLOCK))
    with PagedMemory(store, mode="r+", store_timeout=60, prefetch="off", **how) as memory:
        words = memory.asarray(np.uint64)
        words += np.uint64(1)
        del words
        yield store, memory
        store.knobs.calm = 1


def _new(store: Unruly) -> list[bool]:
    """Which blocks of the store have all of the change."""
    found = in_file(store) == numbered(_COUNT * _BLOCK) + np.uint64(1)
    return [bool(block.all()) for block in found.reshape(_COUNT, -1)]


def _old(store: Unruly) -> list[bool]:
    found = in_file(store) == numbered(_COUNT * _BLOCK)
    return [bool(block.all()) for block in found.reshape(_COUNT, -1)]


def _interrupted(
    call: Callable[[], Any], condition: Callable[[], Any], how: str = "ctrl-c"
) -> tuple[bool, float]:
    """Send a signal when the condition holds; whether it ended the call, and how soon."""
    number, raised = RAISED[how]
    moment = [0.0]

    def send() -> None:
        wait_for(condition)
        moment[0] = time.monotonic()
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        call()
    except raised:
        ended = True
    else:
        ended = False
    took = time.monotonic() - moment[0]
    sender.join()
    return ended, took


def _flushed(folder: Path, how: str) -> dict[str, Any]:
    with _changed(folder) as (store, memory):
        store.knobs.hold_writes = _at(_HELD)
        ended, took = _interrupted(memory.flush, lambda: store.knobs.held, how)
        new, old = _new(store), _old(store)
        dirty = memory.counters()["dirty"]
        # The call that was held ends; another one would be held.
        store.knobs.hold_writes = _at(_COUNT - 1)
        wait_for(lambda: all(_new(store)[_BATCH : 2 * _BATCH]))
        for _ in range(20):
            memory.stats()
        held = store.knobs.held
        store.knobs.hold_writes = 0
        memory.flush()
        return {
            "ended": ended,
            "prompt": took < _PROMPT,
            "written": all(new[:_BATCH]) and not any(old[:_BATCH]),
            "not begun": all(old[2 * _BATCH :]),
            "dirty": dirty // _BLOCK,
            "held": held,
            "complete": all(_new(store)),
            "dirty at last": memory.counters()["dirty"],
        }


@pytest.mark.parametrize("how", RAISED)
def test_flush(tmp_path, how):
    assert child(_flushed, tmp_path, how, deadline=40) == {
        "ended": True,
        "prompt": True,
        "written": True,
        "not begun": True,
        "dirty": _COUNT - 2 * _BATCH,
        "held": 1,
        "complete": True,
        "dirty at last": 0,
    }


def _evicted(folder: Path) -> dict[str, Any]:
    with _changed(folder) as (store, memory):
        store.knobs.hold_writes = _at(_HELD)
        ended, took = _interrupted(memory.evict, lambda: store.knobs.held)
        old = _old(store)
        store.knobs.calm = 1
        # What is gone, what is on its way, and what has stayed are one array.
        with memoryview(memory) as view:
            whole = bytes(view) == (numbered(_COUNT * _BLOCK) + np.uint64(1)).tobytes()
        memory.evict()
        return {
            "ended": ended,
            "prompt": took < _PROMPT,
            "not begun": all(old[_HELD + 1 :]),
            "whole": whole,
            "complete": all(_new(store)),
            "resident": memory.stats().resident_nbytes,
        }


def test_evict(tmp_path):
    assert child(_evicted, tmp_path, deadline=40) == {
        "ended": True,
        "prompt": True,
        "not begun": True,
        "whole": True,
        "complete": True,
        "resident": 0,
    }


def _prefetched(folder: Path) -> dict[str, Any]:
    original = numbered(_COUNT * _BLOCK)
    store = unruly(folder, original, concurrency=1)
    with PagedMemory(store, block_size=_BLOCK, store_timeout=60) as memory:
        store.knobs.hold_reads = _at(0)
        ended, took = _interrupted(lambda: memory.prefetch(wait=True), lambda: store.knobs.held)
        none = memory.counters()["prefetched"]
        store.knobs.hold_reads = 0
        first = wait_for(lambda: memory.counters()["prefetched"])
        reads = store.knobs.reads
        for _ in range(20):
            memory.stats()
        more = store.knobs.reads - reads
        memory.prefetch(wait=True)
        every = memory.stats().prefetched
        with memoryview(memory) as view:
            whole = bytes(view) == original.tobytes()
        return {
            "ended": ended,
            "prompt": took < _PROMPT,
            "at first": none,
            "some": 0 < first <= _COUNT,
            "more": more,
            "every": every,
            "whole": whole,
        }


def test_prefetch(tmp_path):
    assert child(_prefetched, tmp_path, deadline=40) == {
        "ended": True,
        "prompt": True,
        "at first": 0,
        "some": True,
        "more": 0,
        "every": _COUNT,
        "whole": True,
    }


def _told(folder: Path) -> dict[str, Any]:
    with _changed(folder) as (_, memory):
        pid = stop_helper()
        started = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(TimeoutError):
            memory.stats()
        took = time.monotonic() - started
        os.kill(pid, signal.SIGCONT)
        return {"prompt": took < _PROMPT, "dirty": memory.stats().dirty_nbytes}


def test_stats(tmp_path):
    assert child(_told, tmp_path, deadline=40) == {"prompt": True, "dirty": _COUNT * _BLOCK}


def _gone_on(folder: Path) -> dict[str, Any]:
    """Handlers that raise nothing run, and the call goes on."""
    ran: list[int] = []
    with _changed(folder) as (store, memory):

        def handle(*_: object) -> None:
            ran.append(sum(_new(store)))
            if len(ran) == 3:
                store.knobs.hold_writes = 0

        signal.signal(signal.SIGUSR1, handle)
        store.knobs.hold_writes = _at(_HELD)

        def send() -> None:
            wait_for(lambda: store.knobs.held)
            for count in range(1, 4):
                os.kill(os.getpid(), signal.SIGUSR1)
                wait_for(lambda count=count: len(ran) >= count)

        sender = threading.Thread(target=send)
        sender.start()
        memory.flush()
        sender.join()
        return {"ran": ran, "complete": all(_new(store))}


def test_handlers_that_do_not_raise(tmp_path):
    found = child(_gone_on, tmp_path, deadline=40)
    assert found == {"ran": [_BATCH] * 3, "complete": True}


def _elsewhere(folder: Path) -> dict[str, Any]:
    """Handlers run in the main thread only: a call of another one goes on."""
    with _changed(folder) as (store, memory):
        store.knobs.hold_writes = _at(_HELD)
        done = threading.Event()

        def flush() -> None:
            memory.flush()
            done.set()

        threading.Thread(target=flush).start()
        ended, _ = _interrupted(done.wait, lambda: store.knobs.held)
        before = done.is_set()
        store.knobs.hold_writes = 0
        done.wait()
        return {"ended": ended, "before": before, "complete": all(_new(store))}


def test_a_call_of_another_thread_goes_on(tmp_path):
    assert child(_elsewhere, tmp_path, deadline=40) == {
        "ended": True,
        "before": False,
        "complete": True,
    }


def _again_and_again(folder: Path) -> dict[str, Any]:
    """More calls than there may be threads for them."""
    with _changed(folder) as (store, memory):
        store.knobs.hold_writes = _at(_HELD)
        count = 0
        for turn in range(40):
            call = memory.flush if turn % 2 else memory.evict
            begun = threading.Event()

            def reached(begun: threading.Event = begun) -> bool:
                return begun.is_set() and bool(store.knobs.held)

            def once(call: Callable[[], None] = call, begun: threading.Event = begun) -> None:
                begun.set()
                call()

            ended, took = _interrupted(once, reached)
            count += ended and took < _PROMPT
        threads = len(os.listdir("/proc/self/task"))
        store.knobs.hold_writes = 0
        memory.flush()
        return {"count": count, "few": threads < 40, "complete": all(_new(store))}


def test_again_and_again(tmp_path):
    assert child(_again_and_again, tmp_path, deadline=60) == {
        "count": 40,
        "few": True,
        "complete": True,
    }


def _failed(folder: Path) -> dict[str, Any]:
    """A store that fails: what could not be written still cannot."""
    store = reined(folder, numbered(_COUNT * _BLOCK))
    reins = store.reins
    with PagedMemory(store, mode="r+", store_timeout=1, prefetch="off") as memory:
        words = memory.asarray(np.uint64)
        words += np.uint64(1)
        del words
        reins.failing = errno.ENOSPC
        ended, _ = _interrupted(memory.flush, lambda: reins.failed)
        with pytest.raises(StoreError) as caught:
            memory.flush()
        reins.failing = 0
        memory.flush()
        written = np.array_equal(stored(store), numbered(_COUNT * _BLOCK) + np.uint64(1))
    return {"ended": ended, "errno": caught.value.errno, "written": written}


def test_errors_are_reported_by_the_next_flush(tmp_path):
    assert child(_failed, tmp_path, deadline=40) == {
        "ended": True,
        "errno": errno.ENOSPC,
        "written": True,
    }


def _unsynced(path: Path) -> dict[str, Any]:
    """Making it durable fails when nobody listens any more: all of it is written again."""
    failing = [Fault("flush", count=1, delay=0.5), Fault("flush", count=1, errno=errno.EIO)]
    with paged(path, "r+", faults=failing, block_size=_BLOCK) as memory:
        memory.asarray(np.uint64)[:] += np.uint64(1)
        written = memory.nbytes
        ended, _ = _interrupted(memory.flush, lambda: memory.counters()["bytes_written"] == written)
        memory.flush()
        return {
            "ended": ended,
            "failed": [each.operation for each in memory.stats().failures],
            "written": memory.counters()["bytes_written"] // written,
        }


def test_a_sync_that_fails_later(file):
    assert child(_unsynced, file(_COUNT * _BLOCK), deadline=40) == {
        "ended": True,
        "failed": ["flush"],
        "written": 2,
    }


def _forked(folder: Path) -> dict[str, Any]:
    """A handler forks, and returns in the child: nobody answers there."""
    with _changed(folder) as (store, memory):
        store.knobs.hold_writes = _at(_HELD)
        children: list[int] = []

        def handle(*_: object) -> None:
            children.append(fork())

        signal.signal(signal.SIGUSR1, handle)

        def send() -> None:
            wait_for(lambda: store.knobs.held)
            os.kill(os.getpid(), signal.SIGUSR1)
            wait_for(lambda: children)
            store.knobs.hold_writes = 0

        sender = threading.Thread(target=send)
        sender.start()
        try:
            memory.flush()
        except ValueError as error:
            os._exit(7 if children == [0] and "child" in str(error) else 8)
        finally:
            if children == [0]:
                os._exit(9)
        sender.join()
        status = os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1])
        return {"child": status, "complete": all(_new(store))}


def test_a_handler_that_forks(tmp_path):
    assert child(_forked, tmp_path, deadline=40) == {"child": 7, "complete": True}


def _closed(folder: Path) -> dict[str, Any]:
    """Interrupted while it saves, it is open, and can be closed again."""
    store = unruly(folder, numbered(_COUNT * _BLOCK))
    memory = PagedMemory(store, mode="r+", store_timeout=60, prefetch="off")
    words = memory.asarray(np.uint64)
    words += np.uint64(1)
    del words
    store.knobs.hold_writes = _at(_HELD)
    ended, took = _interrupted(memory.close, lambda: store.knobs.held)
    closed = memory.closed
    store.knobs.hold_writes = 0
    memory.close()
    return {
        "ended": ended,
        "prompt": took < _PROMPT,
        "closed": [closed, memory.closed],
        "complete": all(_new(store)),
        "helpers": helpers(),
    }


def test_close_while_it_saves(tmp_path):
    assert child(_closed, tmp_path, deadline=40) == {
        "ended": True,
        "prompt": True,
        "closed": [False, True],
        "complete": True,
        "helpers": [],
    }


_OF_THE_PROCESS = ("pagemove-stderr", "pagemove-ending")


def _threads() -> list[str]:
    names = thread_names().values()
    return [name for name in names if name.startswith("pagemove-") and name not in _OF_THE_PROCESS]


def _maps(address: int) -> bool:
    with open("/proc/self/maps") as maps:
        return any(line.startswith(f"{address:x}-") for line in maps)


def _closed_late(path: Path, mode: str) -> dict[str, Any]:
    """Interrupted when it has saved, it is closed, and its threads do the rest."""
    late = [Fault("read", count=0, delay=4.0)]
    with paged(path, mode, faults=late, block_size=_BLOCK) as memory:
        address = memory.address
        memory.prefetch()
        wait_for(lambda: memory.counters()["resident"])
        ended, took = _interrupted(memory.close, lambda: memory.closed)
        memory.close()
        running = bool(_threads())
        # The file is free for the next one.
        with paged(path, mode, block_size=_BLOCK) as other, memoryview(other) as view:
            right = bytes(view) == path.read_bytes()
        wait_for(lambda: not _threads())
        return {
            "ended": ended,
            "prompt": took < _PROMPT,
            "running": running,
            "right": right,
            "mapped": _maps(address),
        }


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_close_while_its_threads_end(file, mode):
    assert child(_closed_late, file(_COUNT * _BLOCK), mode, deadline=40) == {
        "ended": True,
        "prompt": True,
        "running": True,
        "right": True,
        "mapped": False,
    }


class Slow(Unruly):
    """It takes the helper as long to have it as its reads are held."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._hold("reads", range(1))


def _descriptors() -> list[str]:
    """What is open, less what is opened to see that."""
    found = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return [os.readlink(one) for one in found if os.path.lexists(one)]


def _opened(folder: Path) -> dict[str, Any]:
    ready = unruly(folder, numbered(_COUNT * _BLOCK))
    store = Slow(ready._path)
    store.knobs.hold_reads = -1
    before = _descriptors()
    ended, took = _interrupted(lambda: PagedMemory(store), lambda: store.knobs.held)
    wait_for(lambda: not helpers())
    wait_for(lambda: not _threads())
    wait_for(lambda: not set(_descriptors()) - set(before))
    store.knobs.hold_reads = 0
    with PagedMemory(store) as memory, memoryview(memory) as view:
        right = bytes(view) == numbered(_COUNT * _BLOCK).tobytes()
    return {
        "ended": ended,
        "prompt": took < _PROMPT,
        "right": right,
    }


def test_opening(tmp_path):
    """Its helper ends too, though its store never lets it begin."""
    assert child(_opened, tmp_path, deadline=60) == {
        "ended": True,
        "prompt": True,
        "right": True,
    }
