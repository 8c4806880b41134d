"""Arrays to files and pickles piece by piece, whatever the limit: `save`, `tofile`, pickling."""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from pagemove.paging import gather
from pagemove.paging.behind import check_open, region_behind
from pagemove.paging.pins import pinned
from pagemove.paging.places import Runs, place_of, runs_of
from pagemove.paging.region import PagedMemory
from pagemove.paging.registry import region_at
from pagemove.paging.sizes import text_of
from pagemove.stores.file import FileStore
from pagemove.stores.parts import whole_of

PIECE = 1 << 20
# Bytes from which on it is worth it to ask for what follows.
_AHEAD = 1 << 16
# Bytes that are copied together however many blocks they are in.
_SCATTERED = 1 << 12


def save(
    path: str | os.PathLike[str] | IO[bytes], array: npt.ArrayLike, *, allow_pickle: bool = True
) -> None:
    """Save an array to a file in NumPy's format, as `numpy.save` does, piece by piece.

    The pieces are copies of 1 MiB: that works at any limit and with any privileges, where
    `numpy.save` hands the memory of the whole array to the kernel.

    Parameters
    ----------
    path : str, path-like or file object
        ``.npy`` is appended to a name that does not end with it. A file object needs nothing but
        ``write``.
    array : array_like
        Paged or not, of any layout and dtype.
    allow_pickle : bool
        Whether items that are Python objects may be pickled; else ValueError.

    Raises
    ------
    OSError
        It cannot be written; a note says how far it came.
    StoreError
        A block cannot be read; the note is there too.
    ValueError
        The array is closed. `allow_pickle` is False, and the array has Python objects; or the file
        is the one that the array is paged from, and cannot be replaced.

    Notes
    -----
    A file of that name is replaced when the new one is complete, and is as it was if that fails;
    so an array can be saved to the file that it is paged from, which its region keeps the old
    contents of. What is no ordinary file, has several hard links, or is in a folder that takes no
    new file, is written in place. Nothing is made durable.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np, pagemove
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "numbers.npy")
    ...     np.save(path, np.arange(1_000_000))
    ...     numbers = pagemove.open_array(path, resident_limit="1MiB")
    ...     pagemove.save(path.with_name("half.npy"), numbers[::2])
    ...     int(np.load(path.with_name("half.npy")).sum())
    249999500000
    """
    values = np.asanyarray(array)
    check_open(values)
    if not isinstance(path, str | os.PathLike):
        _save_to(path, values, allow_pickle)
        return
    name = os.fsdecode(os.fspath(path))
    name += "" if name.endswith(".npy") else ".npy"
    with _written(name, values) as file:
        _save_to(file, values, allow_pickle)


def tofile(array: npt.NDArray[Any], path: str | bytes | os.PathLike[Any] | IO[bytes]) -> None:
    """Write the items of an array, in C order and without a header, as `numpy.ndarray.tofile`."""
    check_open(array)
    if not isinstance(path, str | bytes | os.PathLike):
        _write_all(path, array, "C")
        return
    with _written(os.fsdecode(os.fspath(path)), array) as file:
        _write_all(file, array, "C")


def pieces(array: npt.NDArray[Any], order: str) -> Iterator[bytes]:
    """Copy the items of an array in C or F order, some at a time."""
    if not array.nbytes:
        return
    plain = np.asarray(array)
    if plain.dtype.names is not None:
        # Field by field, gaps between them would not be copied.
        plain = plain.view((np.void, plain.itemsize))
    region, _ = region_behind(plain)
    if region is not None:
        yield from _joined(_read(plain.T if order == "F" else plain, region))
        return
    for piece in np.nditer(
        plain,
        flags=["external_loop", "buffered", "zerosize_ok"],
        buffersize=max(PIECE // plain.itemsize, 1),
        order="F" if order == "F" else "C",
    ):
        yield piece.tobytes("C")  # type: ignore[attr-defined]


def _read(array: npt.NDArray[Any], region: PagedMemory) -> Iterator[bytes]:
    """Copy the items of an array in a region in C order.

    Parts are read before they are touched: a block that cannot be read is an exception then, and
    not SIGBUS. The next one is on its way while the caller writes.
    """
    parts = _parts(array, region)
    following = next(parts, None)
    while following is not None:
        part, runs = following
        with contextlib.ExitStack() as held:
            if not _pin(part, runs, region, held):
                gather.read_all(region, runs)
            copy = part.tobytes("C")
        following = next(parts, None)
        if following is not None and len(copy) >= _AHEAD:
            gather.read_together(region, following[1], wait=False)
        yield copy


def _pin(
    part: npt.NDArray[Any], runs: Runs, region: PagedMemory, held: contextlib.ExitStack
) -> bool:
    if int(runs[:, 1].sum()) * region.block_size > region.pinnable:
        return False
    try:
        held.enter_context(pinned(part, write=False))
    except ValueError:  # others have pinned too much meanwhile
        return False
    return True


def _parts(array: npt.NDArray[Any], region: PagedMemory) -> Iterator[tuple[npt.NDArray[Any], Runs]]:
    """Split an array, in C order, into views of at most a piece, with room for all their blocks.

    Not so that items which are far apart would be copied one by one: of these a part has blocks
    that there is not room for.
    """
    count, wanted = len(array) if array.ndim else 1, array.nbytes / PIECE
    if wanted <= 1:
        runs = runs_of(place_of(array), region.address, region.block_size)
        wanted = int(runs[:, 1].sum()) * region.block_size / region.gatherable
        if wanted <= 1 or array.nbytes <= _SCATTERED:
            yield array, runs
            return
    if not array.ndim:
        yield from _parts(array.reshape(1).view(np.uint8), region)
    elif count == 1:
        yield from _parts(array[0, ...], region)
    else:
        step = min(max(int(count / wanted), count * _SCATTERED // array.nbytes, 1), count - 1)
        for at in range(0, count, step):
            yield from _parts(array[at : at + step], region)


def _joined(copies: Iterator[bytes]) -> Iterator[bytes]:
    """Put small copies together to pieces."""
    some: list[bytes] = []
    size = 0
    for copy in copies:
        some.append(copy)
        size += len(copy)
        if size >= PIECE:
            whole = b"".join(some) if len(some) > 1 else copy
            yield whole[:PIECE]
            some = [whole[PIECE:]]
            size -= PIECE
    if size:
        yield b"".join(some)


def _save_to(file: IO[bytes], array: npt.NDArray[Any], allow_pickle: bool) -> None:
    fields = np.lib.format.header_data_from_array_1_0(array)
    head = None if array.dtype.hasobject else header_of(fields)
    if head is None:
        # Objects are pickled; a header in UTF-8 has no public function of its own.
        np.lib.format.write_array(_Sink(file), array, allow_pickle=allow_pickle)
        return
    _write(file, head)
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    _write_all(file, array, "F" if fortran else "C")


class _Sink:
    """No file of the operating system's: NumPy then copies what it writes to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        _write(self._file, data)
        return len(data)


def header_of(fields: dict[str, Any]) -> bytes | None:
    """Make the header of a .npy file; None: of version 3, for which NumPy has no function."""
    for write in (np.lib.format.write_array_header_1_0, np.lib.format.write_array_header_2_0):
        file = io.BytesIO()
        with contextlib.suppress(ValueError):
            write(file, fields)
            return file.getvalue()
    return None


def _write_all(file: IO[bytes], array: npt.NDArray[Any], order: str) -> None:
    done = 0
    try:
        for piece in pieces(array, order):
            _write(file, piece)
            done += len(piece)
    except OSError as error:
        error.add_note(
            f"{text_of(done)} of the {text_of(array.nbytes)} of the array were written before"
        )
        raise


def _write(file: IO[bytes], data: bytes) -> None:
    """Write all of it, also to a file without a buffer, which may take less."""
    left = memoryview(data)
    while left:
        taken = file.write(left)
        if taken is None or taken >= len(left):
            return
        left = left[taken:]


@contextlib.contextmanager
def _written(name: str, array: npt.NDArray[Any]) -> Iterator[IO[bytes]]:
    """Open a file that is to have the name when it is complete, or that has it already."""
    target = os.path.realpath(name)
    beside = os.path.join(os.path.dirname(target), f".pagemove-{os.urandom(8).hex()}.part")
    fd = make_beside(target, beside)
    if fd is None:
        _check_other(target, array)
        with open(name, "wb") as file:
            yield file
        return
    try:
        with open(fd, "wb") as file:
            yield file
        os.rename(beside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


def make_beside(target: str, beside: str) -> int | None:
    """Make the file that is to replace another, with its mode and owner; None: that cannot be."""
    try:
        was = os.stat(target)
    except OSError:
        was = None
    if was is not None and (not stat.S_ISREG(was.st_mode) or was.st_nlink > 1):
        return None
    try:
        if was is not None:
            os.close(os.open(target, os.O_WRONLY | os.O_CLOEXEC))  # whether that is permitted
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError:
        return None
    if was is None:
        return fd
    try:
        found = os.fstat(fd)
        if (found.st_uid, found.st_gid) != (was.st_uid, was.st_gid):
            os.fchown(fd, was.st_uid, was.st_gid)
        os.fchmod(fd, stat.S_IMODE(was.st_mode))
    except OSError:
        os.close(fd)
        os.unlink(beside)
        return None
    return fd


def _check_other(target: str, array: npt.NDArray[Any]) -> None:
    """Refuse to empty the file that the array's blocks come from."""
    region = region_at(array.__array_interface__["data"][0], 1)
    store = None if region is None else whole_of(region.store)[0]
    if isinstance(store, FileStore):
        with contextlib.suppress(OSError):
            if os.path.samefile(store.path, target):
                raise ValueError(
                    f"{target} is the file that the array is paged from, and cannot be replaced: "
                    "save under another name"
                )
