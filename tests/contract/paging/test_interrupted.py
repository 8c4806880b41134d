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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pagemove
from pagemove import PagedMemory, StoreError
from support import child, fork, wait_for
from support.helpers import numbered, reined, stop_helper, stored
from support.interruptions import (
    BATCH,
    BLOCK,
    COUNT,
    HELD,
    PROMPT,
    RAISED,
    at,
    changed,
    interrupted,
    new,
    old,
)
from support.late_stores import unruly
from support.paging import Fault, paged

pytestmark = pytest.mark.needs("paging", "fork")


def _flushed(folder: Path, how: str) -> dict[str, Any]:
    with changed(folder) as (store, memory):
        store.knobs.hold_writes = at(HELD)
        ended, took = interrupted(memory.flush, lambda: store.knobs.held, how)
        newer, older = new(store), old(store)
        dirty = memory.counters()["dirty"]
        # The call that was held ends; another one would be held.
        store.knobs.hold_writes = at(COUNT - 1)
        wait_for(lambda: all(new(store)[BATCH : 2 * BATCH]))
        for _ in range(20):
            memory.stats()
        held = store.knobs.held
        store.knobs.hold_writes = 0
        memory.flush()
        return {
            "ended": ended,
            "prompt": took < PROMPT,
            "written": all(newer[:BATCH]) and not any(older[:BATCH]),
            "not begun": all(older[2 * BATCH :]),
            "dirty": dirty // BLOCK,
            "held": held,
            "complete": all(new(store)),
            "dirty at last": memory.counters()["dirty"],
        }


@pytest.mark.parametrize("how", RAISED)
def test_flush(tmp_path, how):
    assert child(_flushed, tmp_path, how, deadline=40) == {
        "ended": True,
        "prompt": True,
        "written": True,
        "not begun": True,
        "dirty": COUNT - 2 * BATCH,
        "held": 1,
        "complete": True,
        "dirty at last": 0,
    }


def _evicted(folder: Path) -> dict[str, Any]:
    with changed(folder) as (store, memory):
        store.knobs.hold_writes = at(HELD)
        ended, took = interrupted(memory.evict, lambda: store.knobs.held)
        older = old(store)
        # The call that was held ends; another one would be held.
        store.knobs.hold_writes = at(COUNT - 1)
        wait_for(lambda: new(store)[HELD])
        for _ in range(20):
            memory.stats()
        held = store.knobs.held
        store.knobs.calm = 1
        # What is gone, what is on its way, and what has stayed are one array.
        with memoryview(memory) as view:
            whole = bytes(view) == (numbered(COUNT * BLOCK) + np.uint64(1)).tobytes()
        memory.evict()
        return {
            "ended": ended,
            "prompt": took < PROMPT,
            "not begun": all(older[HELD + 1 :]),
            "held": held,
            "whole": whole,
            "complete": all(new(store)),
            "resident": memory.stats().resident_nbytes,
        }


def test_evict(tmp_path):
    assert child(_evicted, tmp_path, deadline=40) == {
        "ended": True,
        "prompt": True,
        "not begun": True,
        "held": 1,
        "whole": True,
        "complete": True,
        "resident": 0,
    }


def _pinned(folder: Path) -> dict[str, Any]:
    store = unruly(folder, numbered(COUNT * BLOCK))
    how = {"mode": "r+", "store_timeout": 60, "prefetch": "off"}
    with PagedMemory(store, **how) as memory:
        entered = []

        def pin() -> None:
            with pagemove.pinned(memory.asarray(np.uint64)):
                entered.append(1)

        store.knobs.hold_reads = at(HELD)
        ended, took = interrupted(pin, lambda: store.knobs.held)
        store.knobs.hold_reads = 0
        wait_for(lambda: not memory.counters()["pinned"])
        memory.evict()
        resident = memory.counters()["resident"]
        pin()
        right = bool((memory.asarray(np.uint64) == numbered(COUNT * BLOCK)).all())
        return {
            "ended": ended,
            "prompt": took < PROMPT,
            "entered": len(entered),
            "resident": resident,
            "right": right,
            "pinned": memory.counters()["pinned"],
        }


def test_pinned(tmp_path):
    """Nothing stays pinned, and the next one pins all of it."""
    assert child(_pinned, tmp_path, deadline=40) == {
        "ended": True,
        "prompt": True,
        "entered": 1,
        "resident": 0,
        "right": True,
        "pinned": 0,
    }


def _prefetched(folder: Path) -> dict[str, Any]:
    original = numbered(COUNT * BLOCK)
    store = unruly(folder, original, concurrency=1)
    with PagedMemory(store, block_size=BLOCK, store_timeout=60) as memory:
        store.knobs.hold_reads = at(0)
        ended, took = interrupted(lambda: memory.prefetch(wait=True), lambda: store.knobs.held)
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
            "prompt": took < PROMPT,
            "at first": none,
            "some": 0 < first <= COUNT,
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
        "every": COUNT,
        "whole": True,
    }


def _told(folder: Path) -> dict[str, Any]:
    with changed(folder) as (_, memory):
        pid = stop_helper()
        started = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(TimeoutError):
            memory.stats()
        took = time.monotonic() - started
        os.kill(pid, signal.SIGCONT)
        return {"prompt": took < PROMPT, "dirty": memory.stats().dirty_nbytes}


def test_stats(tmp_path):
    assert child(_told, tmp_path, deadline=40) == {"prompt": True, "dirty": COUNT * BLOCK}


def _gone_on(folder: Path) -> dict[str, Any]:
    """Handlers that raise nothing run, and the call goes on."""
    ran: list[int] = []
    with changed(folder) as (store, memory):

        def handle(*_: object) -> None:
            ran.append(sum(new(store)))
            if len(ran) == 3:
                store.knobs.hold_writes = 0

        signal.signal(signal.SIGUSR1, handle)
        store.knobs.hold_writes = at(HELD)

        def send() -> None:
            wait_for(lambda: store.knobs.held)
            for count in range(1, 4):
                os.kill(os.getpid(), signal.SIGUSR1)
                wait_for(lambda count=count: len(ran) >= count)

        sender = threading.Thread(target=send)
        sender.start()
        memory.flush()
        sender.join()
        return {"ran": ran, "complete": all(new(store))}


def test_handlers_that_do_not_raise(tmp_path):
    found = child(_gone_on, tmp_path, deadline=40)
    assert found == {"ran": [BATCH] * 3, "complete": True}


def _elsewhere(folder: Path) -> dict[str, Any]:
    """Handlers run in the main thread only: a call of another one goes on."""
    with changed(folder) as (store, memory):
        store.knobs.hold_writes = at(HELD)
        done = threading.Event()

        def flush() -> None:
            memory.flush()
            done.set()

        threading.Thread(target=flush).start()
        ended, _ = interrupted(done.wait, lambda: store.knobs.held)
        before = done.is_set()
        store.knobs.hold_writes = 0
        done.wait()
        return {"ended": ended, "before": before, "complete": all(new(store))}


def test_a_call_of_another_thread_goes_on(tmp_path):
    assert child(_elsewhere, tmp_path, deadline=40) == {
        "ended": True,
        "before": False,
        "complete": True,
    }


def _again_and_again(folder: Path) -> dict[str, Any]:
    """More calls than there may be threads for them."""
    with changed(folder) as (store, memory):
        store.knobs.hold_writes = at(HELD)
        count = 0
        for turn in range(40):
            call = memory.flush if turn % 2 else memory.evict
            begun = threading.Event()

            def reached(begun: threading.Event = begun) -> bool:
                return begun.is_set() and bool(store.knobs.held)

            def once(call: Callable[[], None] = call, begun: threading.Event = begun) -> None:
                begun.set()
                call()

            ended, took = interrupted(once, reached)
            count += ended and took < PROMPT
        threads = len(os.listdir("/proc/self/task"))
        store.knobs.hold_writes = 0
        memory.flush()
        return {"count": count, "few": threads < 40, "complete": all(new(store))}


def test_again_and_again(tmp_path):
    assert child(_again_and_again, tmp_path, deadline=60) == {
        "count": 40,
        "few": True,
        "complete": True,
    }


def _failed(folder: Path) -> dict[str, Any]:
    """A store that fails: what could not be written still cannot."""
    store = reined(folder, numbered(COUNT * BLOCK))
    reins = store.reins
    with PagedMemory(store, mode="r+", store_timeout=1, prefetch="off") as memory:
        words = memory.asarray(np.uint64)
        words += np.uint64(1)
        del words
        reins.failing = errno.ENOSPC
        ended, _ = interrupted(memory.flush, lambda: reins.failed)
        with pytest.raises(StoreError) as caught:
            memory.flush()
        reins.failing = 0
        memory.flush()
        written = np.array_equal(stored(store), numbered(COUNT * BLOCK) + np.uint64(1))
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
    with paged(path, "r+", faults=failing, block_size=BLOCK) as memory:
        memory.asarray(np.uint64)[:] += np.uint64(1)
        written = memory.nbytes
        ended, _ = interrupted(memory.flush, lambda: memory.counters()["bytes_written"] == written)
        memory.flush()
        return {
            "ended": ended,
            "failed": [each.operation for each in memory.stats().failures],
            "written": memory.counters()["bytes_written"] // written,
        }


def test_a_sync_that_fails_later(file):
    assert child(_unsynced, file(COUNT * BLOCK), deadline=40) == {
        "ended": True,
        "failed": ["flush"],
        "written": 2,
    }


def _forked(folder: Path) -> dict[str, Any]:
    """A handler forks, and returns in the child: nobody answers there."""
    with changed(folder) as (store, memory):
        store.knobs.hold_writes = at(HELD)
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
        return {"child": status, "complete": all(new(store))}


def test_a_handler_that_forks(tmp_path):
    assert child(_forked, tmp_path, deadline=40) == {"child": 7, "complete": True}
