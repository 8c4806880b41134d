"""fsspec's caches on this machine, made to keep nothing that has not arrived.

The cache of blocks notes a block before it asks for it, so that what failed reads as zeros the next
time; the caches of files leave a part of a file where they look for the whole. Both are corrected
here, under names of our own, so that other uses of fsspec do not change.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import threading
from typing import Any

_PREFIX = "pagemove-"
_CACHES = ("blockcache", "cached", "filecache", "simplecache")


def replaced(parts: list[str], options: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Name our own caches in the parts of a chain, and in the options by protocol."""
    names = {part.partition("://")[0] for part in parts} & {*_CACHES}
    for name in names:
        _register(name)
    parts = [_renamed(part) if part.partition("://")[0] in names else part for part in parts]
    return parts, {_PREFIX + key if key in names else key: each for key, each in options.items()}


def _renamed(part: str) -> str:
    name, _, path = part.partition("://")
    return f"{_PREFIX}{name}://{path}"


@functools.cache
def _register(name: str) -> None:
    import fsspec  # type: ignore[import-untyped]
    from fsspec.implementations import cached  # type: ignore[import-untyped]

    kinds = {
        "filecache": cached.WholeFileCacheFileSystem,
        "simplecache": cached.SimpleCacheFileSystem,
    }
    protocol = _PREFIX + name
    if name in kinds:
        kind = _whole(kinds[name], protocol)
    else:
        kind = _blocks(cached.CachingFileSystem, protocol)
    fsspec.register_implementation(protocol, kind, clobber=True)


def _whole(base: Any, protocol: str) -> Any:
    """Make a kind of filesystem whose copies are whole, or not there."""

    def opened(self: Any, path: str, mode: str = "rb", **options: Any) -> Any:
        inner = self._strip_protocol(path)
        expected = None if self.compression else self.fs.info(inner).get("size")
        got = 0
        for _ in range(2):
            try:
                # Else it asks first whether there is one, with a request for the whole.
                if not self._check_file(inner):
                    self._get_cached_file_before_open(inner)
                file = base._open(self, path, mode, **options)
            except BaseException:
                _forget_copy(self, inner)
                raise
            got = os.fstat(file.fileno()).st_size
            if expected in (None, got):
                return file
            file.close()
            _forget_copy(self, inner)
        raise OSError(
            errno.EIO, f"the copy of it in the cache has {got} bytes instead of {expected}"
        )

    return type(base.__name__, (base,), {"protocol": protocol, "_open": opened})


def _forget_copy(filesystem: Any, path: str) -> None:
    with contextlib.suppress(Exception):
        found = filesystem._check_file(path)
        if found:
            os.unlink(found[1] if isinstance(found, tuple) else found)


def _blocks(base: Any, protocol: str) -> Any:
    """Make a kind of filesystem that forgets a block which has not arrived."""
    from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

    def opened(self: Any, path: str, mode: str = "rb", **options: Any) -> Any:
        if type(self.fs) is LocalFileSystem:
            return self.fs.open(path, mode)  # its files have no cache to be replaced
        file = base._open(self, path, mode, **options)
        cache: Any = getattr(file, "cache", None)
        if isinstance(getattr(cache, "blocks", None), set):
            if cache.multi_fetcher is not None:
                cache.multi_fetcher = functools.partial(_arrived, cache.multi_fetcher)
            cache._fetch = functools.partial(_fetched, cache, cache._fetch, threading.Lock())
        return file

    return type(base.__name__, (base,), {"protocol": protocol, "_open": opened})


def _arrived(fetch: Any, spans: list[tuple[int, int]]) -> list[bytes]:
    """Fetch ranges; raise what went wrong, which is in the place of bytes where it did."""
    found = list(fetch(spans))
    for (start, end), data in zip(spans, found, strict=True):
        if isinstance(data, BaseException):
            raise data
        if len(data) != end - start:
            raise OSError(errno.EIO, f"asked for {end - start} bytes, got {len(data)}")
    return found


def _fetched(cache: Any, fetch: Any, lock: threading.Lock, *span: Any) -> bytes:
    with lock:
        before = set(cache.blocks)
        try:
            data: bytes = fetch(*span)
        except BaseException:
            # In place: what knows of the file on the disk has the same set.
            cache.blocks.intersection_update(before)
            raise
        return data
