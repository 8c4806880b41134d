"""Arrays that travel by reference: `reference`, and how a `PagedArray` pickles."""

from __future__ import annotations

import contextlib
import pickle
import threading
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pagemove import children, limits
from pagemove.paging.array import PagedArray
from pagemove.paging.behind import check_open
from pagemove.paging.budget import Budget
from pagemove.paging.by_value import by_value
from pagemove.paging.open import region_of
from pagemove.paging.options import check_keywords
from pagemove.paging.region import PagedMemory
from pagemove.paging.sizes import text_of
from pagemove.paging.tokens import register
from pagemove.stores.file import FileStore
from pagemove.stores.links import Link, pickled

if TYPE_CHECKING:
    from typing import Unpack

    from pagemove.paging.options import PagingOptions

_Strides = tuple[int, ...]


class Reference:
    """What it takes to have the same view of a paged array elsewhere: where it is, not its bytes.

    `pagemove.reference` makes one. It pickles, in a few hundred bytes for what has a path or a URL,
    compares and hashes by what it refers to. Secrets are not in it: passwords and credentials of
    URLs and options are left out, and have to be found on the other side, where its libraries look
    for them, or be passed to `open`.

    Attributes
    ----------
    dtype : numpy.dtype
        Of the items.
    shape : tuple of int
        Of the view.
    nbytes : int
        Of its items.

    Examples
    --------
    >>> import pathlib, pickle, tempfile
    >>> import numpy as np, pagemove
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "numbers.npy")
    ...     np.save(path, np.arange(1_000_000))
    ...     numbers = pagemove.open_array(path)
    ...     reference = pagemove.reference(numbers[500_000::7])
    ...     travelled = pickle.loads(pickle.dumps(reference))
    ...     reference == travelled, int(travelled.open()[1]), len(pickle.dumps(reference)) < 1024
    (True, 500007, True)
    """

    __slots__ = ("_copy", "_view", "_where", "dtype", "shape")

    def __init__(
        self,
        where: _Where | None,
        view: tuple[int, _Strides],
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        copy: npt.NDArray[Any] | None = None,
    ) -> None:
        self._where, self._view = where, view
        self.dtype, self.shape = dtype, shape
        self._copy = copy

    @property
    def nbytes(self) -> int:
        """Bytes of the items."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.uint64))

    @property
    def longest_axis(self) -> int:
        """The axis whose items are farthest apart."""
        both = zip(self._strides, self.shape, strict=True)
        steps = [abs(step) if size > 1 else 0 for step, size in both]
        return max(range(len(steps)), key=steps.__getitem__, default=0)

    @property
    def _strides(self) -> _Strides:
        return self._view[1] or _in_order(self.shape, self.dtype.itemsize)

    def open(
        self,
        *,
        storage_options: Mapping[str, Any] | None = None,
        lock: bool = True,
        **overrides: Unpack[PagingOptions],
    ) -> npt.NDArray[Any]:
        """Open the array.

        What refers to the same store with the same options shares one region in a process, which is
        opened the first time, and goes with the last array.

        Parameters
        ----------
        storage_options : mapping, optional
            More options for the store: credentials.
        lock : bool
            As for `pagemove.open_array`.
        **overrides
            Keywords of `PagedMemory`, instead of those of the region that was referred to. The mode
            is ``"r"`` unless it is said here.

        Returns
        -------
        PagedArray
            Of a reference that was made with ``copy=True`` a plain array.

        Raises
        ------
        StoreError
            The store has changed since the reference was made: errno ESTALE.
        OSError, ValueError
            As `pagemove.open_array`. A note says what the reference does not have.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> import numpy as np, pagemove
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "numbers.npy")
        ...     np.save(path, np.arange(1000))
        ...     there = pagemove.reference(pagemove.open_array(path)[10:20])
        ...     int(there.open(resident_limit="256KiB").sum())
        145
        """
        check_keywords("Reference.open", overrides)
        if self._where is None:
            return self._copy if type(self._copy) is np.ndarray else np.array(self._copy)
        region = self._where.region(dict(storage_options or {}), lock, dict(overrides))
        offset, strides = self._view
        # In order, the base has the same items: some look at it to see whether that is all.
        if strides == _in_order(self.shape, self.dtype.itemsize):
            array = region.asarray(self.dtype, self.shape, offset)
        else:
            whole = np.frombuffer(memoryview(region), np.uint8)
            array = np.ndarray(self.shape, self.dtype, whole.data, offset, strides)
        return array.view(PagedArray)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Reference):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        where = id(self._copy) if self._where is None else self._where
        return where, self._view, self.dtype, self.shape

    def __reduce__(self) -> tuple[Any, ...]:
        copy = None if self._copy is None else _Copied(self._copy)
        where = None if self._where is None else tuple(self._where)
        return _unpickled, (where, self._view, self.dtype, self.shape, copy)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        if self._where is None:
            return "pagemove copy", id(self._copy)
        view = self._view, pickle.dumps(self.dtype, 5), self.shape
        return ("pagemove reference", self._where.store, *map(repr, view))

    def __repr__(self) -> str:
        what = f"{self.shape} of {self.dtype}, {text_of(self.nbytes)}"
        where = "a copy" if self._where is None else self._where.label
        return f"<Reference to {where}: {what}>"


class _Copied:
    """Pickles by value, and is unpickled as a plain array."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = array

    def __reduce_ex__(self, protocol: Any) -> Any:
        return by_value(self._array, protocol)


class _Where:
    """A store and the options of a region over it, as they travel.

    Attributes
    ----------
    store : bytes
        A pickled `Link`, or the store with links in it.
    options : bytes
        Pickled keywords of `PagedMemory`.
    label : str
        To be shown.
    """

    __slots__ = ("label", "options", "store")

    def __init__(self, store: bytes, options: bytes, label: str) -> None:
        self.store, self.options, self.label = store, options, label

    def __iter__(self) -> Any:
        return iter((self.store, self.options, self.label))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Where) and tuple(self)[:2] == tuple(other)[:2]

    def __hash__(self) -> int:
        return hash((self.store, self.options))

    def region(self, options: dict[str, Any], lock: bool, paging: dict[str, Any]) -> PagedMemory:
        """Return the region of this process over the store, with such options."""
        asked: dict[str, Any] = {**pickle.loads(self.options), **paging}
        key = (self.store, repr(sorted(options.items())), lock, repr(sorted(asked.items())))
        with _opening:
            region = _open.get(key)
            if region is None or region.closed or region.lost:
                region = _open[key] = self._opened(options, lock, asked)
            elif region.mode != "r+" and isinstance(region.store, FileStore):
                region.store._link()  # which raises if the file has changed since
            return region

    def _opened(self, options: dict[str, Any], lock: bool, asked: dict[str, Any]) -> PagedMemory:
        writable = asked.get("mode") == "r+"
        with limits.named():
            store = pickle.loads(self.store)
            if isinstance(store, Link):
                store = store.open(writable=writable, lock=lock, options=options)
            elif options:
                store.close()
                raise ValueError("storage_options is for URLs, and this store is pickled as it is")
        with contextlib.closing(store):
            region = PagedMemory(store, **asked)
        region._forgettable = True
        region._is_common = True
        register()
        return region


_opening = threading.RLock()
_open: weakref.WeakValueDictionary[Any, PagedMemory] = weakref.WeakValueDictionary()


def _in_child() -> None:
    global _opening, _open
    # The parent's regions are not here, and a thread that is not here may have had the lock.
    _opening, _open = threading.RLock(), weakref.WeakValueDictionary()


children.first_do(_in_child)


def reference(view: npt.NDArray[Any], *, copy: bool = False) -> Reference:
    """Refer to a view of a paged array, to have the same in another process.

    Parameters
    ----------
    view : numpy.ndarray
        From `open_array`, `memmap` or `PagedMemory.asarray`, or any view of such an array.
    copy : bool
        Take the items along, of any array, instead of referring to them. Pickled it is by value
        then, piece by piece, within the limit; `Reference.open` returns a plain array.

    Returns
    -------
    Reference
        It pickles in less than 1 KiB where the store is a file, a URL or an array in Redis. Any
        other store is pickled in it.

    Raises
    ------
    ValueError
        The array is closed, or is not in paged memory; or its contents are in this process alone:
        mode ``"c"``, or compressed memory. The message has the remedy.
    StoreError
        Mode ``"r+"``: changes could not be flushed. ESTALE: the file is not what it was when it was
        opened.

    Notes
    -----
    Changes of mode ``"r+"`` are flushed first. On the other side it is opened for reading, unless
    it is asked for otherwise; only one can write at a time. If the file changes after that (size or
    time of modification; ETag; the array in Redis was made anew), opening it is an error.

    Cost: a stat, and a flush of what was changed. Nothing is read.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np, pagemove
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "numbers.npy")
    ...     np.save(path, np.arange(100))
    ...     reference = pagemove.reference(pagemove.open_array(path)[10:20])
    ...     reference.shape, reference.open(block_size=4096).tolist()[:3]
    ((10,), [10, 11, 12])
    """
    if copy:
        check_open(view)
        return Reference(None, (0, ()), view.dtype, view.shape, view)
    region = region_of(view)
    if region.mode == "c":
        raise ValueError(
            f"{region!r} has changes that no other process can see: pass a copy "
            "(numpy.array(view), or pagemove.reference(view, copy=True)), or keep them in a file "
            "with mode 'r+'"
        )
    if region.mode == "r+":
        region.flush()
    offset = view.__array_interface__["data"][0] - region.address
    where = _Where(_store_of(region), _options_of(region), region._label)
    return Reference(where, (offset, view.strides), view.dtype, view.shape)


def _store_of(region: PagedMemory) -> bytes:
    store = region.store
    if not store.restartable:
        raise ValueError(
            f"{region!r} keeps its contents in memory of one process, where no other can read "
            "them: pass a copy (numpy.array(view), or pagemove.reference(view, copy=True)), or use "
            "a store with a path"
        )
    written = region.mode == "r+"
    link = store._link(written=written)
    return pickled(store, written=written) if link is None else pickle.dumps(link, 5)


def _options_of(region: PagedMemory) -> bytes:
    usual = PagedMemory.__init__.__kwdefaults__ or {}
    asked = {name: value for name, value in region._asked.items() if value != usual[name]}
    budget = asked.get("resident_limit")
    if isinstance(budget, Budget):
        asked["resident_limit"] = budget.limit  # which is this process's: there it is one's own
    return pickle.dumps(asked, 5)


def _in_order(shape: tuple[int, ...], itemsize: int) -> _Strides:
    strides, step = [], itemsize
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _unpickled(
    where: tuple[bytes, bytes, str] | None,
    view: tuple[int, _Strides],
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    copy: npt.NDArray[Any] | None,
) -> Reference:
    return Reference(None if where is None else _Where(*where), view, dtype, shape, copy)


def _opened(found: Reference) -> npt.NDArray[Any]:
    return found.open()


PagedArray._refer, PagedArray._open = staticmethod(reference), staticmethod(_opened)
