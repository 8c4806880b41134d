"""`memmap`: numpy.memmap's signature, modes and attributes, over paged memory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import operator
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from pagemove import limits
from pagemove.paging.array import Origin, PagedArray
from pagemove.paging.create import in_order
from pagemove.paging.options import check_keywords
from pagemove.paging.region import PagedMemory
from pagemove.stores.descriptors import open_high
from pagemove.stores.file import FileStore
from pagemove.stores.filelock import FileLock

if TYPE_CHECKING:
    from typing import Self, Unpack

    from pagemove.paging.options import Mode, ModelessOptions

MapMode = Literal["r", "c", "r+", "w+", "readonly", "copyonwrite", "readwrite", "write"]

_LONG = {"readonly": "r", "copyonwrite": "c", "readwrite": "r+", "write": "w+"}
_LARGEST = 2**63 - 1


class memmap(PagedArray):  # noqa: N801 (NumPy's name for it)
    """A binary file as an array, as `numpy.memmap`: paged under a limit, not mapped.

    Parameters
    ----------
    filename : str, path-like or file object
        The file; of an object the file of its descriptor, from its beginning.
    dtype : dtype
        Of the items; not Python objects.
    mode : {"r+", "r", "w+", "c"}
        ``"r"``: read-only. ``"r+"``: changes go to the file. ``"w+"``: the same, after the file was
        made or emptied; one that was passed open is not emptied, as with NumPy. ``"c"``: changes
        stay private. Or NumPy's long names: ``"readonly"``, ``"readwrite"``, ``"write"``,
        ``"copyonwrite"``.
    offset : int
        Bytes before the first item.
    shape : int or sequence of int, optional
        By default one dimension, up to the end of the file; one of the lengths may be -1, as for
        `numpy.reshape`. Where the file is too short for it, it is extended by a hole in modes
        ``"r+"`` and ``"w+"``.
    order : {"C", "F"} or None
        Of the axes in the file; None, as for NumPy, is ``"C"``. Small letters will do. ``"A"`` and
        ``"K"``, which NumPy takes for ``"C"`` here though `numpy.empty` does not, are refused.
    lock : bool
        As for `open_array`.
    **paging
        As for `PagedMemory`, but for `mode`: `resident_limit`, `block_size`, `prefetch` ... In mode
        ``"w+"`` blocks have by default the size that `create_array` chooses.

    Attributes
    ----------
    filename : str, pathlib.Path or None
        Absolute; None of a file without a name, and of a copy.
    offset : int
        As it was given; None of a copy.
    mode : str
        In its short form; None of a copy.

    Raises
    ------
    ValueError
        `mode`, `shape`, `order` or `offset` cannot be; the file is empty, or too short, or is not
        whole items; what `PagedMemory` raises.
    TypeError
        `dtype` holds Python objects; `filename` is neither a path nor a file.
    BlockingIOError
        Another region or store writes the file.
    OSError
        The file cannot be opened, or not be extended; what `PagedMemory` raises.

    Notes
    -----
    Changing ``numpy.memmap`` to ``pagemove.memmap`` in a program is enough, but for this: two
    arrays that write one file are refused, unless `lock` is False; changes that another process
    makes to the file are not seen in blocks that are resident; `isinstance` with `numpy.memmap` is
    False; and a forked child does not have the array. `flush` also makes changes durable, which
    msync does.

    Views are of the same class, and results are plain arrays, as with NumPy.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np, pagemove
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "table")
    ...     table = pagemove.memmap(path, dtype="f4", mode="w+", shape=(1000, 1000))
    ...     table[7] = 1.5
    ...     table.flush()
    ...     float(np.fromfile(path, "f4").sum()), table.mode, table.filename == path.resolve()
    (1500.0, 'w+', True)
    """

    __slots__ = ()
    _results_are_plain = True

    def __new__(
        cls,
        filename: Any,
        dtype: npt.DTypeLike = np.uint8,
        mode: MapMode = "r+",
        offset: int = 0,
        shape: Any = None,
        order: Literal["C", "F", "c", "f"] | None = "C",
        *,
        lock: bool = True,
        **paging: Unpack[ModelessOptions],
    ) -> Self:
        """Open the file, and make or extend it where the mode does that."""
        check_keywords("memmap", paging)
        wanted = _wanted(dtype, mode, offset, shape, order)
        with limits.named(), _opened(filename, wanted.mode) as file:
            sizes = _prepare(file, wanted, lock=lock)
            held: Mode = "r+" if wanted.mode == "w+" else wanted.mode
            with FileStore(file.path, writable=held == "r+", lock=lock) as store:
                store._is_new = wanted.mode == "w+" and not file.given
                how = in_order(paging, store.nbytes) if store._is_new else paging
                region = PagedMemory(store, mode=held, **how)
        region._forgettable = True
        region._origin = Origin(file.shown, wanted.offset, wanted.mode)
        in_file = sizes[::-1] if wanted.fortran else sizes
        array = region.asarray(wanted.dtype, in_file, wanted.offset).view(cls)
        return array.T if wanted.fortran else array

    @property
    def _mmap(self) -> Any:
        """What holds the memory, under the name that NumPy has for it; None of a copy."""
        return self.region


class _Wanted(NamedTuple):
    """Arguments that were checked."""

    dtype: np.dtype[Any]
    mode: Any
    offset: int
    sizes: tuple[int, ...] | None
    fortran: bool


class _File(NamedTuple):
    """A file that is open."""

    fd: int
    path: Path  # by which it can be opened again
    shown: str | Path | None
    given: bool  # an open file was passed: then it is not truncated


def _wanted(dtype: npt.DTypeLike, mode: str, offset: int, shape: Any, order: str | None) -> _Wanted:
    short = _LONG.get(mode, mode)
    if short not in _LONG.values():
        raise ValueError(f"mode must be one of {get_args(MapMode)}, not {mode!r}")
    if order in ("A", "K", "a", "k"):
        raise ValueError(
            f"order must be 'C' or 'F', not {order!r}, which keeps that of another array, and a "
            "file has none: pass 'C', which is what numpy.memmap takes it for"
        )
    if order not in ("C", "F", "c", "f", None):
        raise ValueError(f"order must be 'C' or 'F', not {order!r}")
    kind, start = np.dtype(dtype), operator.index(offset)
    if kind.hasobject:
        raise TypeError(
            f"dtype {kind} holds Python objects, which are pointers, and mean nothing in a file"
        )
    if start < 0:
        raise ValueError(f"offset must not be negative, not {start}")
    sizes = None
    if shape is not None:
        with contextlib.suppress(TypeError):
            shape = (operator.index(shape),)
        sizes = tuple(operator.index(size) for size in shape)
        if min(sizes, default=0) < -1 or sizes.count(-1) > 1:
            raise ValueError(f"shape {shape} has negative lengths; only one of them may be -1")
    if short == "w+" and (sizes is None or -1 in sizes):
        raise ValueError("shape must be given, and no length of it -1, if mode is 'w+'")
    return _Wanted(kind, short, start, sizes, order in ("F", "f"))


@contextlib.contextmanager
def _opened(filename: Any, mode: str) -> Iterator[_File]:
    """Open what was named, or take the descriptor of what is open."""
    if hasattr(filename, "read"):
        filename.seek(0, os.SEEK_END)  # which writes what is in its buffer
        fd, name = filename.fileno(), getattr(filename, "name", None)
        writes = mode in ("r+", "w+")
        if writes and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
            raise PermissionError(
                errno.EACCES, f"was not opened for reading and writing, and mode is {mode!r}", name
            )
        shown = os.path.abspath(name) if isinstance(name, str) else None
        yield _File(fd, Path(f"/proc/self/fd/{fd}"), shown, given=True)
        return
    try:
        text = os.fspath(filename)
    except TypeError:
        raise TypeError(
            f"filename must be a path or an open file, not {type(filename).__name__}"
        ) from None
    path = Path(os.fsdecode(text)).absolute()
    flags = {"r": os.O_RDONLY, "c": os.O_RDONLY, "r+": os.O_RDWR, "w+": os.O_RDWR | os.O_CREAT}
    fd = open_high(path, flags[mode] | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        is_path = isinstance(filename, os.PathLike)
        yield _File(fd, path, path.resolve() if is_path else os.path.abspath(path), given=False)
    finally:
        os.close(fd)


def _prepare(file: _File, wanted: _Wanted, *, lock: bool) -> tuple[int, ...]:
    """Empty or extend the file where the mode does; return the shape."""
    dtype, mode, offset, sizes, _ = wanted
    empties = mode == "w+" and not file.given
    length = 0 if empties else os.lseek(file.fd, 0, os.SEEK_END)
    if not length and mode in ("r", "c"):
        raise ValueError(f"cannot page an empty file: {file.shown or file.path}")
    sizes = _filled(sizes, dtype, length - offset, file)
    needed = offset + dtype.itemsize * math.prod(sizes)
    if needed > _LARGEST:
        raise ValueError(f"shape {sizes} of {dtype} from byte {offset} on is too large: {needed}")
    if length >= max(needed, 1):
        return sizes
    if mode in ("r", "c"):
        raise ValueError(
            f"{file.shown or file.path} has {length} bytes, and shape {sizes} of {dtype} from byte "
            f"{offset} on needs {needed}: only modes 'r+' and 'w+' extend a file"
        )
    # Not while another region or process writes it.
    held = FileLock(file.fd, file.path) if lock else None
    try:
        if empties:
            os.ftruncate(file.fd, 0)
        # One byte at least: there has to be something to page.
        os.ftruncate(file.fd, max(needed, 1))
    finally:
        if held is not None:
            held.close()
    return sizes


def _filled(
    sizes: tuple[int, ...] | None, dtype: np.dtype[Any], nbytes: int, file: _File
) -> tuple[int, ...]:
    """Return the shape, with what is left out taken from how many bytes there are."""
    if sizes is not None and -1 not in sizes:
        return sizes
    if nbytes < 0:
        raise ValueError(
            f"{file.shown or file.path} ends {-nbytes} bytes before its offset, which needs a "
            "shape: then modes 'r+' and 'w+' extend the file"
        )
    known = sizes or (-1,)
    row = dtype.itemsize * math.prod(size for size in known if size != -1)
    if not row or nbytes % row:
        raise ValueError(
            f"{nbytes} bytes of {file.shown or file.path} are not a multiple of the {row} that "
            f"{'an item' if sizes is None else f'shape {sizes}'} of {dtype} takes: give a shape"
        )
    return tuple(nbytes // row if size == -1 else size for size in known)
