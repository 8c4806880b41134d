"""remap_anon_pages and move: whole ranges; they fix a lost registration and explain failures."""

from __future__ import annotations

import errno

import numpy as np

from pagemove._native import remap
from pagemove._native.remap import remap_anon_pages
from pagemove.calls.arguments import Place, check_arguments
from pagemove.calls.explain import explain, unsupported
from pagemove.calls.failure import Failure
from pagemove.calls.mappings import prepare
from pagemove.registration import CLOSED, reopen

__all__ = ["RAP_ALLOW_SRC_HOLES", "move", "remap_anon_pages"]

#: Skip holes in the source and count them as moved. The value of 2014; the kernel's own differs.
RAP_ALLOW_SRC_HOLES = 1

# A registration can be lost again while it is fixed, if another thread maps over it or closes
# the descriptor. If the mappings are to blame, registering them raises at once.
MOST_REGISTRATIONS = 20


def _integer(name: str, value: object) -> int:
    if not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}")
    return int(value)


def _remap_with_care(dst: object, src: object, length: object, flags: object = 0) -> int:
    """Answer the calls of remap_anon_pages that are not simple or do not succeed."""
    nbytes, bits = _integer("length", length), _integer("flags", flags)
    with Place(dst) as at_dst, Place(src) as at_src:
        for name, at in (("dst", at_dst), ("src", at_src)):
            if at.nbytes is not None and nbytes > at.nbytes:
                raise ValueError(f"length {nbytes} exceeds the {at.nbytes} bytes of {name}")
        try:
            check_arguments(at_dst.address, at_src.address, nbytes, bits, RAP_ALLOW_SRC_HOLES)
            return _move_registering(
                "remap_anon_pages", at_dst.address, at_src.address, nbytes, bits
            )
        except Failure as failure:
            raise failure.as_error("remap_anon_pages") from None


remap.set_fallback(_remap_with_care)


def _native_move(call: str, dst: int, src: int, length: int, flags: int) -> int:
    try:
        return remap.move(dst, src, length, flags)
    except OSError as error:
        raise unsupported(call, error.errno or errno.ENOSYS) from None


def _move_registering(call: str, dst: int, src: int, length: int, flags: int) -> int:
    """Move, registering the destination if it is not known yet. Raise `Failure`."""
    for _ in range(MOST_REGISTRATIONS):
        moved = _native_move(call, dst, src, length, flags)
        if moved > 0:
            return moved
        if -moved in CLOSED:
            reopen()
        elif moved == -errno.EINVAL:
            prepare(dst, src, length)
        else:
            break
    if -moved in (errno.EOPNOTSUPP, errno.ENOSYS):
        raise unsupported(call, -moved)
    raise explain(-moved, dst, src, length)


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
    with Place(dst) as at_dst, Place(src) as at_src:
        flags = RAP_ALLOW_SRC_HOLES if holes else 0
        moved = 0
        try:
            length, other = at_dst.whole_pages("dst"), at_src.whole_pages("src")
            if at_dst.nbytes != at_src.nbytes or length != other:
                raise ValueError(f"dst has {at_dst.nbytes} bytes, src has {at_src.nbytes}")
            check_arguments(at_dst.address, at_src.address, length, flags, RAP_ALLOW_SRC_HOLES)
            while moved < length:
                moved += _move_registering(
                    "move",
                    at_dst.address + moved,
                    at_src.address + moved,
                    length - moved,
                    flags,
                )
        except Failure as failure:
            raise failure.as_error("move", moved=moved) from None
        return moved
