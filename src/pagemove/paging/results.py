"""Where results of tasks are kept: `PagedData`."""

from __future__ import annotations

import math
import threading
import weakref
from collections import deque
from collections.abc import Iterator, MutableMapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pagemove.paging.options import Size
from pagemove.paging.region import PagedMemory
from pagemove.paging.sizes import nbytes_of


class PagedData(MutableMapping[Any, Any]):
    """A mapping whose arrays are in compressed paged memory, under a limit.

    It is for `distributed.Worker(data=...)`: large results of tasks are copied into it once, and
    blocks that have to leave memory are compressed, not pickled to disk. What is taken out are
    views of it: ordinary arrays, of which only what is touched comes back into memory.

    Parameters
    ----------
    resident_limit : int or str
        The most bytes of all arrays together in memory uncompressed.
    capacity : int or str
        Bytes of addresses, which cost nothing until they are used. What has no room there is kept
        as it is.
    at_least : int or str
        Smaller arrays, and all that are not arrays, are kept as they are.
    **paging
        As for `PagedMemory`: `block_size`, `prefetch` ...

    Raises
    ------
    ValueError
        A size is out of range.
    ImportError
        zstandard is not installed.
    OSError
        As `PagedMemory`.

    Notes
    -----
    Memory is free again when an array is deleted here and its last view has gone. What freed
    memory held stays compressed until it is used again. An array that is put in again, as it was
    taken out, is not copied.

    Examples
    --------
    >>> import numpy as np
    >>> import pagemove.dask
    >>> with pagemove.dask.PagedData(resident_limit="4MiB") as data:
    ...     data["x"] = np.arange(1_000_000)
    ...     total = int(data["x"].sum())
    >>> total
    499999500000
    """

    def __init__(
        self,
        resident_limit: Size = "1GiB",
        *,
        capacity: Size = "1TiB",
        at_least: Size = "1MiB",
        **paging: Any,
    ) -> None:
        self._least = nbytes_of(at_least, "at_least")
        self._region = PagedMemory(
            nbytes=nbytes_of(capacity, "capacity"), resident_limit=resident_limit, **paging
        )
        self._region._forgettable = True
        self._room = _Room(self._region.nbytes, self._region.block_size)
        self._values: dict[Any, Any] = {}

    @property
    def region(self) -> PagedMemory:
        """The memory, for its statistics."""
        return self._region

    def close(self) -> None:
        """Drop all, and free the memory.

        Raises
        ------
        BufferError
            Arrays of it are still in use.

        Examples
        --------
        >>> import pagemove.dask
        >>> data = pagemove.dask.PagedData(resident_limit="4MiB")
        >>> data["x"] = b"small"
        >>> data.close()
        >>> len(data)
        0
        """
        self._values.clear()
        self._region.close()

    def __enter__(self) -> PagedData:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getitem__(self, key: Any) -> Any:
        return self._values[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._values[key] = self._kept(value)

    def __delitem__(self, key: Any) -> None:
        del self._values[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def _kept(self, value: Any) -> Any:
        """Copy an array into the memory, if it is to be there."""
        if type(value) is not np.ndarray or value.dtype.hasobject or value.nbytes < self._least:
            return value
        if np.may_share_memory(value, np.frombuffer(memoryview(self._region), np.uint8)):
            return value
        at = self._room.take(value.nbytes)
        if at is None:
            return value
        whole = self._region.asarray(np.uint8, (value.nbytes,), at)
        # All views have this one as their base, and it goes with the last.
        base = np.frombuffer(whole.data, np.uint8)
        weakref.finalize(base, self._room.give, at, value.nbytes).atexit = False
        fortran = value.flags.f_contiguous and not value.flags.c_contiguous
        copy: npt.NDArray[Any] = np.ndarray(
            value.shape, value.dtype, base, order="F" if fortran else "C"
        )
        copy[...] = value
        copy.flags.writeable = value.flags.writeable
        return copy


class _Room:
    """Which ranges of a region are free: the first that is large enough is taken."""

    def __init__(self, nbytes: int, block_size: int) -> None:
        self._block_size = block_size
        self._free = [(0, nbytes // block_size * block_size)]
        self._lock = threading.Lock()
        # By finalizers, which may run at any moment, also while this thread has the lock.
        self._given: deque[tuple[int, int]] = deque()

    def _rounded(self, nbytes: int) -> int:
        return math.ceil(nbytes / self._block_size) * self._block_size

    def take(self, nbytes: int) -> int | None:
        size = self._rounded(nbytes)
        with self._lock:
            self._collect()
            for number, (start, end) in enumerate(self._free):
                if end - start >= size:
                    self._free[number] = (start + size, end)
                    return start
        return None

    def give(self, start: int, nbytes: int) -> None:
        self._given.append((start, start + self._rounded(nbytes)))

    def _collect(self) -> None:
        while self._given:
            self._free.append(self._given.popleft())
        self._free.sort()
        joined = self._free[:1]
        for start, end in self._free[1:]:
            if start == joined[-1][1]:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((start, end))
        self._free = joined
