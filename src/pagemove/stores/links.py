"""What it takes to open a store again somewhere else: where it is, without secrets."""

from __future__ import annotations

import errno
import io
import pickle
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pagemove.errors import StoreError
from pagemove.stores.urls import is_secret_name, without_secret

if TYPE_CHECKING:
    from pagemove.stores.base import Store

# What options may be made of, to be the same in another process.
_PLAIN = (str, int, float, bool, type(None))


class Link(NamedTuple):
    """A store that has a name of its own: a path, a URL, an array in Redis.

    Attributes
    ----------
    opener : type
        The store's class.
    place : str
        A path, or a URL without what may be secret.
    options : mapping
        Keywords for the class, of the same kind.
    version : tuple
        What must be as it was, or it is not the same data. None is for what may change.
    left_out : tuple of str
        What is needed besides, and does not travel.
    """

    opener: type[Store]
    place: str
    options: dict[str, Any]
    version: tuple[Any, ...]
    left_out: tuple[str, ...] = ()

    def open(
        self, *, writable: bool = False, lock: bool = True, options: Mapping[str, Any] | None = None
    ) -> Store:
        """Open the store, and see that it is the same.

        Parameters
        ----------
        writable, lock : bool
            For stores that can be written.
        options : mapping, optional
            In addition to those of the link: credentials.

        Raises
        ------
        OSError
            It cannot be opened; a note names what the link does not have. ESTALE: it has changed.
        """
        try:
            store = self.opener._from_link(self, writable, lock, options or {})
        except Exception as error:
            if self.left_out and not options:
                error.add_note(
                    f"the reference does not have what may be secret ({', '.join(self.left_out)}): "
                    "pass storage_options to Reference.open, or have it where the library of the "
                    "store looks for it"
                )
            raise
        found = store._link()
        if found is None or not self._is_still(found.version):
            store.close()
            raise StoreError(
                errno.ESTALE,
                f"{store!r} has changed since the reference was made: it was {self.version}, and "
                f"is {found and found.version}; make a new one",
                store=repr(store),
                operation="read",
            )
        return store

    def _is_still(self, version: tuple[Any, ...]) -> bool:
        pairs = zip(self.version, version, strict=True)
        return all(was is None or was == now for was, now in pairs)


def pickled(store: Store, *, written: bool = False) -> bytes:
    """Pickle a store, with links instead of those that have one, at any depth.

    `written`: it was, by a region.

    Raises
    ------
    ValueError
        It is in this process alone.
    TypeError, PicklingError
        It cannot be pickled.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, 5)
    pickler.written = written
    pickler.dump(store)
    return buffer.getvalue()


class _Pickler(pickle.Pickler):
    written = False

    def reducer_override(self, found: Any) -> Any:
        find = getattr(type(found), "_link", None)
        link = find(found, written=self.written) if find else None
        return NotImplemented if link is None else (_opened, (link, found.writable))


def _opened(link: Link, writable: bool) -> Store:
    return link.open(writable=writable)


def portable_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Leave out of options what may be a secret, or is an object of this process.

    Returns
    -------
    tuple
        What is left, and the names of what is not.
    """
    kept: dict[str, Any] = {}
    left_out: list[str] = []
    for name, value in options.items():
        if isinstance(value, Mapping):
            kept[name], names = portable_options(value)
            left_out += [f"{name}.{each}" for each in names]
        elif is_secret_name(str(name)) or not _is_plain(value):
            left_out.append(str(name))
        else:
            kept[name] = value
    return kept, tuple(left_out)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        # Pairs may be names and values.
        return all(_is_plain(each) and not _is_pair(each) for each in value) and not _is_pair(value)
    is_plain = isinstance(value, _PLAIN)
    return is_plain and not (isinstance(value, str) and without_secret(value) != value)


def _is_pair(value: Any) -> bool:
    """Return whether it may be the name of a secret, and the secret."""
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    return is_pair and isinstance(value[0], str) and is_secret_name(value[0])
