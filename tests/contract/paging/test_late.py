"""Calls of a store that come late: no older version after a newer one, and nothing elsewhere."""

from __future__ import annotations

import contextlib
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

from pagemove import PagedMemory, PageState, StoreError, lowlevel, vmas
from pagemove.introspect import states_at
from pagemove.paging import tenants
from pagemove.stores import CompressedStore, FileStore, LayeredStore, Store
from support import child, wait_for
from support.helpers import helpers, kill_helper, numbered, reined_region, stop_helper, touch
from support.late_stores import Knobs, Unruly, in_file, unruly
from support.paging import Struck, load, store
from support.selection import few
from support.slowness import patience
from support.stores import BytesStore

pytestmark = pytest.mark.needs("paging", "fork")

K = 1024
N = 16


def _opened(folder: Path, block: int = 4 * K, **how: Any) -> tuple[Any, PagedMemory]:
    store = unruly(folder, numbered(N * block))
    how = {"mode": "r+", "prefetch": "off", "store_timeout": 1} | how
    return store, PagedMemory(store, block_size=block, **how)


def _refused(region: PagedMemory, text: str) -> bool:
    """Flush until that is refused for a reason: a machine that is busy elsewhere has others too."""
    for _ in range(30):
        with pytest.raises(StoreError) as caught:
            region.flush()
        if text in _notes(caught.value):
            return True
    return False


def _at_last(save: Callable[[], None]) -> None:
    """Save, again while that takes longer than it may."""
    limit = time.monotonic() + patience(20)
    while True:
        try:
            return save()
        except StoreError:
            assert time.monotonic() < limit


def _notes(error: BaseException) -> str:
    return f"{error}\n" + "\n".join(getattr(error, "__notes__", ()))


class TestWrites:
    @pytest.mark.parametrize("block", [4 * K, 64 * K])
    @pytest.mark.parametrize("done", [0, 1])
    def test_none_overtakes_a_newer_one(self, tmp_path, block, done):
        found = child(_overtaken, tmp_path, block, done, deadline=60)
        assert found["refused"]
        assert found["begun"] == 1, "the newer write has not begun"
        assert found["other"] == 3, "others are written meanwhile"
        assert found["file"] == [2, 3]

    def test_a_block_whose_write_is_late_is_the_last_to_leave(self, tmp_path):
        """Writing it begins with waiting for that, and others could leave at once."""
        found = child(_others_first, tmp_path, deadline=120)
        # Of 200 blocks and more. A machine that is busy elsewhere is late with some of its own.
        assert found.pop("retries") < 10
        assert found == {"written": True, "errors": 0, "file": True}

    def test_one_that_is_late_in_a_helper_that_dies_is_not_waited_for(self, tmp_path):
        assert child(_died, tmp_path, deadline=60) == (1, [2])

    def test_a_second_flush_waits_for_the_first(self, tmp_path):
        found = child(_flushed_late, tmp_path, deadline=60)
        assert found == {"refused": True, "begun": [1, 2]}

    @pytest.mark.parametrize(
        ("kind", "saving"),
        [
            ("file", "flush"),
            pytest.param("file", "evict", marks=pytest.mark.slow),
            pytest.param("compressed", "evict", marks=pytest.mark.slow),
            pytest.param("layered", "flush", marks=pytest.mark.slow),
        ],
    )
    def test_what_was_saved_outlives_a_late_write_of_a_stopped_helper(self, tmp_path, kind, saving):
        if kind == "compressed":
            pytest.importorskip("zstandard")
        found = child(_landed, tmp_path, kind, saving, deadline=120)
        assert found == {"timed out": errno.ETIMEDOUT, "held": 1, "blocks": [1, 1, 2, 1]}

    def test_whatever_the_store_does(self, tmp_path):
        assert child(_unruly, tmp_path, deadline=120)


def _overtaken(folder: Path, block: int, done: int) -> dict[str, Any]:
    store, region = _opened(folder, block)
    array = region.asarray(np.uint64)
    knobs, other = store.knobs, 3 * block // 8
    knobs.hold_after, knobs.hold_writes = done, 1
    array[0] = 1
    with pytest.raises(StoreError) as caught:
        region.flush()
    assert caught.value.errno == errno.ETIMEDOUT
    wait_for(lambda: knobs.held)
    begun = knobs.writes
    array[0], array[other] = 2, 3
    refused = _refused(region, "an earlier write of these bytes has not been answered yet")
    found = {"refused": refused, "other": wait_for(lambda: int(in_file(store)[other]) == 3 and 3)}
    found["begun"] = begun if knobs.held == 1 else -1
    knobs.hold_writes = 0
    region.flush()
    del array
    region.close()
    return found | {"file": [int(in_file(store)[i]) for i in (0, other)]}


def _others_first(folder: Path) -> dict[str, Any]:
    count = 64
    store = unruly(folder, numbered(count * 4 * K))
    # Of the touches none may wait that long, also while other tests take the processors.
    how = {"mode": "r+", "prefetch": "off", "store_timeout": 6}
    with PagedMemory(store, block_size=4 * K, resident_limit=32 * 4 * K, **how) as region:
        array = region.asarray(np.uint64)
        blocks = array[:: 4 * K // 8]
        blocks[0] = 1
        store.knobs.hold_writes = 1
        with pytest.raises(StoreError):
            region.flush()
        before = region.counters()
        limit = time.monotonic() + 60
        number = 0
        while region.counters()["written_back"] < before["written_back"] + 200:
            assert time.monotonic() < limit
            number = number % (count - 1) + 1
            blocks[number] += 1
        after = region.counters()
        store.knobs.hold_writes = 0
        region.flush()
        expected = blocks.tolist()
        del array, blocks
    return {
        "retries": after["retries"] - before["retries"],
        "written": after["written_back"] > before["written_back"],
        "errors": after["errors"] - before["errors"],
        "file": in_file(store)[:: 4 * K // 8].tolist() == expected and expected[0] == 1,
    }


def _died(folder: Path) -> tuple[int, list[int]]:
    store, region = _opened(folder, store_timeout=20)
    array = region.asarray(np.uint64)
    array[0] = 1
    store.knobs.hold_writes = 1

    def kill() -> None:
        wait_for(lambda: store.knobs.held)
        kill_helper()
        store.knobs.hold_writes = 0

    thread = threading.Thread(target=kill)
    store.knobs.hold_after = 1
    thread.start()
    array[0] = 2
    region.flush()
    thread.join()
    restarts = region.counters()["restarts"]
    del array
    region.close()
    return restarts, [int(in_file(store)[0])]


def _flushed_late(folder: Path) -> dict[str, Any]:
    store, region = _opened(folder)
    knobs = store.knobs
    array = region.asarray(np.uint64)
    array[0] = 1
    knobs.hold_flushes = 1
    while not knobs.flushes:
        with pytest.raises(StoreError):
            region.flush()
    array[0] = 2
    refused = _refused(region, "an earlier flush of the store has not been answered yet")
    begun = [knobs.flushes]
    knobs.hold_flushes = 0
    region.flush()
    begun.append(knobs.flushes)
    del array
    region.close()
    return {"refused": refused, "begun": begun}


class Behind(Store):
    """Another store, whose writes of blocks that begin with the word 1 wait while they are held."""

    writable = True
    nbytes = 4 * 4 * K

    def __init__(self, inner: Store, path: Path) -> None:
        self._inner, self._path = inner, path
        self.knobs = Knobs(path)

    def read_into(self, offset: int, buffer: Any) -> None:
        self._inner.read_into(offset, buffer)

    def write(self, offset: int, data: Any) -> None:
        older = np.frombuffer(data, np.uint64)[0] == 1
        if older:
            self.knobs.count("held")
        while older and self.knobs.hold_writes:
            time.sleep(0.002)
        self._inner.write(offset, data)
        if older:
            self.knobs.count("late")

    def flush(self) -> None:
        self._inner.flush()

    def close(self) -> None:
        self._inner.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"inner": self._inner, "path": self._path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def _kept_in(kind: str, path: Path) -> Store:
    nbytes = Behind.nbytes
    if kind == "compressed":
        return CompressedStore(nbytes, path=path, block_size=4 * K)
    if not path.exists():
        path.write_bytes(bytes(nbytes))
    top = FileStore(path, writable=True)
    return top if kind == "file" else LayeredStore(top, BytesStore(bytes(nbytes)), block_size=4 * K)


def _landed(folder: Path, kind: str, saving: str) -> dict[str, Any]:
    """Return what was in the store after the older write of four blocks, the newer one of one."""
    Knobs(folder / "knobs", create=True)
    store = Behind(_kept_in(kind, folder / "store"), folder / "knobs")
    how = {"mode": "r+", "block_size": 4 * K, "prefetch": "off", "store_timeout": 0.5}
    region, knobs = PagedMemory(store, **how), store.knobs

    def save() -> None:
        region.flush() if saving == "flush" else region.evict(2 * 4 * K, 4 * K)

    blocks = region.asarray(np.uint64)[:: 4 * K // 8]
    blocks[:] = 1
    knobs.hold_writes = 1
    pid = stop_helper()
    with pytest.raises(StoreError) as caught:
        region.flush()
    os.kill(pid, signal.SIGCONT)
    wait_for(lambda: knobs.held)
    blocks[2] = 2
    with contextlib.suppress(StoreError):
        save()
    held = knobs.held
    knobs.hold_writes = 0
    wait_for(lambda: knobs.late)
    _at_last(save)
    _at_last(region.flush)
    del blocks
    region.close()
    with _kept_in(kind, folder / "store") as again:
        words = np.zeros(again.nbytes // 8, np.uint64)
        again.read_into(0, words)
    found = words[:: 4 * K // 8].tolist()
    return {"timed out": caught.value.errno, "held": held, "blocks": found}


def _unruly(folder: Path) -> bool:
    nbytes = 64 * 4 * K
    store = unruly(
        folder,
        np.zeros(nbytes // 8, np.uint64),
        seed=5,
        late=0.3,
        doubled=0.3,
        swapped=0.2,
        raising=0.3,
        code=None,
    )
    words, draw = np.zeros(nbytes // 8, np.uint64), np.random.default_rng(5)
    with PagedMemory(
        store, mode="r+", block_size=4 * K, resident_limit=12 * 4 * K, store_timeout=30
    ) as region:
        array = region.asarray(np.uint64)
        versions = few(400, 130)
        for version in range(1, versions):
            place = int(draw.integers(len(words)))
            assert array[place] == words[place]
            array[place] = words[place] = version
            if version % 60 == 0:
                region.flush()
                assert np.array_equal(in_file(store), words)
        assert np.array_equal(array, words)
        del array
    assert store.knobs.raised > versions // 8
    return not helpers() and np.array_equal(in_file(store), words)


class Lingering(Store):
    """Its reads take long, and so does closing it."""

    nbytes = N * 4 * K

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def read_into(self, offset: int, buffer: Any) -> None:
        if offset == 0:
            time.sleep(1.5)
        memoryview(buffer)[:] = b"S" * len(buffer)

    def close(self) -> None:
        time.sleep(self.seconds)


def _asked_for_all(folder: Path) -> tuple[int, bool]:
    store, region = reined_region(folder, 4 * K, store_timeout=0.3)
    store.reins.hung = 1
    with pytest.raises(StoreError):
        region.prefetch(wait=True)
    errors = region.stats().errors
    store.reins.hung = 0
    region.evict()
    whole = np.array_equal(region.asarray(np.uint64), numbered(16 * 4 * K))
    return errors, whole


def test_a_store_that_does_not_answer_is_waited_for_once_by_a_call_for_many(tmp_path):
    assert child(_asked_for_all, tmp_path, deadline=60) == (1, True)


class TestClosing:
    def test_nothing_arrives_where_a_region_was(self):
        assert child(_closed_before_it_arrived, deadline=60) == ([], True)

    def test_a_store_into_a_block_that_came_too_late_is_kept_or_refused(self, tmp_path):
        """The block was given up, so what the helper puts there is taken away again."""
        accepted, found = child(_stored_into_what_came_late, tmp_path, deadline=60)
        assert found == (_WORD if accepted else numbered(8)[0].tobytes())

    @pytest.mark.needs("root")
    def test_addresses_stay_taken_while_a_helper_cannot_be_ended(self):
        took, permissions = child(_cannot_be_ended, deadline=90)
        assert permissions == ["---p"]
        assert took < 40


_WORD = b"stored!!"


class Putting(Unruly):
    """Its helper is held between putting a block into the region and saying so."""

    def _do(self, kind: str, place: range, call: Any) -> None:
        super()._do(kind, place, call)

        def wait_and_say(tenant: tenants.Tenant, number: int, reply: bytes) -> None:
            while self.knobs.hold_after:
                time.sleep(0.002)
            say(tenant, number, reply)

        if self.knobs.hold_after:
            # Only what it has done by then is there.
            say = tenants.Tenant.answer
            tenants.Tenant.answer = wait_and_say  # type: ignore[method-assign]


def _stored_into_what_came_late(folder: Path) -> tuple[bool, bytes]:
    made = unruly(folder, numbered(N * 512))
    source = Putting(made._path, concurrency=1)
    source.knobs.hold_after, source.knobs.hold_reads = 1, -1
    with PagedMemory(
        source, block_size=4 * K, mode="r+", prefetch="off", store_timeout=1
    ) as memory:
        with pytest.raises(Struck):
            store(memory.address, bytes(8))
        source.knobs.hold_reads = 0
        wait_for(lambda: states_at(memory.address, 1)[0] & PageState.PRESENT)
        accepted = True
        try:
            store(memory.address, _WORD)
        except Struck:
            accepted = False
        source.knobs.hold_after = 0
        wait_for(lambda: not memory.stats().resident_nbytes)  # its answer was noticed
        return accepted, load(memory.address)


def _closed_before_it_arrived() -> tuple[list[int], bool]:
    """Return who was there still when the addresses were free, and whether that was in time."""
    region = PagedMemory(Lingering(60), block_size=4 * K, store_timeout=1, prefetch="off")
    start, nbytes, left = region.address, region.nbytes, []
    with pytest.raises(OSError, match="Bad address"):
        touch(start)
    private, anonymous, only_if_free = 2, 0x20, 0x100000

    def take() -> None:
        while True:
            with contextlib.suppress(FileExistsError):
                lowlevel.mmap(start, nbytes, 3, private | anonymous | only_if_free)
                left.extend(helpers())
                return

    thread = threading.Thread(target=take)
    thread.start()
    began = time.monotonic()
    region.close()
    took = time.monotonic() - began
    thread.join()
    return left, took < 50


def _cannot_be_ended() -> tuple[float, list[str]]:
    region = PagedMemory(Lingering(45), block_size=4 * K, prefetch="off")
    start = region.address
    touch(start + 4 * K)
    os.setuid(65534)  # may not kill it any more
    began = time.monotonic()
    region.close()
    took = time.monotonic() - began
    return took, [one.permissions for one in vmas() if one.start <= start < one.end]
