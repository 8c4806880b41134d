"""The blocks of a region: read ahead, taken out, saved and counted, as the program asks."""

from __future__ import annotations

import operator
import os
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex

from pagemove._native.pager import Pager
from pagemove.paging import failures
from pagemove.paging.sizes import span
from pagemove.stores.base import Store

if TYPE_CHECKING:
    from pagemove.paging.stats import PagingStats


class Blocks(Pager):
    """What a program asks of the blocks of a `PagedMemory`, which adds how it begins and ends."""

    _label: str
    _store: Store
    _told: int  # sequence number of the first failure that no flush has told of
    _record: str | os.PathLike[str] | None
    _sealed: bool  # it is being closed, or saving has failed then

    # The pager's methods take ranges as they are; these are what callers should be asked for.
    def prefetch(  # type: ignore[override]
        self, offset: Any = 0, length: SupportsIndex | None = None, *, wait: bool = False
    ) -> None:
        """Read blocks before they are touched.

        Parameters
        ----------
        offset, length : int
            Bytes; by default all from `offset` on. No more is read than the limit has room for.
            Instead of an offset, an array of offsets, each of which `length` bytes are read from,
            by default one: the block that has it. Or a view of the region, strided ones too: its
            blocks are read.
        wait : bool
            Return when the blocks are there, or could not be read. Else at once.

        Raises
        ------
        StoreError
            With `wait`: a block of the range cannot be read. The first of them ends the call, after
            `store_timeout` seconds; what was read until then stays.
        ValueError
            The range is not within the region; the region is closed.

        Examples
        --------
        >>> import pagemove
        >>> with pagemove.PagedMemory(nbytes=1 << 20) as region:
        ...     region.prefetch(0, region.block_size, wait=True)
        ...     region.stats().prefetched
        1
        """
        many = not isinstance(offset, SupportsIndex) or bool(getattr(offset, "ndim", None))
        if many:
            from pagemove.paging import gather  # which the other kind does without

            size = None if length is None else operator.index(length)
            gather.read_together(self, gather.runs_in(self, offset, size), wait)
            return
        start, count = span(self.nbytes, offset, length)
        with memoryview(self):
            first = failures.next_sequence(self)
            code = super().prefetch(start, count, wait) if count else 0
            if wait:
                blocks = range(start - self.block_size + 1, start + count)
                failures.check_read(self, code, first, blocks, self._label)

    def evict(  # type: ignore[override]
        self, offset: SupportsIndex = 0, length: SupportsIndex | None = None
    ) -> None:
        """Take blocks out of memory, after writing back those that were changed.

        The next touch reads them again; also those that could not be read before.

        Parameters
        ----------
        offset, length : int
            Bytes; by default all from `offset` on. Every block that has a byte of them goes, but
            for those that are `pinned`, and those of compressed memory that count as stored where
            they are and have no room elsewhere.

        Raises
        ------
        StoreError
            A block cannot be written back. It stays in memory.
        ValueError
            The range is not within the region; the region is closed.

        Examples
        --------
        >>> import pagemove
        >>> with pagemove.PagedMemory(nbytes=1 << 20) as region:
        ...     region.prefetch(wait=True)
        ...     region.evict()
        ...     region.stats().resident_nbytes
        0
        """
        start, count = span(self.nbytes, offset, length)
        with memoryview(self):
            if count:
                first = failures.next_sequence(self)
                code = super().evict(start, count)
                failures.check_saved(self, code, first, "write", self._label)

    def flush(self) -> None:  # type: ignore[override]
        """Make durable in the store what was changed before the call; return when it is.

        Nothing to do in modes ``"r"`` and ``"c"``, but to raise what follows. Changed blocks that
        are `pinned` are written too, and still count as changed afterwards.

        Raises
        ------
        StoreError
            A block could not be written, or the store could not make it durable: nothing is lost,
            flush again. Or, once for each, blocks could not be read since the last flush. More than
            one: the others are in the exception's notes. Or the program has closed the descriptors
            that the library keeps: what was changed before is saved all the same where it can be,
            but the region is not there any more.
        ValueError
            The region is closed.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> import numpy as np, pagemove
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "numbers")
        ...     np.zeros(1000).tofile(path)
        ...     numbers = pagemove.open_array(path, dtype=float, mode="r+")
        ...     numbers[5] = 5
        ...     pagemove.region_of(numbers).flush()
        ...     float(np.fromfile(path)[5])
        5.0
        """
        with memoryview(self):
            if not self._save():
                self._throw_lost()
            first, self._told = self._told, failures.next_sequence(self)
            reads = [each for each in failures.noted(self, first) if each.operation == "read"]
            if reads:
                failures.throw(reads, 0, "read", self._label)

    def record(self, path: str | os.PathLike[str]) -> None:  # type: ignore[override]
        """Remember from now on in which order blocks are needed; write that down at `close`.

        A region over the same bytes that is made with ``replay=path`` reads them ahead in that
        order: the cure for cold starts where the order is no sequence.

        Parameters
        ----------
        path : path-like
            Of the file: a .npy of offsets in bytes. It is replaced as a whole.

        Raises
        ------
        ValueError
            The region is closed.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> import numpy as np, pagemove
        >>> from pagemove.stores import FileStore
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data, order = pathlib.Path(folder, "data"), pathlib.Path(folder, "order.npy")
        ...     np.zeros(100_000).tofile(data)
        ...     with FileStore(data) as store, pagemove.PagedMemory(store) as region:
        ...         region.record(order)
        ...         first = bytes(memoryview(region)[500_000:500_001])
        ...     with FileStore(data) as store, pagemove.PagedMemory(store, replay=order):
        ...         int(np.load(order)[0]) == 500_000 // region.block_size * region.block_size
        True
        """
        with memoryview(self):
            super().record()
            self._record = path

    def stats(self) -> PagingStats:
        """Return what the region has done so far, and what it holds.

        Returns
        -------
        PagingStats
            The difference of two says what happened in between.

        Raises
        ------
        ValueError
            The region is closed.

        Examples
        --------
        >>> import pagemove
        >>> with pagemove.PagedMemory(nbytes=1 << 20) as region:
        ...     before = region.stats()
        ...     region.prefetch(wait=True)
        ...     (region.stats() - before).bytes_read
        1048576
        """
        from pagemove.paging.counts import stats_of  # see there

        return stats_of(self)

    def _save(self) -> bool:
        """Write changes back and make them durable; StoreError.

        Returns
        -------
        bool
            False for a region that is lost, though its changes are saved.
        """
        first = failures.next_sequence(self)
        code = super().flush()
        if code < 0:
            return False
        if code and self.lost and not self._sealed:
            self._throw_lost(saved=False)
        failures.check_saved(self, code, first, "flush", self._label)
        return True

    def _throw_lost(self, saved: bool = True) -> NoReturn:
        if self._sealed:
            failures.throw_sealed(self._label)
        failures.throw_lost(self._label, self.counters()["dirty"], saved=saved)
