"""Arrays over memory with an owner: they keep it alive, and lead back to it."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    from typing_extensions import Buffer

Scalar = TypeVar("Scalar", bound=np.generic)
_Owner = TypeVar("_Owner")


def array_over(
    owner: Buffer,
    nbytes: int,
    dtype: npt.DTypeLike,
    shape: int | tuple[int, ...] | None,
    offset: int,
) -> npt.NDArray[Any]:
    """View the `nbytes` bytes of an owner as an array that keeps it alive, and open.

    C-contiguous; writable if the owner's buffer is. By default as many whole items in one dimension
    as there are from byte `offset` on. `ValueError` where that does not fit, `TypeError` for a
    dtype that holds Python objects.
    """
    kind = np.dtype(dtype)
    if kind.hasobject:
        raise TypeError(f"dtype {kind} holds Python objects, which this memory cannot keep")
    start = operator.index(offset)
    if not 0 <= start <= nbytes:
        raise ValueError(f"offset {start} is not within the {nbytes} bytes of the memory")
    if shape is None:
        if kind.itemsize == 0:
            raise ValueError(f"dtype {kind} has no size: pass a shape")
        shape = (nbytes - start) // kind.itemsize
    sizes = shape if isinstance(shape, tuple) else (shape,)
    needed = kind.itemsize * math.prod(operator.index(size) for size in sizes)
    if min(sizes, default=0) < 0 or start + needed > nbytes:
        raise ValueError(
            f"shape {shape} of {kind} from byte {start} on does not fit into {nbytes} bytes"
        )
    # frombuffer holds a buffer of the owner for as long as it lives; ndarray alone would keep the
    # object, but not keep it from being closed.
    if not needed:
        return np.ndarray(shape, kind, buffer=np.frombuffer(memoryview(owner), np.uint8))
    # What is behind an array is looked at: scipy.sparse copies one whose base has more items.
    items = needed // kind.base.itemsize
    whole = np.frombuffer(memoryview(owner), kind.base, items, start)
    return whole.reshape((*sizes, *kind.shape))


class Viewable:
    """What has memory of its own, with the buffer protocol, that arrays can be views of."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def nbytes(self) -> int:
            """Length in bytes."""

        def __buffer__(self, flags: int, /) -> memoryview: ...

    @overload
    def asarray(
        self,
        dtype: type[Scalar] | np.dtype[Scalar],
        shape: int | tuple[int, ...] | None = None,
        offset: int = 0,
    ) -> npt.NDArray[Scalar]: ...
    @overload
    def asarray(
        self,
        dtype: npt.DTypeLike,
        shape: int | tuple[int, ...] | None = None,
        offset: int = 0,
    ) -> npt.NDArray[Any]: ...
    def asarray(
        self,
        dtype: npt.DTypeLike,
        shape: int | tuple[int, ...] | None = None,
        offset: int = 0,
    ) -> npt.NDArray[Any]:
        """View the memory as an array that keeps it alive.

        Parameters
        ----------
        dtype : dtype
            Any but those that hold Python objects.
        shape : int or tuple of int, optional
            By default as many whole items in one dimension as there are from `offset` on.
        offset : int
            Bytes before the first item.

        Returns
        -------
        numpy.ndarray
            C-contiguous; writeable unless it is a `PagedMemory` of mode ``"r"``. No copy, and
            nothing is read by making it.

        Raises
        ------
        ValueError
            Shape and offset do not fit into the memory, or it is closed, or belongs to the parent.
        TypeError
            `dtype` holds Python objects.

        Examples
        --------
        >>> import numpy as np
        >>> import pagemove
        >>> with pagemove.Memory(4096) as memory:
        ...     numbers = memory.asarray(np.int32, (2, 3), offset=8)
        ...     numbers[:] = 7
        ...     int(memory.asarray(np.int32)[2:].sum())
        ...     del numbers
        42
        """
        return array_over(self, self.nbytes, dtype, shape, offset)


def owner_behind(buffer: object, kind: type[_Owner]) -> _Owner | None:
    """Find the object of a class whose bytes an array, a view or a memoryview shows, if any."""
    seen = buffer
    while not isinstance(seen, kind):
        if isinstance(seen, np.ndarray):
            seen = seen.base
        elif isinstance(seen, memoryview):
            seen = seen.obj
        else:
            return None
    return seen
