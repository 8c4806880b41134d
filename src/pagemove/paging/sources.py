"""What a path or a URL names, as a store."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pagemove.paging.options import did_you_mean
from pagemove.stores.base import Store
from pagemove.stores.file import FileStore
from pagemove.stores.urls import without_secret

if TYPE_CHECKING:
    from pagemove.stores.handed import HandedStore

# Or a chain of them: simplecache::s3://...
_URL = re.compile(r"([a-z][a-z0-9+.-]+)(?:://|::.*://)", re.IGNORECASE)
# Of a URL the part before a # is the file if it ends like one that holds arrays by name.
_ARRAY_IN_URL = re.compile(
    r"(.*\.(?:npz|safetensors|gguf|h5|hdf5|he5|h5ad|nc|arrow|feather|zarr|index\.json)"
    r"/?(?:\?[^#]*)?)#(.+)",
    re.IGNORECASE | re.DOTALL,
)
_HANDED = ("pagemove", "pagemove+unix")
_OF_HANDED = frozenset(["secret", "ssl", "backing"])
_REDIS = ("redis", "rediss", "valkey", "valkeys", "unix")


@dataclass(frozen=True, slots=True, repr=False)
class Source:
    """A path, or a URL with what else is needed to open it.

    Attributes
    ----------
    text : str
        As it was given. The URL of a Redis server ends with ``#`` and the name of the array.
    options : mapping
        For what opens a URL; may hold secrets.
    options_called : str
        What the user knows them by.
    """

    text: str
    options: Mapping[str, Any] = field(default_factory=dict)
    options_called: str = "storage_options"

    def open(self, *, writable: bool = False, lock: bool = True) -> Store:
        """Open the store; of an array in a container its bytes alone.

        Where a kind of store cannot be written `writable` changes nothing: the store says so.
        `lock` is for files.

        Raises
        ------
        ValueError
            It cannot be paged; a URL without the name of an array; options for a path.
        ImportError
            What it needs is not installed.
        OSError
            As the store.
        """
        outer, array = self.split()
        if outer.is_zarr:
            from pagemove.paging.decoded import decoded_store

            return decoded_store(outer, array, writable=writable)
        if array is None:
            return outer.open_whole(writable=writable, lock=lock)
        from pagemove.paging.members import part_of  # and the formats

        return part_of(outer, array, writable=writable, lock=lock)

    def open_whole(self, *, writable: bool = False, lock: bool = True) -> Store:
        """Open the store, whatever is in it; as `open`."""
        scheme = self._scheme
        if scheme in _REDIS:
            return self._in_redis(writable)
        if scheme in _HANDED:
            return self.handed()
        if scheme not in (None, "file"):
            from pagemove.stores.fsspec import FsspecStore  # and asyncio, which files do not need

            return FsspecStore(self.text, **self.options)
        if set(self.options) - {"direct"}:
            raise ValueError(f"{self.options_called} is for URLs, and this is a path")
        return FileStore(self.path or self.text, writable=writable, lock=lock, **self.options)

    def handed(self, **options: Any) -> HandedStore:
        """Open what another process hands over."""
        from pagemove.stores.handed import HandedStore  # and sockets

        for name in sorted(set(self.options) - _OF_HANDED):
            raise TypeError(
                f"{self.options_called} of {self.shown} has no {name!r}"
                f"{did_you_mean(name, _OF_HANDED)}"
            )
        return HandedStore(self.text, **options, **self.options)

    @property
    def is_handed(self) -> bool:
        """Whether another process hands it over."""
        return self._scheme in _HANDED

    @property
    def path(self) -> str | None:
        """The file; None of a URL that is not ``file://``."""
        if self._scheme == "file":
            return _path_of(self.text)
        return None if self._scheme else self.text

    @property
    def is_zarr(self) -> bool:
        """Whether it has the name of a zarr: a folder, or a zip file of one."""
        ends = (".zarr",) if self.path is None else (".zarr", ".zarr.zip")
        return self.text.partition("?")[0].rstrip("/").lower().endswith(ends)

    def split(self) -> tuple[Source, str | None]:
        """Return the file, and the name of the array in it that stands behind a ``#``, if any.

        A path that is there as a whole has none.
        """
        scheme = self._scheme
        if scheme in (*_REDIS, *_HANDED) or "#" not in self.text:
            return self, None
        if scheme not in (None, "file"):
            found = _ARRAY_IN_URL.fullmatch(self.text)
            if found is None:
                return self, None
            from urllib.parse import unquote

            return replace(self, text=found[1]), unquote(found[2])
        if os.path.lexists(_path_of(self.text.replace("#", "%23")) if scheme else self.text):
            return self, None
        for at in (found.start() for found in re.finditer("#", self.text)):
            outer, array = replace(self, text=self.text[:at]), self.text[at + 1 :]
            # A folder holds files, which may have a # in their names; that of a zarr holds arrays.
            path = outer.path or ""
            if array and (os.path.isfile(path) or (outer.is_zarr and os.path.exists(path))):
                return outer, array
        return self, None

    def beside(self, file: str) -> Source:
        """Return another file in the same folder, with the same options."""
        start = self.text.partition("?")[0].rpartition("/")
        return replace(self, text=f"{start[0]}{start[1]}{file}")

    @property
    def shown(self) -> str:
        """The path or the URL, without a password that may be in it."""
        return without_secret(self.text) if self._scheme else self.text

    @property
    def name(self) -> str:
        """The same, short: of a path the last part."""
        return self.shown if self._scheme else os.path.basename(os.path.abspath(self.text))

    @property
    def _scheme(self) -> str | None:
        """Of a URL, in small letters."""
        url = _URL.match(self.text)
        return url[1].lower() if url else None

    def _in_redis(self, writable: bool) -> Store:
        from pagemove.stores.redis_secrets import check_userinfo

        # First: of a password with a # in it the rest would be the name, and shown.
        check_userinfo(self.text, is_named=True)
        url, _, key = self.text.partition("#")
        if not key:
            raise ValueError(
                f"{self.shown} is a server, and an array in it has a name: {self.shown}#NAME, or "
                "open_array(RedisStore(url, key))"
            )
        from urllib.parse import unquote

        from pagemove.stores.redis import RedisStore

        return RedisStore(url, unquote(key), writable=writable, **self.options)

    def __str__(self) -> str:
        return self.shown

    def __repr__(self) -> str:
        return f"Source({self.shown!r})"


def _path_of(url: str) -> str:
    from urllib.parse import unquote, urlsplit  # slow to import, and for URLs alone

    return unquote(urlsplit(url).path)
