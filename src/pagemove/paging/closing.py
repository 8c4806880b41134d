"""How a region ends: what is saved, who is told of what is not, and what is waited for."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from pagemove import children
from pagemove._native.mapping import generation
from pagemove.paging import failures, hosts, working_set
from pagemove.paging.blocks import Blocks
from pagemove.paging.budget import give_back_kept
from pagemove.paging.exits import tell

if TYPE_CHECKING:
    from pagemove.stores.filelock import FileLock

# Seconds that close waits for calls of other threads.
_CALLED = 0.2
_sharing = threading.RLock()


def _in_child() -> None:
    # A thread that is not here may have had it.
    global _sharing
    _sharing = threading.RLock()


children.first_do(_in_child)


class Closing(Blocks):
    """The end of a `PagedMemory`, which adds how it begins."""

    _file_lock: FileLock | None
    _saves: bool  # whether what was changed outlives the region
    _unsaved: bool  # whether that was said already, at the end of it all
    _forgettable: bool  # no ResourceWarning if it is never closed
    # First byte, and one after the last, of each array of a file that is not closed, where the
    # region is that of all of them. None: it is that of one array.
    _shares: set[tuple[int, int]] | None
    _closer: tuple[int, threading.RLock] | None = None
    _is_common: bool  # arrays that know nothing of each other share it
    _pins: dict[object, tuple[int, int]]  # bytes that are pinned: offset, length
    _lent_to: Callable[[], Any]  # returns what hands it over to another process, or None

    def close(self) -> None:
        """Flush, and free the memory. Twice is fine.

        Raises
        ------
        StoreError
            Changes could not be saved. The region stays open, with all of them: fix the store and
            close it again.
        BufferError
            Arrays or memoryviews of it are still in use.

        Examples
        --------
        >>> import pagemove
        >>> region = pagemove.PagedMemory(nbytes=1 << 20)
        >>> region.close()
        >>> region.closed
        True
        """
        with self._turn():
            self._close_unused()

    def _turn(self) -> threading.RLock:
        """Return what is held while it is closed: the calls of another closer are in the way."""
        born = generation()
        with _sharing:
            # In a child made by fork a thread that is not there may have it.
            if self._closer is None or self._closer[0] != born:
                self._closer = born, threading.RLock()
            return self._closer[1]

    def _close_unused(self) -> None:
        if self.closed:
            return
        patience = time.monotonic() + _CALLED
        while True:
            if self._saves:
                with memoryview(self):
                    self._save_before_close()
            if self._record is not None:
                working_set.save(self._record, self.recorded(), self.block_size)
            if not self._is_called or time.monotonic() > patience:
                break
            # Whoever looks at a budget is in a call for some microseconds. Saved again after it:
            # that thread may change something when it returns.
            time.sleep(0.001)
        try:
            super().close()
        finally:
            self._note_closed()

    def _close_for(self, address: int, nbytes: int) -> None:
        """Close the array that has its first item there, and the region if it is the last one."""
        with self._turn():
            self._close_array(address, nbytes)

    def _close_array(self, address: int, nbytes: int) -> None:
        if self.closed:
            return
        if self._is_common:
            self._check_unused()
            self.flush()
            self.evict()
            return
        share = None
        if self._shares is not None:
            # At the address of one without bytes another one may begin.
            if not nbytes:
                return
            with _sharing:
                share = self._share_at(address)
                if share is None:
                    return
                self._shares.remove(share)
                last = not self._shares
        try:
            if share is None or last:
                self._close_under_arrays()
            else:
                self._drop(*share)
        except BaseException:
            if share is not None and self._shares is not None:
                self._shares.add(share)
            raise

    def _share(self, start: int, nbytes: int) -> None:
        """Note that an array of the file, which has these bytes, was opened."""
        if nbytes and self._shares is not None:
            with _sharing:
                self._shares.add((start, start + nbytes))

    def _has_left(self, address: int, nbytes: int) -> bool:
        """Whether an array that has its first item there was closed, and others are not."""
        return self._shares is not None and nbytes > 0 and self._share_at(address) is None

    def _has_others(self, address: int) -> bool:
        """Whether there are arrays of the file besides the one that has its first item there."""
        return bool(set(self._shares or ()) - {self._share_at(address)})

    def _share_at(self, address: int) -> tuple[int, int] | None:
        at = address - self.address
        return next((each for each in list(self._shares or ()) if each[0] <= at < each[1]), None)

    def _drop(self, start: int, end: int) -> None:
        """Free what an array alone has in memory."""
        self._check_unused(start, end)
        if self._saves:
            with memoryview(self):
                self._save_before_close()
        first = -(-start // self.block_size) * self.block_size
        # The last block of the region ends with it.
        whole = end if end == self.nbytes else end // self.block_size * self.block_size
        if first < whole:
            self.evict(first, whole - first)

    def _close_under_arrays(self) -> None:
        """Close it though there are arrays: see `PagedArray.close`."""
        self._check_unused()
        patience = time.monotonic() + _CALLED
        # What fails now leaves it as it was.
        while not self._sealed:
            if self._saves:
                with memoryview(self):
                    self._save_before_close()
            if not self._is_called:
                break
            if time.monotonic() > patience:
                raise BufferError(f"cannot close {self!r}: another thread is in a call of it")
            time.sleep(0.001)
        self._check_unused()
        if self._record is not None and not self._sealed:
            working_set.save(self._record, self.recorded(), self.block_size)
        self._sealed = True
        first = failures.next_sequence(self)
        code = self._seal(self._saves)
        if code < 0:
            self._sealed = False
            raise OSError(-code, f"cannot close {self._label}: {os.strerror(-code)}")
        failures.check_saved(self, code, first, "write", self._label)
        # Whoever is in a call finds that there is nothing left to do.
        while self._is_called:
            time.sleep(0.001)
        try:
            self._close_sealed()
        finally:
            self._note_closed()

    def _check_unused(self, start: int = 0, end: int | None = None) -> None:
        """Raise if somebody has to have bytes of it in memory."""
        served = self._lent_to()
        if served is not None and not served._closed:
            raise BufferError(
                f"cannot close an array of {self._label}: it is being handed over at {served.url}; "
                "close that first"
            )
        end = self.nbytes if end is None else end
        pins = [(at, size) for at, size in self._pins.values() if at < end and start < at + size]
        if pins:
            which = ", ".join(f"bytes {at} to {at + size}" for at, size in sorted(pins))
            raise BufferError(
                f"cannot close an array of {self._label}: {which} of the region are pinned; leave "
                "the block of pagemove.pinned first"
            )

    def _note_closed(self) -> None:
        hosts.prune()
        if self.closed:
            give_back_kept(self._store)
        # Also when Control-C has come: it has been flushed, so nothing is being written.
        if self.closed and self._file_lock is not None:
            self._file_lock.close()

    def _save_or_tell(self) -> None:
        """Save changes, or say on standard error that it cannot be done. For the end of it all."""
        if self.closed or not self._saves:
            return
        try:
            self._save()
        except Exception as error:
            self._tell_unsaved(str(error))
        except BaseException as reason:
            # The caller does not want to wait any longer; the finaliser need not try again.
            self._unsaved = True
            self._tell_unsaved(f"saving them was interrupted ({type(reason).__name__})")
            raise

    def _tell_unsaved(self, why: str) -> None:
        tell(
            f"changes of {self._label} could not be saved, {self.counters()['dirty']} bytes of "
            f"them are in memory only: {why}"
        )

    def _save_before_close(self) -> None:
        """Save: that a region is lost is no reason not to close it."""
        self._save()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._forgettable = True  # it may stay open: that is no ResourceWarning
        try:
            self.close()
        except BufferError:
            # The traceback of what went wrong keeps arrays in use, and is what the caller needs to
            # see. Changes are flushed; the region goes with the last array.
            if exception[0] is None:
                raise

    def __del__(self) -> None:
        if not hasattr(self, "_label") or self.closed:
            return
        if not self._unsaved:
            self._save_or_tell()
        if not self._forgettable:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, stacklevel=2, source=self)


def is_gone(region: Closing) -> bool:
    """Whether this process has closed it: then another can be made in its place."""
    return region.closed and not region.inherited
