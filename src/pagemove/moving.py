"""The call and its relatives: remap_anon_pages, move, move_many, unshare; mremap beside them."""

from __future__ import annotations

import errno
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np
import numpy.typing as npt

from pagemove._native import remap
from pagemove._native.mapping import Hold
from pagemove._native.remap import remap_anon_pages
from pagemove.diagnosis import Failure, check_arguments, check_mappings, explain, unsupported
from pagemove.errors import RemapError
from pagemove.introspect import PAGE_SIZE
from pagemove.mapping_moves import mremap
from pagemove.memory import spare_tail
from pagemove.sharing import unshare

__all__ = [
    "RAP_ALLOW_SRC_HOLES",
    "move",
    "move_many",
    "mremap",
    "remap_anon_pages",
    "unshare",
]

#: Skip holes in the source and count them as moved. The value of 2014; the kernel's own differs.
RAP_ALLOW_SRC_HOLES = 1

# A registration can be lost again while it is mended, if another thread maps over it: give up then.
_MENDINGS = 3

_CLOSED = (errno.EBADF, errno.ENOTTY)


@dataclass(frozen=True, slots=True)
class _Place:
    """Memory given as an address or as a buffer; `nbytes` is None for an address."""

    address: int
    nbytes: int | None
    buffer: object


@contextmanager
def _place(argument: object) -> Iterator[_Place]:
    if isinstance(argument, int | np.integer):
        yield _Place(int(argument), None, argument)
        return
    if isinstance(argument, np.generic):
        raise TypeError(f"{type(argument).__name__} is neither an address nor memory")
    with Hold(argument, True) as hold:
        yield _Place(hold.address, hold.nbytes, argument)


def _integer(name: str, value: object) -> int:
    if not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}")
    return int(value)


def _remap_with_care(dst: object, src: object, length: object, flags: object = 0) -> int:
    """Answer the calls of remap_anon_pages that are not simple or do not succeed."""
    nbytes, bits = _integer("length", length), _integer("flags", flags)
    with _place(dst) as at_dst, _place(src) as at_src:
        for name, place in (("dst", at_dst), ("src", at_src)):
            if place.nbytes is not None and nbytes > place.nbytes:
                raise ValueError(f"length {nbytes} exceeds the {place.nbytes} bytes of {name}")
        try:
            check_arguments(at_dst.address, at_src.address, nbytes, bits, RAP_ALLOW_SRC_HOLES)
            return _move_mending("remap_anon_pages", at_dst.address, at_src.address, nbytes, bits)
        except Failure as failure:
            raise failure.as_error("remap_anon_pages") from None


remap.set_fallback(_remap_with_care)


def _native_move(call: str, dst: int, src: int, length: int, flags: int) -> int:
    try:
        return remap.move(dst, src, length, flags)
    except OSError as error:
        raise unsupported(call, error.errno or errno.ENOSYS) from None


def _move_mending(call: str, dst: int, src: int, length: int, flags: int) -> int:
    """Move, registering the destination if it is not known yet. Raise `Failure`."""
    for _ in range(_MENDINGS):
        moved = _native_move(call, dst, src, length, flags)
        if moved > 0:
            return moved
        if -moved in _CLOSED:
            remap.reopen()
        elif moved == -errno.EINVAL:
            check_mappings(dst, src, length)
        else:
            break
    if -moved in (errno.EOPNOTSUPP, errno.ENOSYS):
        raise unsupported(call, -moved)
    raise explain(-moved, dst, src, length)


def _whole_pages(name: str, place: _Place) -> int:
    """Bytes of the buffer that can move: all, and the rest of its last page where that is its own."""
    assert place.nbytes is not None
    length = place.nbytes + spare_tail(place.buffer, place.address + place.nbytes)
    if place.address % PAGE_SIZE or length % PAGE_SIZE or not length:
        raise Failure(
            errno.EINVAL,
            place.address,
            f"{name} at {place.address:#x} with {place.nbytes} bytes is not made of whole pages of "
            f"{PAGE_SIZE} bytes: use Memory or pagemove.empty",
        )
    return length


@contextmanager
def _buffers(dst: object, src: object) -> Iterator[tuple[_Place, _Place]]:
    for name, argument in (("dst", dst), ("src", src)):
        if isinstance(argument, int | np.generic):
            raise TypeError(f"{name} must be a buffer, not the {type(argument).__name__} {argument}")
    with _place(dst) as at_dst, _place(src) as at_src:
        yield at_dst, at_src


def move(dst: object, src: object, *, holes: bool = False) -> int:
    """Move all pages of one buffer into another of the same length.

    Parameters
    ----------
    dst, src : writable C-contiguous buffer
        Whole pages, such as a `Memory`, or two arrays made by `empty` of equal `nbytes`, whose
        partial last page moves along.
    holes : bool
        Skip holes in the source and count them as moved.

    Returns
    -------
    int
        Bytes moved: all of them, in whole pages.

    Raises
    ------
    RemapError
        As `remap_anon_pages`; `.moved` bytes from the start were moved before it stopped.
    ValueError
        The buffers differ in length.
    BufferError, TypeError
        A buffer is read-only; an argument is not a C-contiguous buffer.

    Notes
    -----
    One system call where nothing stops it; see `remap_anon_pages`. Releases the GIL.

    Examples
    --------
    >>> import pagemove
    >>> a, b = pagemove.empty(1024), pagemove.empty(1024)
    >>> a[:] = 1
    >>> pagemove.move(b, a)
    8192
    """
    with _buffers(dst, src) as (at_dst, at_src):
        if at_dst.nbytes != at_src.nbytes:
            raise ValueError(f"dst has {at_dst.nbytes} bytes, src has {at_src.nbytes}")
        flags = RAP_ALLOW_SRC_HOLES if holes else 0
        moved = 0
        try:
            length = _whole_pages("dst", at_dst)
            _whole_pages("src", at_src)
            check_arguments(at_dst.address, at_src.address, length, flags, RAP_ALLOW_SRC_HOLES)
            while moved < length:
                moved += _move_mending(
                    "move",
                    at_dst.address + moved,
                    at_src.address + moved,
                    length - moved,
                    flags,
                )
        except Failure as failure:
            raise failure.as_error("move", moved=moved) from None
        return moved


def _indices(name: str, pages: npt.ArrayLike) -> npt.NDArray[np.int64]:
    array = np.asarray(pages)
    if array.size == 0 and not isinstance(pages, np.ndarray):
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, not {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"{name} must have one dimension, not {array.ndim}")
    if array.dtype == np.uint64:
        # As int64 these would come out negative, or worse, in range.
        big = np.flatnonzero(array > np.uint64(np.iinfo(np.int64).max))
        if big.size:
            raise IndexError(f"{name}[{big[0]}] = {array[big[0]]} is out of range")
    return np.require(array, np.dtype(np.int64), ["C", "A"])


def _check_range(name: str, pages: npt.NDArray[np.int64], limit: int) -> None:
    bad = remap.first_outside(pages.ctypes.data, pages.size, limit)
    if bad >= 0:
        raise IndexError(
            f"{name}[{bad}] = {pages[bad]} is out of range: the buffer has {limit} pages"
        )


def _page_count(name: str, place: _Place, unit: int) -> int:
    assert place.nbytes is not None
    if place.address % PAGE_SIZE:
        raise Failure(
            errno.EINVAL,
            place.address,
            f"{name} at {place.address:#x} is not page aligned: use Memory or pagemove.empty",
        )
    return (place.nbytes + spare_tail(place.buffer, place.address + place.nbytes)) // unit


def move_many(
    dst: object,
    src: object,
    dst_pages: npt.ArrayLike,
    src_pages: npt.ArrayLike,
    *,
    page_size: SupportsIndex = PAGE_SIZE,
    holes: bool = False,
) -> int:
    """Move many pages, each to a place of its own: page ``src_pages[i]`` to ``dst_pages[i]``.

    In order, as if page by page, although consecutive runs go by one system call.

    Parameters
    ----------
    dst, src : writable C-contiguous buffer
        Page aligned, such as a `Memory` or an array made by `empty`; they may be the same.
    dst_pages, src_pages : array of int, shape (n,)
        Page numbers within each buffer, any integer dtype. All are checked before the first page
        moves. Contiguous int64 arrays are used in place, others are converted (8 bytes an index).
    page_size : int
        Bytes of a page of the index arrays, a multiple of `PAGE_SIZE`.
    holes : bool
        Skip holes in the source and count them as moved.

    Returns
    -------
    int
        Bytes moved: ``n * page_size``.

    Raises
    ------
    RemapError
        As `remap_anon_pages`. `.index` is the position of the first page not (wholly) moved,
        `.moved` the bytes moved before it; nothing after it was tried.
    IndexError
        A page number is negative or beyond its buffer. Nothing was moved.
    ValueError
        The index arrays differ in length, or `page_size` is not a positive multiple of
        `PAGE_SIZE`. Nothing was moved.
    BufferError, TypeError
        A buffer is read-only; an argument is not a C-contiguous buffer, an index not an integer.

    Notes
    -----
    About a microsecond a scattered page and a tenth of that in runs of 16 and more; one TLB
    shootdown a run if another thread of the process runs. Releases the GIL for the whole loop.

    Examples
    --------
    >>> import numpy as np, pagemove
    >>> a, b = pagemove.empty((4, 512)), pagemove.empty((4, 512))
    >>> a[:] = np.arange(4)[:, None]
    >>> pagemove.move_many(b, a, [3, 2, 1, 0], [0, 1, 2, 3])
    16384
    >>> b[:, 0].tolist()
    [3.0, 2.0, 1.0, 0.0]
    """
    unit = operator.index(page_size)
    if unit <= 0 or unit % PAGE_SIZE:
        raise ValueError(f"page_size {unit} is not a positive multiple of {PAGE_SIZE}")
    to, of = _indices("dst_pages", dst_pages), _indices("src_pages", src_pages)
    if to.size != of.size:
        raise ValueError(f"dst_pages has {to.size} page numbers, src_pages has {of.size}")
    with _buffers(dst, src) as (at_dst, at_src):
        try:
            dst_limit = _page_count("dst", at_dst, unit)
            src_limit = _page_count("src", at_src, unit)
        except Failure as failure:
            raise failure.as_error("move_many", index=0) from None
        _check_range("dst_pages", to, dst_limit)
        _check_range("src_pages", of, src_limit)
        work = _Many(at_dst.address, at_src.address, unit, dst_limit, src_limit, to, of)
        return work.run(RAP_ALLOW_SRC_HOLES if holes else 0)


@dataclass(slots=True)
class _Many:
    """One call of move_many: its arguments, and how far it got."""

    dst: int
    src: int
    unit: int
    dst_limit: int
    src_limit: int
    dst_pages: npt.NDArray[np.int64]
    src_pages: npt.NDArray[np.int64]
    index: int = 0
    partial: int = 0
    moved: int = 0

    def run(self, flags: int) -> int:
        """Move them all, or raise."""
        stopped, mendings = (-1, 0), 0
        while code := self._go_on(flags):
            here = (self.index, self.partial)
            mendings = mendings + 1 if here == stopped else 1
            stopped = here
            try:
                self._mend(code, mendings)
            except Failure as failure:
                raise failure.as_error("move_many", moved=self.moved, index=self.index) from None
        return self.moved

    def _go_on(self, flags: int) -> int:
        try:
            code, self.index, self.partial, moved = remap.move_many(
                self.dst,
                self.src,
                self.unit,
                self.dst_limit,
                self.src_limit,
                self.dst_pages.ctypes.data,
                self.src_pages.ctypes.data,
                self.dst_pages.size,
                flags,
                self.index,
                self.partial,
            )
        except OSError as error:
            raise self._unsupported(error.errno or errno.ENOSYS) from None
        self.moved += moved
        return code

    def _unsupported(self, code: int) -> RemapError:
        return unsupported("move_many", code, moved=self.moved, index=self.index)

    def _mend(self, code: int, mendings: int) -> None:
        """Make it possible to go on, or raise why it is not."""
        to, of = int(self.dst_pages[self.index]), int(self.src_pages[self.index])
        inside = 0 <= to < self.dst_limit and 0 <= of < self.src_limit
        if code == errno.ERANGE or not inside:
            raise Failure(
                errno.EINVAL,
                None,
                f"an index array was changed while its pages moved: position {self.index} has page "
                f"{to} of {self.dst_limit} and {of} of {self.src_limit}; do not write to it",
            )
        if code in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise self._unsupported(code)
        dst = self.dst + to * self.unit + self.partial
        src = self.src + of * self.unit + self.partial
        length = self.unit - self.partial
        if mendings <= _MENDINGS:
            if code in _CLOSED:
                remap.reopen()
                return
            if code == errno.EINVAL:
                check_arguments(dst, src, length, 0, 0)
                check_mappings(dst, src, length)
                return
        raise explain(code, dst, src, length)


