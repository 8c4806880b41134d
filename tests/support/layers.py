"""A layered store to be tested: a file over something that notes what is read of it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

from pagemove.stores import FileStore, LayeredStore
from pagemove.testing import Fault, FaultyStore
from support.stores import BytesStore

K = 1024
N = 100 * K + 5
BOTTOM = bytes(n * 7 % 251 for n in range(N))


class Counting(BytesStore):
    """Notes what is read of it."""

    def __init__(self) -> None:
        super().__init__(BOTTOM)
        self.reads: list[tuple[int, int]] = []

    def read_into(self, offset: int, buffer: Any) -> None:
        self.reads.append((offset, len(buffer)))
        super().read_into(offset, buffer)


def read(store: LayeredStore, offset: int = 0, length: int | None = None) -> bytes:
    buffer = bytearray(store.nbytes - offset if length is None else length)
    store.read_into(offset, buffer)
    return bytes(buffer)


def top_file(folder: Path) -> Path:
    """Make the file of a top, which says of itself that it is not to be seen."""
    found = folder / "top"
    found.write_bytes(b"?" * N)
    return found


def layered(path: Path, bottom: BytesStore, **options: Any) -> LayeredStore:
    top = FileStore(path, writable=True)
    try:
        return LayeredStore(top, bottom, **{"block_size": 4 * K, **options})
    except BaseException:
        top.close()
        raise


def faulty(path: Path, bottom: BytesStore) -> LayeredStore:
    """Make a store whose top fails to sync once."""
    top = FaultyStore(path, writable=True, faults=[Fault("flush", errno=errno.EIO)])
    return LayeredStore(top, bottom, block_size=4 * K)


class Device:
    """In place of the syncs of a top: one that fails drops what was written since the last.

    Attributes
    ----------
    failing : int
        How many of the next fail.
    durable : bytes
        What a crash would leave of the file.
    """

    def __init__(self, store: LayeredStore, path: Path) -> None:
        self._path, self.failing, self.durable = path, 0, path.read_bytes()
        store.top._sync = self.sync  # type: ignore[attr-defined]

    def sync(self) -> None:
        if not self.failing:
            self.durable = self._path.read_bytes()
            return
        self.failing -= 1
        with self._path.open("r+b") as file:
            file.write(self.durable)
        raise OSError(errno.EIO, "lost")
