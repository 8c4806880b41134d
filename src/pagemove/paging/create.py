"""New arrays larger than memory: `create_array`."""

from __future__ import annotations

import contextlib
import math
import operator
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pagemove import limits
from pagemove.paging.array import Origin, PagedArray
from pagemove.paging.budget import Budget
from pagemove.paging.options import check_keywords, check_store, is_size
from pagemove.paging.region import PagedMemory
from pagemove.paging.saving import PIECE, header_of, make_beside
from pagemove.paging.sizes import nbytes_of
from pagemove.paging.sources import Source
from pagemove.stores.base import Store, write_whole
from pagemove.stores.descriptors import open_high
from pagemove.stores.file import FileStore
from pagemove.stores.filelock import FileLock

if TYPE_CHECKING:
    from typing import Unpack

    from pagemove.paging.options import ModelessOptions

_LARGEST = 2**63 - 1
# Names that say how bytes are laid out, and what they say.
_CONTAINERS = {
    ".npz": "an npz archive",
    ".safetensors": "safetensors",
    ".gguf": "GGUF",
    ".h5": "HDF5",
    ".hdf5": "HDF5",
    ".nc": "netCDF",
    ".arrow": "Arrow",
    ".feather": "Feather",
    ".parquet": "Parquet",
    ".zarr": "zarr",
}
_ALIGNMENT = np.lib.format.ARRAY_ALIGN
# Bytes of a block, and how many there should be. One that leaves past the page cache goes to the
# disk straight from its frame: huge pages make that one piece, where 256 KiB took up to twice as
# long. One that is copied into the page cache is written up to twice as fast if it stays in the
# cache of a processor meanwhile.
_HUGE, _FEWEST_HUGE = 2 << 20, 48
_BLOCK, _FEWEST_BLOCKS = 256 << 10, 64


def create_array(
    path: str | os.PathLike[str] | Store,
    shape: int | Sequence[int],
    dtype: npt.DTypeLike,
    *,
    order: Literal["C", "F", "c", "f"] | None = "C",
    fill: Any = None,
    **paging: Unpack[ModelessOptions],
) -> PagedArray:
    """Make a new array in a file, of any size, and open it to be written.

    Parameters
    ----------
    path : str, path-like or Store
        The file to be made. A name that ends with ``.npy`` gets NumPy's format, any other the items
        alone. Or a writable store that is long enough, for the items alone.
    shape : int or sequence of int
        Of the array.
    dtype : dtype
        Of the items; not Python objects.
    order : {"C", "F"} or None
        Of the axes in the file; None, as for `numpy.empty`, is ``"C"``. Small letters will do;
        ``"A"`` and ``"K"``, which keep the order of another array, are refused, as there.
    fill : scalar, optional
        What all items are at first; by default zero. (In a store by default what it has.)
    **paging
        As for `PagedMemory`, but for `mode`, which is ``"r+"``: `resident_limit`, `block_size` ...
        By default blocks of a file have a size that suits writing in order: 2 MiB where
        `resident_limit` is at least 96 MiB and less than the array, else 256 KiB where it has room
        for 64 of them. Small ones suit single items.

    Returns
    -------
    PagedArray
        Writeable. `flush` makes what was written durable; when the last view goes it is flushed
        too.

    Raises
    ------
    ValueError
        `shape`, `order` or `fill` cannot be; more bytes than a file can have; the store is too
        short, or read-only; `path` is not an ordinary file; what `PagedMemory` raises.
    TypeError
        `dtype` holds Python objects; `path` is neither a path nor a store.
    BlockingIOError
        Another region or store writes the file that is there.
    OSError
        The file cannot be made (no permission, no room, larger than the file system or a limit
        allows); what `PagedMemory` raises.

    Notes
    -----
    The file takes room on the disk as it is written, and what was not is a hole. Holes are not
    read: the first touch of a block costs no I/O (on ext4, XFS, Btrfs, F2FS, bcachefs and tmpfs).
    So a full disk is noticed when blocks are written, by `flush` at the latest. A `fill` other than
    zero is written at once.

    Blocks of a file that is larger than `resident_limit` are written past the page cache (O_DIRECT,
    where the file system has it): a copy of each there would take the memory that the limit denies,
    and most of the time that writing takes. So who reads it next reads the disk.

    The file is made under another name, ``.pagemove-*.part`` in the same folder, and takes its own
    when it is whole and the array is open. If it cannot be made, or the process is killed before,
    a file of that name is as it was. Otherwise it is replaced: who has it open keeps the old one;
    its mode and owner stay. A file that has several hard links, or is in a folder that takes no new
    file, is emptied and made in place, its header last.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np, pagemove
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "table.npy")
    ...     table = pagemove.create_array(path, (1 << 20, 256), "f4", resident_limit="1MiB")
    ...     table[12345] = 1
    ...     table.flush()
    ...     on_disk = path.stat().st_blocks * 512
    ...     table.nbytes >> 20, on_disk < 1 << 20, float(np.load(path, mmap_mode="r")[12345].sum())
    (1024, True, 256.0)
    """
    if "mode" in paging:
        raise TypeError("mode is not for a new array, which is always writeable (mode 'r+')")
    check_keywords("create_array", paging)
    layout = _wanted(shape, dtype, order, fill)
    if isinstance(path, Store):
        return _in_store(path, layout, paging)
    if not isinstance(path, str | os.PathLike):
        check_store(path)  # which says why not
    source = Source(os.fsdecode(path))
    if source.path is None:
        raise ValueError(f"{source} is not a path: open a store that can be written, and pass that")
    return _in_file(source.path, layout, paging)


class _Layout(NamedTuple):
    """How the array is to lie in the file."""

    dtype: np.dtype[Any]
    sizes: tuple[int, ...]
    fortran: bool
    item: npt.NDArray[Any] | None  # what all are at first

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.sizes)

    def pieces(self) -> Iterator[bytes]:
        """Make what all of it is at first, some at a time."""
        size = self.dtype.itemsize
        count, most = math.prod(self.sizes), max(PIECE // max(size, 1), 1)
        piece = np.full(min(count, most), self.item, self.dtype).tobytes()
        for first in range(0, count, most):
            yield piece[: min(most, count - first) * size]


def _wanted(shape: Any, dtype: npt.DTypeLike, order: str | None, fill: Any) -> _Layout:
    if order in ("A", "K", "a", "k"):
        raise ValueError(
            f"order must be 'C' or 'F', not {order!r}, which keeps that of another array, and a "
            "new one is made of none: pass 'F' if that array is Fortran-contiguous, else 'C'"
        )
    if order not in ("C", "F", "c", "f", None):
        raise ValueError(f"order must be 'C' or 'F', not {order!r}")
    kind = np.dtype(dtype)
    if kind.hasobject:
        raise TypeError(
            f"dtype {kind} holds Python objects, which are pointers, and mean nothing in a file"
        )
    with contextlib.suppress(TypeError):
        shape = (operator.index(shape),)
    sizes = tuple(map(operator.index, shape))
    if min(sizes, default=0) < 0:
        raise ValueError(f"negative dimension in shape {sizes}: a new array has all its lengths")
    # As for other new arrays, those of a subarray are lengths of the whole.
    kind, sizes = kind.base, (*sizes, *kind.shape)
    if kind.itemsize == 0:
        raise ValueError(f"dtype {kind} has no size: say how long items are, as in 'S10'")
    item = None
    if fill is not None:
        item = np.zeros((), kind)
        try:
            item[...] = fill
        except ValueError as error:
            raise ValueError(f"fill {fill!r} is not an item of {kind}: {error}") from None
    layout = _Layout(kind, sizes, order in ("F", "f") and len(sizes) > 1, item)
    if layout.nbytes > _LARGEST - (1 << 20):
        raise ValueError(
            f"shape {sizes} of {kind} is too large: {layout.nbytes} bytes are more than a file has"
        )
    return layout


def _in_store(store: Store, layout: _Layout, paging: ModelessOptions) -> PagedArray:
    check_store(store, "r+")
    if layout.nbytes > store.nbytes:
        raise ValueError(
            f"{store!r} has {store.nbytes} bytes, and shape {layout.sizes} of {layout.dtype} needs "
            f"{layout.nbytes}"
        )
    # One that keeps what is written in its process could not be handed over after it.
    if layout.item is not None and store.restartable:
        done = 0
        for piece in layout.pieces():
            write_whole(store, done, piece)
            done += len(piece)
        store.flush()
    region = PagedMemory(store, mode="r+", **paging)
    region._forgettable = True
    if isinstance(store, FileStore):
        region._origin = Origin(store.path, 0, "r+")
    array = _array(region, layout, 0)
    if layout.item is not None and not store.restartable:
        array[...] = layout.item
    return array


def _in_file(path: str, layout: _Layout, paging: ModelessOptions) -> PagedArray:
    suffix = os.path.splitext(path)[1].lower()
    if suffix in _CONTAINERS:
        raise ValueError(
            f"{path!r} would hold raw items, which nothing opens as {_CONTAINERS[suffix]}: name it "
            ".npy, or make it with the library that owns the format and open it with open_arrays"
        )
    # Through symbolic links, also one that leads nowhere yet.
    target = os.path.realpath(path)
    head = _header(layout) if path.lower().endswith(".npy") else b""
    with limits.named(), _making(target) as making:
        # One byte at least: there has to be something to page.
        _named(os.ftruncate, making.fd, max(len(head) + layout.nbytes, 1), path=target)
        if layout.item is not None and layout.item.tobytes().strip(b"\0"):
            done = len(head)
            for piece in layout.pieces():
                _write(making.fd, piece, done, target)
                done += len(piece)
        with FileStore(making.name, writable=True) as store:
            store._call(target)
            store._is_new = True
            making.unlock()
            region = PagedMemory(store, mode="r+", **in_order(paging, store.nbytes))
        region._forgettable = True
        region._origin = Origin(store.path, len(head), "r+")
        try:
            # What does not begin with it is no file of NumPy's.
            _write(making.fd, head, 0, target)
            _named(os.fsync, making.fd, path=target)
            making.take_place()
        except BaseException:
            region.close()
            raise
        return _array(region, layout, len(head))


def in_order(paging: ModelessOptions, size: int) -> ModelessOptions:
    """Choose blocks that suit writing so many bytes in order, if the limit has room for many."""
    limit = paging.get("resident_limit")
    if "block_size" in paging:
        return paging
    if is_size(limit):
        nbytes = nbytes_of(limit, "resident_limit")
    else:
        nbytes = limit.limit if isinstance(limit, Budget) else _LARGEST
    if _FEWEST_HUGE * _HUGE <= nbytes < size:
        return {**paging, "block_size": _HUGE}
    return paging if nbytes < _FEWEST_BLOCKS * _BLOCK else {**paging, "block_size": _BLOCK}


def _array(region: PagedMemory, layout: _Layout, offset: int) -> PagedArray:
    in_file = layout.sizes[::-1] if layout.fortran else layout.sizes
    array = region.asarray(layout.dtype, in_file, offset).view(PagedArray)
    return array.T if layout.fortran else array


def _header(layout: _Layout) -> bytes:
    """Make the header, as long as a multiple of what the items may have to be aligned to."""
    fields = {
        "descr": np.lib.format.dtype_to_descr(layout.dtype),
        "fortran_order": layout.fortran,
        "shape": layout.sizes,
    }
    head = header_of(fields)
    if head is None:
        text = repr(fields).encode() + b"\n"
        magic = np.lib.format.magic(3, 0)
        length = len(text) + -(len(magic) + 4 + len(text)) % _ALIGNMENT
        head = magic + length.to_bytes(4, "little") + text[:-1].ljust(length - 1) + b"\n"
    return head


class _Making:
    """A file that is being made, and its name for as long as it is."""

    def __init__(self, fd: int, name: str, target: str, held: FileLock | None) -> None:
        self.fd = fd
        self.name = name
        self.placed = False
        self._target = target
        self._held = held

    def unlock(self) -> None:
        """Let the region have the lock, where it is this very file that was locked."""
        if self.name == self._target and self._held is not None:
            self._held.close()

    def take_place(self) -> None:
        """Take the name that it is to have, and have that durable."""
        if self.name != self._target:
            os.rename(self.name, self._target)
        self.placed = True
        from pagemove.stores.replacement import sync_directory  # and zlib

        sync_directory(Path(self._target))


@contextlib.contextmanager
def _making(target: str) -> Iterator[_Making]:
    """Make an empty file beside another, or empty the other where that cannot be.

    By the end it has taken its place, or is removed; what was emptied is empty.
    """
    with contextlib.ExitStack() as stack:
        held = _locked(target, stack)
        beside = os.path.join(os.path.dirname(target), f".pagemove-{os.urandom(8).hex()}.part")
        fd = make_beside(target, beside)
        if fd is None:
            beside, fd = target, open_high(target, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK)
        stack.callback(os.close, fd)
        making = _Making(fd, beside, target, held)
        try:
            os.ftruncate(fd, 0)
            yield making
        finally:
            if not making.placed:
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, 0)
                    if beside != target:
                        os.unlink(beside)


def _locked(target: str, stack: contextlib.ExitStack) -> FileLock | None:
    """Lock the existing file; refuse what is no file, and one that is being written."""
    try:
        kind = os.stat(target).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise ValueError(
            f"{target} is not an ordinary file, and cannot be replaced by one: name another, or "
            "pass FileStore(path, writable=True)"
        )
    fd = open_high(target, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
    stack.callback(os.close, fd)
    try:
        held = FileLock(fd, Path(target))
    except BlockingIOError as error:
        who = str(error.strerror).partition(": ")[0]
        raise BlockingIOError(
            error.errno, f"{who}: close it there first, or name another file", target
        ) from None
    stack.callback(held.close)
    return held


def _write(fd: int, data: bytes, offset: int, path: str) -> None:
    view = memoryview(data)
    while view:
        put = _named(os.pwrite, fd, view, offset, path=path)
        view, offset = view[put:], offset + put


def _named(call: Any, *arguments: Any, path: str) -> Any:
    """Have what it raises name the file."""
    try:
        return call(*arguments)
    except OSError as error:
        error.filename = path
        raise
