"""Reading from what is open in this process: a descriptor, a file object of fsspec, or bytes."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import threading
from typing import Any

from pagemove.stores.chains import Place
from pagemove.stores.file import FileStore
from pagemove.stores.http import Resource

_MOST_IDLE = 4


class Data:
    """Bytes that are in memory."""

    patient = False

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.nbytes = len(data)
        self.known = Resource(self.nbytes, "")

    def read(self, start: int, view: memoryview, _seconds: float) -> None:
        """Copy them."""
        view[:] = memoryview(self._data)[start : start + view.nbytes]

    def close(self) -> None:
        """Do nothing."""


class LocalRange:
    """A range of a file of this machine, which the pager can read itself.

    Parameters
    ----------
    file : FileStore
        Closed with this.
    place : Place
        Where in it.
    """

    patient = False

    def __init__(self, file: FileStore, place: Place) -> None:
        self._file = file
        self.offset = place.offset
        self.nbytes = file.nbytes - place.offset if place.nbytes is None else place.nbytes
        self.known = Resource(file.nbytes, "")

    def fileno(self) -> int:
        """Return the descriptor of the file."""
        return self._file.fileno()

    def read(self, start: int, view: memoryview, _seconds: float) -> None:
        """Read at a position of its own."""
        got = 0
        while got < view.nbytes:
            count = os.preadv(self._file.fileno(), [view[got:]], self.offset + start + got)
            if not count:
                raise OSError(errno.EIO, f"asked for {view.nbytes} bytes, got {got}")
            got += count

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __del__(self) -> None:
        self.close()


def local_file(filesystem: Any, path: str) -> FileStore | None:
    """Return the file of this machine that holds exactly these bytes; None: there is none."""
    from fsspec.implementations.cached import (  # type: ignore[import-untyped]
        WholeFileCacheFileSystem,
    )
    from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

    kind = type(filesystem)
    if kind is LocalFileSystem:
        return FileStore(path)
    if issubclass(kind, WholeFileCacheFileSystem):
        with filesystem.open(path, "rb") as file:
            # By its name it may be gone, or another one, by now.
            return FileStore(f"/proc/self/fd/{file.fileno()}")
    return None


class Handles:
    """File objects, of filesystems not known to be safe for several threads: one at a time.

    All of them, for those of an archive have one position in the archive's own file.
    """

    patient = False

    def __init__(self, filesystem: Any, path: str, seconds: float) -> None:
        from fsspec.archive import AbstractArchiveFileSystem  # type: ignore[import-untyped]

        self._filesystem, self._path = filesystem, path
        self._lock = threading.Lock()
        # What is decompressed has to begin anew to go back: those in the middle are kept.
        self._most = _MOST_IDLE if issubclass(type(filesystem), AbstractArchiveFileSystem) else 1
        self._seconds = seconds
        self._idle: list[tuple[int, Any]] = []
        file = self._opened_file()
        try:
            self.nbytes = self._size(file)
        except BaseException:
            file.close()
            raise
        self._idle.append((0, file))
        self.known = Resource(self.nbytes, "")

    def _opened_file(self) -> Any:
        return self._filesystem.open(self._path, "rb")

    def _size(self, file: Any) -> int:
        size = getattr(file, "size", None)
        if not isinstance(size, int):
            try:
                size = file.seek(0, io.SEEK_END)
                size = file.tell() if size is None else size
                file.seek(0)
            except Exception as error:
                raise ValueError("its length is not known: copy it into a file") from error
        return int(size)

    def read(self, start: int, view: memoryview, seconds: float) -> None:
        """Read from an open file, if there is one that need not be read from its beginning."""
        if not self._lock.acquire(timeout=min(seconds, self._seconds)):
            raise TimeoutError(errno.ETIMEDOUT, "other reads of it have not ended")
        try:
            file = self._chosen(start)
            try:
                file.seek(start)
                _fill(file, view)
            except BaseException:
                with contextlib.suppress(Exception):
                    file.close()
                raise
            self._idle.append((start + view.nbytes, file))
        finally:
            self._lock.release()

    def _chosen(self, start: int) -> Any:
        behind = [each for each in self._idle if each[0] <= start]
        chosen = max(behind, key=lambda each: each[0], default=None)
        if chosen is None and len(self._idle) >= self._most:
            chosen = self._idle[0]
        if chosen is None:
            return self._opened_file()
        self._idle.remove(chosen)
        return chosen[1]

    def close(self) -> None:
        """Close them."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, file in idle:
            file.close()


def _fill(file: Any, view: memoryview) -> None:
    got = 0
    while got < view.nbytes:
        data = file.read(view.nbytes - got)
        if not data or len(data) > view.nbytes - got:
            raise OSError(errno.EIO, f"asked for {view.nbytes} bytes, got {got + len(data or b'')}")
        view[got : got + len(data)] = data
        got += len(data)
