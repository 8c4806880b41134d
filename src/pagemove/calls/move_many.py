"""move_many: many pages, each to a place of its own."""

from __future__ import annotations

import errno
import operator
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np
import numpy.typing as npt

from pagemove._native import remap
from pagemove.calls.arguments import Place, check_arguments
from pagemove.calls.explain import explain, unsupported
from pagemove.calls.failure import Failure
from pagemove.calls.mappings import prepare
from pagemove.calls.remap import MOST_REGISTRATIONS, RAP_ALLOW_SRC_HOLES
from pagemove.errors import RemapError
from pagemove.introspect import PAGE_SIZE
from pagemove.registration import CLOSED, reopen


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
    if array.dtype == np.int64 and array.flags.c_contiguous and array.flags.aligned:
        return array
    return array.astype(np.int64)


def _held(name: str, pages: npt.NDArray[np.int64], limit: int) -> remap.Indices:
    held = remap.Indices(pages)
    bad = held.first_outside(limit)
    if bad >= 0:
        raise IndexError(
            f"{name}[{bad}] = {pages[bad]} is out of range: the buffer has {limit} pages"
        )
    return held


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
    with Place(dst) as at_dst, Place(src) as at_src:
        try:
            dst_limit = at_dst.own_nbytes("dst") // unit
            src_limit = at_src.own_nbytes("src") // unit
        except Failure as failure:
            raise failure.as_error("move_many", index=0) from None
        work = _Many(
            at_dst.address,
            at_src.address,
            unit,
            dst_limit,
            src_limit,
            to,
            of,
            _held("dst_pages", to, dst_limit),
            _held("src_pages", of, src_limit),
        )
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
    held_dst_pages: remap.Indices
    held_src_pages: remap.Indices
    index: int = 0
    partial: int = 0
    moved: int = 0

    def run(self, flags: int) -> int:
        """Move them all, or raise."""
        stopped, retries = (-1, 0), 0
        while code := self._go_on(flags):
            here = (self.index, self.partial)
            retries = retries + 1 if here == stopped else 1
            stopped = here
            try:
                self._fix(code, retries)
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
                self.held_dst_pages,
                self.held_src_pages,
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

    def _fix(self, code: int, retries: int) -> None:
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
        if retries <= MOST_REGISTRATIONS:
            if code in CLOSED:
                reopen()
                return
            if code == errno.EINVAL:
                check_arguments(dst, src, length, 0, 0)
                prepare(dst, src, length)
                return
        raise explain(code, dst, src, length)
