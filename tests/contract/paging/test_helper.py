"""Stores that another process runs: their failures, their logs, their time."""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pagemove import PagedMemory, StoreError, lowlevel
from pagemove.stores import CallableStore, FsspecStore, Store
from support import child, together, wait_for
from support.helpers import helpers, kill_helper, numbered, reined_region, touch, touch_at_last
from support.stopwatch import Stopwatch

pytestmark = pytest.mark.needs("paging", "fork")

K = 1024
SIZES = (4 * K, 64 * K)
N = 16


class TestFailures:
    def test_an_exception_of_the_store_travels_back_with_its_traceback(self, tmp_path):
        found = child(_raising, deadline=30)
        assert found["errno"] == errno.EREMOTEIO
        notes = found["notes"]
        assert "in the helper process: " in notes
        assert "OSError: [Errno 121] the other end is on fire" in notes
        assert "LookupError: no such thing" in notes, "its cause"
        assert "in _burn" in notes, "where it was raised"

    def test_its_log_records_are_handled_here(self, tmp_path):
        name, level, text, traceback, low = child(_logging, deadline=30)
        assert (name, level, text) == ("somewhere.else", logging.WARNING, "read 4096 bytes at 0")
        assert "ZeroDivisionError" in traceback
        assert low == 0, "below the level that is wanted"

    @pytest.mark.needs("fsspec")
    def test_nothing_of_it_shows_secrets_of_the_store(self, tmp_path):
        (tmp_path / "file").write_bytes(b"x" * 8192)
        found = child(_whispering, tmp_path / "file", deadline=30)
        assert found.pop("logged") == "signed with ..., that is b'...'"
        assert "ValueError: ... is wrong" in found["traceback"]
        assert "OSError: no ..." in found["notes"]
        assert "hidden" not in str(found)

    def test_one_that_cannot_be_pickled_is_refused_with_the_remedy(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "cloudpickle", None)

        class Local(Store):
            nbytes = 4096

            def read_into(self, offset: int, buffer: Any) -> None:
                raise AssertionError

        before = helpers()
        with pytest.raises(TypeError, match="define it at the top level of a module"):
            PagedMemory(Local())
        with pytest.raises(TypeError, match="cannot be pickled"):
            PagedMemory(CallableStore(lambda offset, length: bytes(length), 4096))
        assert helpers() == before

    def test_one_that_cannot_be_unpickled_says_why(self, tmp_path):
        text = child(_not_unpickled, deadline=30)
        assert "no such place" in text


class Burning(Store):
    nbytes = N * 4 * K

    def read_into(self, offset: int, buffer: Any) -> None:
        _burn()


def _burn() -> None:
    try:
        raise LookupError("no such thing")
    except LookupError as error:
        raise OSError(errno.EREMOTEIO, "the other end is on fire") from error


def _raising() -> dict[str, Any]:
    with PagedMemory(Burning(), store_timeout=0.1) as region:
        with pytest.raises(StoreError) as caught:
            region.prefetch(0, 4096, wait=True)
        return {"errno": caught.value.errno, "notes": "\n".join(caught.value.__notes__)}


class Talking(Store):
    nbytes = N * 4 * K

    def read_into(self, offset: int, buffer: Any) -> None:
        log = logging.getLogger("somewhere.else")
        log.debug("this is for nobody")
        try:
            _ = 1 / 0
        except ZeroDivisionError:
            log.warning("read %d bytes at %d", len(buffer), offset, exc_info=True)
        memoryview(buffer)[:] = b"x" * len(buffer)


class _Keeping(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.kept: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record)


def _logging() -> tuple[Any, ...]:
    keeping = _Keeping()
    logging.getLogger().addHandler(keeping)
    with PagedMemory(Talking(), block_size=4096, prefetch="off") as region:
        touch(region.address)
        wait_for(lambda: keeping.kept)
    record = keeping.kept[0]
    low = sum(record.levelno < logging.WARNING for record in keeping.kept)
    text = record.exc_text or ""
    return record.name, record.levelno, record.getMessage(), text, low


class Whispering(FsspecStore):
    """Says what it should not."""

    def read_into(self, offset: int, buffer: Any) -> None:
        log = logging.getLogger("some.library")
        try:
            raise ValueError(f"{self._options['password']} is wrong")
        except ValueError:
            log.warning("signed with %s, that is %r", "hidden=1", b"hidden=1", exc_info=True)
        raise OSError("no hidden%3D1")


def _whispering(path: Path) -> dict[str, str]:
    keeping = _Keeping()
    logging.getLogger().addHandler(keeping)
    store = Whispering(f"file://{path}", password="hidden=1")
    with PagedMemory(store, block_size=4096, prefetch="off", store_timeout=0.1) as region:
        (one,) = helpers()
        process = Path(f"/proc/{one}")
        seen = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        with pytest.raises(StoreError) as caught:
            region.prefetch(0, 1, wait=True)
        wait_for(lambda: keeping.kept)
    record = keeping.kept[0]
    return {
        "logged": record.getMessage(),
        "traceback": record.exc_text or "",
        "notes": "".join(traceback.format_exception(caught.value)),
        "process": seen.decode(errors="replace"),
    }


class Lost(Store):
    nbytes = 4096

    def read_into(self, offset: int, buffer: Any) -> None:
        raise AssertionError

    def __setstate__(self, state: object) -> None:
        raise RuntimeError("no such place")

    def __getstate__(self) -> object:
        return {"some": "thing"}


def _not_unpickled() -> str:
    try:
        PagedMemory(Lost())
    except Exception as error:
        return "\n".join([repr(error), *getattr(error, "__notes__", ())])
    raise AssertionError


class TestTime:
    def test_a_slow_start_delays_no_other(self, tmp_path):
        took = child(_slow_to_start, tmp_path, deadline=60)
        assert took["counted"] < 3, "the interpreter has waited"
        assert took["first"] < 3, "the fault that met the dead one"
        assert took["others"] < 3, "a fault while the next one is started"
        assert took["closed"] < 3

    @pytest.mark.parametrize("block", SIZES)
    def test_a_slow_read_fails_in_time_and_delays_no_other(self, tmp_path, block):
        found = child(_slow, tmp_path, block, deadline=60)
        assert found["not before"] > 0.9
        assert found["struck after"] < 2.5
        assert found["others"] < 0.9, "other blocks have waited"
        assert found["again"]

    @pytest.mark.parametrize("block", SIZES)
    def test_one_that_never_answers_is_an_error_in_time(self, tmp_path, block):
        found = child(_never, tmp_path, block, deadline=60)
        # Again when its poison was discarded, unless the helper may still put it there.
        assert found["asked"] in ([0], [0, 0])
        assert found["struck after"] < 2.5
        assert found["struck again after"] < 2.5
        assert found["closed after"] < 10

    @pytest.mark.parametrize("block", SIZES)
    @pytest.mark.parametrize("mode", ["r", "r+", "c"])
    def test_a_cut_connection_that_comes_back_is_seen_in_the_statistics(
        self, tmp_path, mode, block
    ):
        found = child(_cut, tmp_path, mode, block, deadline=60)
        assert found["retries"] >= 3
        assert found["errors"] == 0
        assert found["right"]


def _slow(folder: Path, block: int) -> dict[str, Any]:
    """One block takes very long; others, and those of another region, are read meanwhile."""
    store, region = reined_region(folder, block, store_timeout=1)
    _, other = reined_region(folder, block, store_timeout=1)
    words = numbered(N * block)
    touch_at_last(region, block)
    touch_at_last(other, block)
    store.reins.delay, store.reins.delayed = 1_000_000_000, 1
    took = {}

    def wait() -> None:
        began = time.monotonic()
        with pytest.raises(OSError, match="Bad address"):
            touch(region.address)
        took["struck after"] = watch.seconds
        took["not before"] = time.monotonic() - began

    def go_on() -> None:
        wait_for(lambda: 0 in store.reins.offsets)
        before = watch.seconds
        for one in (region, other):
            for number in range(2, N):
                got = touch_at_last(one, number * block)
                assert got == words[number * block // 8].tobytes()
        took["others"] = watch.seconds - before

    with Stopwatch() as watch:
        together(wait, go_on)
    store.reins.delay = 0
    again = touch_at_last(region, 0, block)
    with pytest.raises(StoreError, match="read"):
        region.flush()
    region.close()
    other.close()
    return took | {"again": again == words[: block // 8].tobytes()}


class Sluggish(Store):
    """Takes 20 s to come up, but for the first time."""

    nbytes = N * 4 * K

    def __init__(self, started: Path) -> None:
        self.started = started

    def read_into(self, offset: int, buffer: Any) -> None:
        memoryview(buffer)[:] = b"x" * len(buffer)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.started.exists():
            time.sleep(20)
        self.started.touch()


def _slow_to_start(folder: Path) -> dict[str, float]:
    """Return how long each waits while another helper is started."""
    took: dict[str, float] = {"counted": 0}
    how: dict[str, Any] = {"block_size": 4 * K, "prefetch": "off", "store_timeout": 1}
    with Stopwatch() as watch, PagedMemory(Sluggish(folder / "started"), **how) as region:
        touch_at_last(region, 0)
        killed = kill_helper()
        done = threading.Event()

        def wait(name: str, number: int) -> None:
            before = watch.seconds
            # Whether it gets an error or was patient enough.
            with contextlib.suppress(OSError):
                touch(region.address + number * 4 * K)
            took[name] = watch.seconds - before

        def later() -> None:
            wait_for(lambda: killed not in helpers())  # that it is dead was noticed
            wait("others", 2)

        def count() -> None:
            while not done.is_set():
                before = watch.seconds
                region.counters()
                took["counted"] = max(took["counted"], watch.seconds - before)

        def waiters() -> None:
            try:
                together(lambda: wait("first", 1), later)
            finally:
                done.set()

        together(waiters, count)
        before = watch.seconds
    return took | {"closed": watch.seconds - before}


def _never(folder: Path, block: int) -> dict[str, Any]:
    store, region = reined_region(folder, block, store_timeout=1)
    touch_at_last(region, block)
    before = store.reins.reads
    store.reins.hung = 1
    moments = [0.0]
    with Stopwatch() as watch:
        for discard in (False, True):
            if discard:
                lowlevel.madvise(region.address, block, mmap.MADV_DONTNEED)
            with pytest.raises(OSError, match="Bad address"):
                touch(region.address)
            moments.append(watch.seconds)
        asked = store.reins.offsets[before:]
        region.close()
        moments.append(watch.seconds)
    names = "struck after", "struck again after", "closed after"
    return {"asked": asked} | dict(zip(names, np.diff(moments).tolist(), strict=True))


def _cut(folder: Path, mode: str, block: int) -> dict[str, Any]:
    store, region = reined_region(folder, block, mode=mode, resident_limit=8 * block)
    words = numbered(N * block)
    touch(region.address)

    def mend() -> None:
        wait_for(lambda: store.reins.failed >= 3)
        store.reins.failing = 0

    def read() -> bool:
        right = True
        for number in range(N):
            got = touch(region.address + number * block, block)
            right = right and got == words[number * block // 8 :][: block // 8].tobytes()
        return right

    store.reins.failing = errno.ECONNRESET
    right, _ = together(read, mend)
    if mode == "r+":
        array = region.asarray(np.uint64)
        array += np.uint64(1)
        del array
        before = store.reins.failed
        store.reins.failing = errno.ECONNRESET

        def mend_again() -> None:
            wait_for(lambda: store.reins.failed >= before + 3)
            store.reins.failing = 0

        together(region.flush, mend_again)
        left = np.fromfile(store._path, np.uint64)
        right = right and np.array_equal(left, words + np.uint64(1))
    stats = region.stats()
    region.close()
    return {"right": right, "retries": stats.retries, "errors": stats.errors}
