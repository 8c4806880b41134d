"""Code of this library's own against the library that could do the same: kept if 1.5 x as fast."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks._measure import Effort, Finding, Unmeasurable
from benchmarks._paging import Place, compared
from benchmarks._report import run_alone
from benchmarks._stores import elapsing, needed, nginx_server, redis_server
from pagemove.stores import FsspecStore
from pagemove.stores.blockfile import Layout
from pagemove.stores.blocklog import BlockLog, create
from pagemove.stores.redis_client import Client
from pagemove.stores.redis_direct import HEAD, Command

#: What code of one's own has to gain, to be worth its upkeep.
_WORTH_IT = 1.5
_BLOCKS = 512
_BETWEEN_SYNCS = 32
_STORED = 24 << 10  # a block of 64 KiB, compressed
_SIZES = (64 << 10, 2 << 20)


class _Log(Protocol):
    def put(self, block: int, data: bytes | None) -> None: ...
    def get(self, block: int) -> bytes | None: ...
    def sync(self) -> None: ...
    def close(self) -> None: ...


class _Database:
    """What `BlockLog` does, by SQLite in WAL mode. Its checksums cover the log only."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA page_size = 8192")
        self._connection.execute("PRAGMA journal_mode = WAL")
        # The log is synced by a checkpoint only, as here by `sync`.
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute("CREATE TABLE blocks (number INTEGER PRIMARY KEY, data BLOB)")

    def put(self, block: int, data: bytes | None) -> None:
        self._connection.execute("INSERT OR REPLACE INTO blocks VALUES (?, ?)", (block, data))

    def get(self, block: int) -> bytes | None:
        row = self._connection.execute(
            "SELECT data FROM blocks WHERE number = ?", (block,)
        ).fetchone()
        return None if row is None else row[0]

    def sync(self) -> None:
        self._connection.execute("PRAGMA wal_checkpoint(FULL)")

    def close(self) -> None:
        self._connection.close()


def _own_log(path: Path) -> BlockLog:
    create(path, Layout(_BLOCKS << 16, 1 << 16))
    return BlockLog(path)


def _logs(effort: Effort, place: Place) -> Iterator[Finding]:
    random = np.random.default_rng(0)
    data = [random.bytes(_STORED) for _ in range(_BLOCKS)]
    with contextlib.ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        logs: dict[str, _Log] = {
            "blocklog.py": _own_log(folder / "log"),
            "sqlite3": _Database(folder / "database"),
        }
        for log in logs.values():
            opened.callback(log.close)

        def written(log: _Log) -> Callable[[], int]:
            def write() -> int:
                for count, block in enumerate(random.permutation(_BLOCKS).tolist(), 1):
                    log.put(block, data[block])
                    if count % _BETWEEN_SYNCS == 0:
                        log.sync()
                return _BLOCKS

            return write

        def found(log: _Log) -> Callable[[], int]:
            def read() -> int:
                order = random.permutation(_BLOCKS).tolist()
                return sum(log.get(block) == data[block] for block in order)

            return read

        for what, job in (("written and synced", written), ("read", found)):
            jobs = {name: job(log) for name, log in logs.items()}
            label = f"blocks {what}; {place.name}"
            yield compared(jobs, label, _BLOCKS, place, effort.passes, _WORTH_IT)


def _answers(effort: Effort, place: Place, size: int) -> Iterator[Finding]:
    needed("redis", "hiredis")
    import redis

    count = max(8, min(128, (64 << 20) // size))
    with redis_server() as url:
        theirs = redis.Redis.from_url(url)
        value = np.random.default_rng(1).bytes(HEAD + size)
        for number in range(count):
            theirs.set(f"key{number}", value)
        ours = Client(url, 30, {})
        buffer = memoryview(bytearray(size))

        def directly() -> int:
            for number in range(count):
                key = f"key{number}"
                ours.run([Command(key, ("GET", key), (buffer,), HEAD + size)])
            return count

        def by_hiredis() -> int:
            for number in range(count):
                buffer[:] = memoryview(theirs.get(f"key{number}"))[HEAD:]
            return count

        jobs = {"redis_direct.py": directly, "redis-py with hiredis": by_hiredis}
        label = f"{size >> 10} KiB; {place.name}"
        yield compared(jobs, label, count, place, effort.passes, _WORTH_IT)
        ours.close()
        theirs.close()


def _ranges(effort: Effort, place: Place, size: int) -> Iterator[Finding]:
    needed("obstore", "fsspec", "aiohttp")
    contents = np.random.default_rng(2).bytes(64 << 20)
    count = max(8, min(128, (64 << 20) // size))
    with nginx_server(contents) as url, contextlib.ExitStack() as opened:
        buffer = memoryview(bytearray(size))

        def reading(**options: Any) -> Callable[[], int]:
            store = opened.enter_context(FsspecStore(f"{url}/bucket/x", timeout=60, **options))

            def read() -> int:
                for number in range(count):
                    store.read_into(number * size % len(contents), buffer)
                return count

            return read

        # An option that obstore is not told, and that changes nothing.
        jobs = {"objects.py, by obstore": reading(), "http.py": reading(client_kwargs={})}
        label = f"{size >> 10} KiB; {place.name}"
        yield compared(jobs, label, count, place, effort.passes, _WORTH_IT)


def measure(effort: Effort) -> list[Finding]:
    findings: list[Finding] = []
    for place in elapsing():
        parts: list[Iterator[Finding]] = [_logs(effort, place)]
        for size in _SIZES:
            parts += [_answers(effort, place, size), _ranges(effort, place, size)]
        for part in parts:
            with contextlib.suppress(Unmeasurable):
                findings += part
    if not findings:
        raise Unmeasurable("neither hiredis, obstore nor nginx is installed")
    return findings


if __name__ == "__main__":
    run_alone(measure)
