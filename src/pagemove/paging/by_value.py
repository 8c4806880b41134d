"""How an array pickles by its items, a piece at a time: within the limit, and plain afterwards."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pagemove.paging.behind import check_open
from pagemove.paging.pins import pinned
from pagemove.paging.region import PagedMemory
from pagemove.paging.saving import PIECE, pieces
from pagemove.views import owner_behind


class Reduced:
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
    check_open(array)
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
    joined = Reduced(bytearray.join, (bytearray(), Reduced(list, (), None, parts)))
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
