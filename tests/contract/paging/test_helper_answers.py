"""What a store says, and that nobody says anything: never taken for each other, or for success."""

from __future__ import annotations

import contextlib
import errno
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pagemove import PagedMemory, StoreError
from pagemove.stores import Store
from support import child
from support.helpers import Reins, helpers, numbered, reined, touch

pytestmark = pytest.mark.needs("paging", "fork")

K = 1024
N = 16

#: By number: what the store raises.
RAISED: list[Any] = [
    lambda: socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    lambda: OSError(0, "zero"),
    lambda: OSError(1 << 40, "huge"),
    lambda: OSError("no number at all"),
    lambda: OSError(5, "lone \udcff surrogate"),
    lambda: OSError(5, "x" * (1 << 20)),
    lambda: SystemExit(0),
    lambda: KeyboardInterrupt(),
    lambda: GeneratorExit(),
    lambda: MemoryError(),
    lambda: RecursionError("deep"),
    lambda: StopIteration(),
    lambda: BrokenPipeError(errno.EPIPE, "the server is gone"),
    lambda: TimeoutError(errno.ETIMEDOUT, "the server does not answer"),
    lambda: OSError(errno.ESHUTDOWN, "shut down"),
    lambda: BlockingIOError(errno.EAGAIN, "later"),
    lambda: ConnectionResetError(errno.ECONNRESET, "reset"),
    lambda: OSError(errno.EINPROGRESS, "under way"),
    lambda: OSError(4095, "the last"),
]


class Raising(Store):
    """Words that are their own numbers. Raises one thing after another while the reins say so.

    One line only: who loses one cannot go on.
    """

    writable = True
    concurrency = 1
    nbytes = N * 4 * K

    def __init__(self, path: Path) -> None:
        self.path = path

    def _raise(self, offset: int = 0) -> None:
        reins = Reins(self.path)
        if reins.failing:
            reins.failed += 1
            raise RAISED[(reins.failing - 1) % len(RAISED)]()

    def read_into(self, offset: int, buffer: Any) -> None:
        self._raise(offset)
        np.frombuffer(buffer, np.uint64)[:] = numbered(self.nbytes)[offset // 8 :][
            : len(buffer) // 8
        ]

    def write(self, offset: int, data: Any) -> None:
        self._raise(offset)
        with self.path.with_suffix(".out").open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def flush(self) -> None:
        self._raise()

    def stats(self) -> dict[str, float]:
        self._raise()
        return {"well": 1}


class TestWhatAStoreRaises:
    def test_is_a_failure_whatever_it_is_and_costs_no_line(self, tmp_path):
        found = child(_raised, tmp_path, deadline=120)
        assert found["silent"] == []
        assert found["right"]
        assert found["stats"] == 1
        assert (found["restarts"], found["same"]) == (0, True)

    def test_every_failure_has_its_own_text(self, tmp_path):
        texts = child(_texts, tmp_path, deadline=60)
        assert len(texts) == N
        for offset, text in texts:
            assert f"read at {offset}\n" in text

    def test_one_without_a_frame_takes_no_other_blocks_frame(self, tmp_path):
        operations, text = child(_starved, tmp_path, deadline=60)
        assert "read" in operations
        assert "write at" not in text


def _starved(folder: Path) -> tuple[list[str], str]:
    store = reined(folder, numbered(N * 4 * K))
    how: dict[str, Any] = {"block_size": 4 * K, "store_timeout": 0.3, "prefetch": "off"}
    with PagedMemory(store, mode="r+", resident_limit=16 * K, **how) as region:
        array = region.asarray(np.uint64)
        array[: 4 * 512 : 512] = 1
        store.reins.failing = errno.EREMOTEIO
        with pytest.raises(OSError, match="Bad address"):
            touch(region.address + 8 * 4 * K)
        failures = [one for one in region.stats().failures if one.operation == "read"]
        store.reins.failing = 0
        del array
    texts = ["\n".join(getattr(one, "__notes__", ())) for one in failures]
    return [one.operation for one in failures], "\n".join(texts)


def _raised(folder: Path) -> dict[str, Any]:
    reins = Reins(folder / "reins", create=True)
    (folder / "reins.out").touch()
    found: dict[str, Any] = {"silent": []}
    how: dict[str, Any] = {"block_size": 4 * K, "store_timeout": 0.01, "prefetch": "off"}
    with PagedMemory(Raising(folder / "reins"), mode="r+", **how) as region:
        before = helpers()
        array = region.asarray(np.uint64)
        array[0] = 1
        for number in range(len(RAISED)):
            reins.failing = number + 1
            for what, call in (
                ("read", lambda: region.prefetch(8 * K, 4 * K, wait=True)),
                ("write", region.flush),
            ):
                try:
                    call()
                except StoreError as error:
                    if error.operation == what and error.errno:
                        continue
                found["silent"].append((number, what))
            with pytest.raises(OSError, match="Bad address"):
                touch(region.address + 12 * K)
            region.stats()
            reins.failing = 0
            region.evict(8 * K, 8 * K)
        words = numbered(N * 4 * K)
        words[0] = 1
        with contextlib.suppress(StoreError):  # reads that failed, and that nobody has heard of
            region.flush()
        region.flush()
        region.evict()
        stored = np.fromfile(folder / "reins.out", np.uint64)
        found["right"] = stored[0] == 1 and np.array_equal(array[1:], words[1:])
        found["stats"] = region.stats().store.get("well")
        found["restarts"], found["same"] = region.counters()["restarts"], helpers() == before
        del array
    return found


def _texts(folder: Path) -> list[tuple[int, str]]:
    store = reined(folder, numbered(N * 4 * K))
    how: dict[str, Any] = {"block_size": 4 * K, "store_timeout": 0.05, "prefetch": "off"}
    with PagedMemory(store, **how) as region:
        store.reins.failing = errno.EREMOTEIO
        for number in range(N):
            with pytest.raises(StoreError):
                region.prefetch(number * 4 * K, 4 * K, wait=True)
        return [(one.offset, "\n".join(one.__notes__)) for one in region.stats().failures]
