"""The arrays that `open_array` returns: ordinary ones, but for how they reach files and pickles."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from pagemove.paging import gather
from pagemove.paging.by_value import Reduced, by_value
from pagemove.paging.places import place_of, runs_of
from pagemove.paging.plain import PlainResults, as_plain, has_plain_results, unless_paged
from pagemove.paging.region import PagedMemory
from pagemove.paging.saving import tofile
from pagemove.views import owner_behind

if TYPE_CHECKING:
    from typing import Self

_getitem = np.ndarray.__getitem__


class Origin(NamedTuple):
    """What an array was opened with, as `numpy.memmap` says it."""

    filename: str | Path | None
    offset: int
    mode: str


class PagedArray(PlainResults):
    """An array in paged memory: a `numpy.ndarray` in every other respect.

    Views of it are too; what is computed from it is a plain array (but for ``a.flat[...]``).
    `tofile`, `dump` and `dumps` work piece by piece, within the limit and without privileges, where
    NumPy's hand the memory of the whole array to the kernel. For everything else that does, there
    is `pagemove.pinned`. `numpy.save` is NumPy's: use `pagemove.save`.

    The region ends with the last array that leads there, or with `close`. A context manager closes
    at its end.

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

    @property
    def closed(self) -> bool:
        """Whether it was closed: touching it then ends the process. False of a copy.

        Of `open_arrays`, one without bytes is closed with the region, and not before. Also True
        where it is the parent's, in a child made by fork.
        """
        region = self.region
        return region is not None and (region.closed or region._has_left(self._at, self.nbytes))

    def close(self) -> None:
        """Flush, and free memory, descriptors and threads at once. Twice is fine.

        For this array and all others over the same memory: those it is a view of, its own views,
        and what others made of them. Nothing for a copy.

        Raises
        ------
        StoreError
            Changes could not be saved. It stays open, with all of them: fix the store and close it
            again.
        BufferError
            Blocks of it are `pinned`, or it is being handed over (`serve`), or another thread is in
            a call of its region; it stays open.

        Notes
        -----
        **Touching it afterwards is SIGSEGV**, which ends the process, after a message on standard
        error that names the file, and says that it was closed; a system call fails with EFAULT. So
        it is for a thread that touches it at this moment: what it has stored is either saved, or it
        gets the signal. The addresses stay reserved, without memory, until the last array has gone,
        so nobody finds other data there. To be told so, the process has a handler for SIGSEGV until
        then, which leaves the signal to what was there before; one that is set later, as by
        ``faulthandler.enable``, replaces it, and the message. Deleting the array (``del``) closes
        as well, as soon as no other array leads there, and has none of these dangers; but it cannot
        raise, so what could not be saved is reported on standard error.

        `open_arrays` has one region for all arrays of a file. Closing one of these flushes, and
        drops its blocks; it can still be touched, and is read again. An array that was taken out
        of the mapping twice, or by two names of the same bytes, is closed by closing either. When
        the last one that was taken out of the mapping is closed, the region is, as above. Arrays
        that were unpickled, or opened by `Reference.open`, share a region that ends with the last
        of them: closing one of these drops its blocks.

        Where all was saved, and a thread stores while it closes, what that has stored may be what
        cannot be saved. Then the array raises StoreError as above, and cannot be touched any more
        all the same; closing it again saves it.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> import numpy as np, pagemove
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "numbers.npy")
        ...     with pagemove.create_array(path, 1000, "f8") as numbers:
        ...         numbers[5] = 5
        ...     numbers, float(np.load(path)[5])
        (<closed PagedArray, shape (1000,), float64>, 5.0)
        """
        region = self.region
        if region is not None:
            region._close_for(self._at, self.nbytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def _at(self) -> int:
        """The address of its first item."""
        address: int = self.__array_interface__["data"][0]
        return address

    def __repr__(self) -> str:
        return self._closed_text or super().__repr__()

    def __str__(self) -> str:
        return self._closed_text or super().__str__()

    @property
    def _closed_text(self) -> str:
        """What is shown instead of items that are not there."""
        region = self.region
        if region is None or not region.closed:
            return ""
        return f"<closed {type(self).__name__}, shape {self.shape}, {self.dtype}>"

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
            return unless_paged(super().take(indices, axis, out, mode))
        plain = self.view(np.ndarray)
        if has_plain_results(self):
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
        ValueError
            It is the file that the array is in.
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
                self._check_not_own(file)
                file = stack.enter_context(open(os.fspath(file), "wb"))
            pickle.dump(Reduced(*by_value(self, 5)), file, protocol=5)

    def _check_not_own(self, file: Any) -> None:
        """Refuse the file that the array is read from: opening it for writing would empty it."""
        own = self.filename
        if own is not None and os.path.exists(file) and os.path.samefile(file, own):
            raise ValueError(
                f"{os.fspath(file)!r} is the file that the array is read from: dump to another, or "
                "use pagemove.save, which replaces it when all is written"
            )

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
        return pickle.dumps(Reduced(*by_value(self, 5)), protocol=5)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle by reference; a copy as what it is."""
        if self.region is None or not self.nbytes:
            return np.asarray(self).__reduce_ex__(protocol)
        return PagedArray._open, (PagedArray._refer(self),)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        """Let what was computed be plain."""
        array = super().__array_wrap__(array, context)
        if array is self or not has_plain_results(self):
            return array
        return array[()] if return_scalar else as_plain(array)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Let what functions of NumPy make be plain, also like this array (`numpy.zeros_like`)."""
        return unless_paged(super().__array_function__(func, types, args, kwargs))

    def __getitem__(self, key: Any) -> Any:
        # Of one item this is most of what it costs.
        found = _getitem(self, key)
        return unless_paged(found) if isinstance(found, PagedArray) else found

    def __deepcopy__(self, memo: Any) -> Any:
        return np.array(self)

    def __copy__(self) -> Any:
        return np.array(self)

    def copy(self, order: Any = "C") -> Any:
        """Copy into a plain array; as `numpy.ndarray.copy`."""
        if PagedArray._is_dask(sys._getframe(1)):
            return self[...]
        return np.array(self, order=order)
