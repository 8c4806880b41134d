"""The arrays that `open_array` returns: ordinary ones, but for how they reach files and pickles."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from pagemove.paging import gather
from pagemove.paging.pins import pinned
from pagemove.paging.places import place_of, runs_of
from pagemove.paging.region import PagedMemory
from pagemove.paging.saving import PIECE, pieces, tofile
from pagemove.views import owner_behind

_getitem = np.ndarray.__getitem__


class Origin(NamedTuple):
    """What an array was opened with, as `numpy.memmap` says it."""

    filename: str | Path | None
    offset: int
    mode: str


class PagedArray(np.ndarray[Any, np.dtype[Any]]):
    """An array in paged memory: a `numpy.ndarray` in every other respect.

    Views of it are too; what is computed from it is a plain array. `tofile`, `dump` and `dumps`
    work piece by piece, within the limit and without privileges, where NumPy's hand the memory of
    the whole array to the kernel. For everything else that does, there is `pagemove.pinned`.
    `numpy.save` is NumPy's: use `pagemove.save`.

    It pickles as its `pagemove.reference`, in a few hundred bytes: unpickled it is a view of a
    region of the other process over the same store, for reading. So processes of multiprocessing,
    joblib, Dask and Ray open the file instead of being sent its bytes. Arrays of mode ``"c"`` and
    of compressed memory, which no other process could open, refuse to be pickled: pass
    ``numpy.array(a)``, or ``pagemove.reference(a, copy=True)``. `dump` and `dumps` pickle by value;
    what they write is loaded as a plain array, also where pagemove is not installed.

    Examples
    --------
    >>> import io, pickle, tempfile
    >>> import numpy as np, pagemove
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     np.save(file, np.arange(100_000))
    ...     file.flush()
    ...     numbers = pagemove.open_array(file.name, resident_limit="512KiB")
    ...     type(numbers[1:]).__name__, type(numbers + 1).__name__
    ...     len(pickle.dumps(numbers)) < 1024, int(pickle.loads(numbers.dumps())[-1])
    ('PagedArray', 'ndarray')
    (True, 99999)
    """

    __slots__ = ()
    # Of reference.py and tokens.py, which know what is made of an array.
    _refer: ClassVar[Callable[[PagedArray], Any]]
    _open: ClassVar[Callable[[Any], Any]]
    _is_dask: ClassVar[Callable[[FrameType], bool]]
    # In `vars` of a class whose copies and results are plain arrays; derived ones keep theirs.
    _results_are_plain = True

    @property
    def filename(self) -> str | Path | None:
        """The file, absolute; None of an array that is not in one, and of a copy."""
        origin = self._origin
        return origin and origin.filename

    @property
    def offset(self) -> int | None:
        """Bytes of the file before the first item of the array that was opened; None of a copy."""
        origin = self._origin
        return None if origin is None else origin.offset

    @property
    def mode(self) -> str | None:
        """How it was opened; None of a copy."""
        origin = self._origin
        return origin and origin.mode

    @property
    def _origin(self) -> Origin | None:
        region = self.region
        return None if region is None else region._origin

    def flush(self) -> None:
        """Make changes durable, of the whole region; as `PagedMemory.flush`. Nothing for a copy.

        Raises
        ------
        StoreError
            Some blocks could not be written; they stay changed.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> import numpy as np, pagemove
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "numbers")
        ...     np.arange(1000.0).tofile(path)
        ...     numbers = pagemove.open_array(path, dtype=float, mode="r+")
        ...     numbers[5] = -1
        ...     numbers.flush()
        ...     float(np.fromfile(path)[5])
        -1.0
        """
        region = self.region
        if region is not None:
            region.flush()

    def prefetch(self, indices: npt.ArrayLike | None = None, *, wait: bool = False) -> None:
        """Read the blocks that the array has an item in before they are touched.

        As `pagemove.prefetch`. Nothing for a copy.

        Parameters
        ----------
        indices : array of int, optional
            Rows along the first axis; without them all of the array.
        wait : bool
            Return when the blocks are there.

        Raises
        ------
        IndexError
            A row is not in the array.
        StoreError
            With `wait`: a block cannot be read. The first of them ends the call.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> import numpy as np, pagemove
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "numbers")
        ...     np.arange(1000.0).tofile(path)
        ...     numbers = pagemove.open_array(path, dtype=float)
        ...     numbers[:10].prefetch(wait=True)
        ...     numbers.region.stats().resident_nbytes > 0
        True
        """
        region = self.region
        if region is None:
            return
        plain = self.view(np.ndarray)
        if indices is not None:
            gather.prefetch_rows(plain, region, indices, wait)
        else:
            runs = runs_of(place_of(plain), region.address, region.block_size)
            gather.read_together(region, runs, wait)

    def take(self, indices: Any, axis: Any = None, out: Any = None, mode: Any = "raise") -> Any:
        """Copy rows by index, as `numpy.ndarray.take`; their blocks are read together.

        Parameters
        ----------
        indices, axis, out, mode
            As for `numpy.ndarray.take`. Without an axis the items in C order are taken.

        Returns
        -------
        numpy.ndarray
            The rows in ordinary memory, or `out`.

        Raises
        ------
        IndexError
            A row is not in the array.
        StoreError
            Some blocks could not be read.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> import numpy as np, pagemove
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "numbers.npy")
        ...     np.save(path, np.arange(1000).reshape(100, 10))
        ...     pagemove.open_array(path).take([3, 99], axis=0)[:, 0].tolist()
        [30, 990]
        """
        region = self.region
        if region is None:
            return _unless_paged(super().take(indices, axis, out, mode))
        plain = self.view(np.ndarray)
        if _has_plain_results(self):
            return gather.take_from(plain, region, indices, axis, out, mode)
        gather.bring_in_rows(plain, region, indices, axis, mode)
        return super().take(indices, axis, out, mode)

    @property
    def region(self) -> PagedMemory | None:
        """The region that the array is in; None of a copy."""
        return owner_behind(self, PagedMemory)

    def tofile(self, fid: Any, sep: str = "", format: str = "%s") -> None:
        """Write the items as `numpy.ndarray.tofile` does, piece by piece.

        Parameters
        ----------
        fid : path-like or file object
            Anything with ``write``.
        sep, format : str
            As for `numpy.ndarray.tofile`: with a separator, which makes a text of it, NumPy writes.

        Raises
        ------
        OSError
            The file cannot be written. A note says how far it came.
        StoreError
            Some blocks could not be read.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> import numpy as np, pagemove
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "numbers")
        ...     np.arange(1000.0).tofile(path)
        ...     numbers = pagemove.open_array(path, dtype=float)
        ...     numbers.tofile(pathlib.Path(folder, "copy"))
        ...     pathlib.Path(folder, "copy").read_bytes() == path.read_bytes()
        True
        """
        if sep:
            super().tofile(fid, sep, format)
        else:
            tofile(self, fid)

    def dump(self, file: Any) -> None:
        """Pickle by value to a file; as `numpy.ndarray.dump`, piece by piece.

        Parameters
        ----------
        file : path-like or file object
            Anything with ``write``.

        Raises
        ------
        OSError
            The file cannot be written.
        StoreError
            Some blocks could not be read.

        Examples
        --------
        >>> import io, pathlib, pickle, tempfile
        >>> import numpy as np, pagemove
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path, file = pathlib.Path(folder, "numbers.npy"), io.BytesIO()
        ...     np.save(path, np.arange(3))
        ...     pagemove.open_array(path).dump(file)
        >>> pickle.loads(file.getvalue()).tolist()
        [0, 1, 2]
        """
        with contextlib.ExitStack() as stack:
            if not hasattr(file, "write"):
                file = stack.enter_context(open(os.fspath(file), "wb"))
            pickle.dump(_Reduced(*by_value(self, 5)), file, protocol=5)

    def dumps(self) -> bytes:
        """Pickle by value; as `numpy.ndarray.dumps`.

        Returns
        -------
        bytes
            All of the array, in ordinary memory.

        Raises
        ------
        StoreError
            Some blocks could not be read.

        Examples
        --------
        >>> import pathlib, pickle, tempfile
        >>> import numpy as np, pagemove
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "numbers.npy")
        ...     np.save(path, np.arange(3))
        ...     array = pagemove.open_array(path)
        >>> pickle.loads(array.dumps()).tolist()
        [0, 1, 2]
        """
        return pickle.dumps(_Reduced(*by_value(self, 5)), protocol=5)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle by reference; a copy as what it is."""
        if self.region is None or not self.nbytes:
            return np.asarray(self).__reduce_ex__(protocol)
        return PagedArray._open, (PagedArray._refer(self),)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        """Let what was computed be plain."""
        array = super().__array_wrap__(array, context)
        if array is self or not _has_plain_results(self):
            return array
        return array[()] if return_scalar else _plain(array)

    def __getitem__(self, key: Any) -> Any:
        # Of one item this is most of what it costs.
        found = _getitem(self, key)
        return _unless_paged(found) if isinstance(found, PagedArray) else found

    def __deepcopy__(self, memo: Any) -> Any:
        return np.array(self)

    def __copy__(self) -> Any:
        return np.array(self)

    def copy(self, order: Any = "C") -> Any:
        """Copy into a plain array; as `numpy.ndarray.copy`."""
        if PagedArray._is_dask(sys._getframe(1)):
            return self[...]
        return np.array(self, order=order)

    def astype(self, *args: Any, **kwargs: Any) -> Any:
        """Convert into a plain array; as `numpy.ndarray.astype`."""
        return _unless_paged(super().astype(*args, **kwargs))

    def flatten(self, order: Any = "C") -> Any:
        """Copy into a plain array of one dimension; as `numpy.ndarray.flatten`."""
        return _plain(super().flatten(order))


class _Reduced:
    """What is pickled as something else: a call, and the items of a list as they come."""

    def __init__(self, *reduced: object) -> None:
        self._reduced = reduced

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._reduced


class _Lent:
    """Bytes of a region that are pinned from when they are pickled until the next ones are.

    Picklers take items of a list before they are due: that of C two, that of Python a thousand.
    """

    def __init__(self, piece: npt.NDArray[Any], held: contextlib.ExitStack) -> None:
        self._piece = piece
        self._held = held

    def __reduce_ex__(self, protocol: Any) -> Any:
        self._held.close()
        lent: Any = None
        # The pickler of Python cannot take a buffer of a byte, or of none, twice.
        if len(self._piece) > 1:
            with contextlib.suppress(ValueError):  # others have pinned too much
                self._held.enter_context(pinned(self._piece))
                lent = pickle.PickleBuffer(self._piece.data)
        return memoryview, (self._piece.tobytes() if lent is None else lent,)


def by_value(array: npt.NDArray[Any], protocol: Any) -> tuple[Any, ...]:
    """Reduce an array to its items, a piece at a time: unpickled it is plain."""
    plain = np.asarray(array)
    region = owner_behind(array, PagedMemory)
    if region is None or not plain.nbytes:
        return tuple(plain.__reduce_ex__(protocol))
    build = np.empty(0).__reduce_ex__(5)[0]  # NumPy's own, of what is contiguous
    fortran = plain.flags.f_contiguous and not plain.flags.c_contiguous
    order = "F" if fortran else "C"
    parts = pieces(plain, order)
    if protocol >= 5 and (plain.flags.c_contiguous or plain.flags.f_contiguous):
        parts = _pinned_pieces(plain.ravel("K"), region)
    joined = _Reduced(bytearray.join, (bytearray(), _Reduced(list, (), None, parts)))
    return build, (joined, plain.dtype, plain.shape, order)


def _pinned_pieces(flat: npt.NDArray[Any], region: PagedMemory) -> Iterator[Any]:
    """Lend the bytes of an array some at a time, each pinned while it is pickled."""
    whole = flat.view(np.uint8)
    whole.flags.writeable = False
    # Any piece has a part of one block more.
    most = region.pinnable // 2 - region.block_size
    size = min(max(PIECE, region.block_size), most)
    if size < region.block_size:
        yield from pieces(whole, "C")
        return
    held = contextlib.ExitStack()
    for at in range(0, len(whole), size):
        yield _Lent(whole[at : at + size], held)
    yield _Lent(whole[:0], held)  # which ends the last one's pin


def _has_plain_results(array: Any) -> bool:
    return "_results_are_plain" in vars(type(array))


def _plain(array: Any) -> Any:
    return array.view(np.ndarray) if isinstance(array, PagedArray) else array


def _unless_paged(array: Any) -> Any:
    """Let a copy be a plain array."""
    if isinstance(array, PagedArray) and _has_plain_results(array) and array.region is None:
        return array.view(np.ndarray)
    return array
