"""What reads ranges of something that fsspec has opened: files, requests, or file objects."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from dataclasses import dataclass
from typing import Any, Protocol

from pagemove.stores import http, objects, s3
from pagemove.stores.chains import Place, located
from pagemove.stores.files import Data, Handles, LocalRange, local_file
from pagemove.stores.http import Guard, Resource, Validate
from pagemove.stores.loops import wait_for


@dataclass(frozen=True, slots=True)
class Settings:
    """How it is to be read.

    Attributes
    ----------
    timeout : float
        Seconds for a read, tries again included.
    validate : {"etag", "size", "none"}
        What has to stay as it was.
    guard : Guard
        Makes the sessions.
    """

    timeout: float
    validate: Validate
    guard: Guard

    @property
    def try_seconds(self) -> float:
        """How long one try may take: half of what all may, so that there is a second."""
        return max(self.timeout / 2, 0.001)


class Reader(Protocol):
    """Reads ranges, for any number of threads.

    Attributes
    ----------
    nbytes : int
        How many bytes there are.
    known : Resource
        What to tell another process, so that it does not take something else for the same.
    patient : bool
        Whether what raises is worth trying again.
    """

    nbytes: int
    known: Resource
    patient: bool

    def read(self, start: int, view: memoryview, seconds: float) -> None:
        """Fill a buffer whole, or raise."""

    def close(self) -> None:
        """Close what is open."""


def reader_of(
    filesystem: Any, path: str, settings: Settings, known: Resource | None = None
) -> Reader:
    """Return the fastest reader that is known to be right.

    Parameters
    ----------
    filesystem : fsspec.AbstractFileSystem
        Whatever it is.
    path : str
        In it.
    settings : Settings
    known : Resource, optional
        What another process has found. Something else is an error.

    Raises
    ------
    ValueError, OSError
        It is empty, or cannot be read.
    """
    place = located(filesystem, path)
    if place.data is not None:
        return Data(place.data)
    reader = _reader_at(place, settings, known)
    if reader is not None:
        try:
            if _is_proven(reader, place, settings.try_seconds):
                return reader
        except BaseException:
            reader.close()
            raise
        reader.close()
    return Handles(filesystem, path, settings.timeout)


def _is_proven(reader: Reader, place: Place, seconds: float) -> bool:
    """Return whether it is there; not if what is in between decompresses, for instance."""
    if place.offset + (place.nbytes or 0) > reader.known.nbytes:
        return False
    for proof in place.proofs:
        found = memoryview(bytearray(len(proof.data)))
        reader.read(proof.offset - place.offset, found, seconds)
        if found != proof.data:
            return False
    return True


def _reader_at(place: Place, settings: Settings, known: Resource | None) -> Reader | None:
    """Return what reads by ranges there; None: nothing that is known to be safe."""
    kind = type(place.filesystem)
    if _is_web(kind):
        return Web(place, settings, known)
    if _is_origin(place.filesystem):
        return Objects(place, settings, known)
    file = local_file(place.filesystem, place.path)
    return None if file is None else LocalRange(file, place)


def _is_web(kind: type) -> bool:
    from fsspec.implementations.http import HTTPFileSystem  # type: ignore[import-untyped]

    return issubclass(kind, HTTPFileSystem)


def _is_origin(filesystem: Any) -> bool:
    """Return whether it is asynchronous, and wraps no other filesystem.

    What wraps another may have its `_cat_file`, which knows nothing of the wrapper.
    """
    from fsspec import AbstractFileSystem  # type: ignore[import-untyped]
    from fsspec.asyn import AsyncFileSystem  # type: ignore[import-untyped]
    from fsspec.implementations.chained import (  # type: ignore[import-untyped]
        ChainedFileSystem,
    )

    kind = type(filesystem)
    if not issubclass(kind, AsyncFileSystem) or issubclass(kind, ChainedFileSystem):
        return False
    for value in object.__getattribute__(filesystem, "__dict__").values():
        members = value.values() if isinstance(value, dict) else value
        members = members if isinstance(value, dict | list | tuple) else (value,)
        if any(issubclass(type(each), AbstractFileSystem) for each in members):
            return False
    return True


class Web:
    """A range of what is behind a URL, read by obstore or by requests whose answers are checked."""

    patient = True

    def __init__(self, place: Place, settings: Settings, known: Resource | None) -> None:
        self._filesystem = settings.guard.guarded(place.filesystem)
        self._path, self._offset = place.path, place.offset
        self._settings = settings
        request = None if known else http.look(self._filesystem, self._path)
        self.known = known or wait_for(self._filesystem, request, settings.try_seconds)
        self.nbytes = _length(place, self.known)
        self._fast: objects.Reader | None = None
        if settings.guard.is_plain(self._filesystem):
            # Whatever obstore does not take.
            with contextlib.suppress(Exception):
                self._fast = objects.reader_of_url(
                    self._path, self.known, settings.validate, settings.try_seconds
                )

    def read(self, start: int, view: memoryview, seconds: float) -> None:
        """Make a request; a second one if the answer to the first needs to be looked at."""
        end = time.monotonic() + seconds
        if _is_read(self._fast, self._offset + start, view):
            return
        # A late answer is written here, not into a buffer that has another user by then.
        data = memoryview(bytearray(view.nbytes))
        request = http.read(
            self._filesystem,
            self._path,
            self._offset + start,
            data,
            self.known,
            self._settings.validate,
        )
        wait_for(self._filesystem, request, _within(end, self._settings.try_seconds))
        view[:] = data

    def close(self) -> None:
        """Leave the sessions to the guard."""


class Objects:
    """A range of an object, by requests of an asynchronous filesystem or of obstore."""

    patient = True

    def __init__(self, place: Place, settings: Settings, known: Resource | None) -> None:
        self._filesystem, self._path = place.filesystem, place.path
        self._offset = place.offset
        self._settings = settings
        self._lock = threading.Lock()
        self._s3: objects.Reader | None = None
        self._s3_tried = False
        self.known = known or self._look()
        self.nbytes = _length(place, self.known)

    def _look(self) -> Resource:
        request = self._filesystem._info(self._path)
        info = wait_for(self._filesystem, request, self._settings.try_seconds)
        if info.get("type") == "directory":
            raise IsADirectoryError(errno.EISDIR, "is a directory; name a file in it")
        size = info.get("size")
        if size is None:
            raise ValueError("its length is not known: copy it into a file")
        return Resource(int(size), str(info.get("ETag") or ""))

    def read(self, start: int, view: memoryview, seconds: float) -> None:
        """Make a request; a second one if the answer to the first needs to be looked at."""
        end = time.monotonic() + seconds
        first = self._offset + start
        if _is_read(self._fast(), first, view):
            return
        filesystem, path = self._filesystem, self._path
        if s3.is_s3(filesystem):
            validate = self._settings.validate
            request = s3.fetch(filesystem, path, first, view.nbytes, self.known, validate)
        else:
            request = filesystem._cat_file(path, start=first, end=first + view.nbytes)
        data = wait_for(filesystem, request, _within(end, self._settings.try_seconds))
        if len(data) != view.nbytes:
            raise OSError(errno.EIO, f"asked for {view.nbytes} bytes, got {len(data)}")
        view[:] = data

    def _fast(self) -> objects.Reader | None:
        """Return what reads it faster than the filesystem, if anything does."""
        with self._lock:
            if not self._s3_tried:
                self._s3_tried = True
                # What obstore has no option for, s3fs may still do.
                with contextlib.suppress(Exception):
                    self._s3 = s3.reader(
                        self._filesystem,
                        self._path,
                        self.known,
                        self._settings.validate,
                        self._settings.try_seconds,
                    )
            return self._s3

    def close(self) -> None:
        """Leave connections to their creator."""


def _is_read(fast: objects.Reader | None, start: int, view: memoryview) -> bool:
    return fast is not None and not fast.hopeless and fast.read(start, view)


def _within(end: float, most: float) -> float:
    """Return the seconds that are left of what a read may take, at most those of one try."""
    return max(min(end - time.monotonic(), most), 0.001)


def _length(place: Place, found: Resource) -> int:
    """Return the length of a place in something of known length."""
    return found.nbytes - place.offset if place.nbytes is None else place.nbytes
