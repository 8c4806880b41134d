"""How a region ends: what is saved, who is told of what is not, and what is waited for."""

from __future__ import annotations

import time
import warnings
from typing import Self

from pagemove.paging import hosts, working_set
from pagemove.paging.blocks import Blocks
from pagemove.paging.exits import tell
from pagemove.stores.filelock import FileLock

# Seconds that close waits for calls of other threads.
_CALLED = 0.2


class Closing(Blocks):
    """The end of a `PagedMemory`, which adds how it begins."""

    _file_lock: FileLock | None
    _saves: bool  # whether what was changed outlives the region
    _unsaved: bool  # whether that was said already, at the end of it all
    _forgettable: bool  # no ResourceWarning if it is never closed

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
            hosts.prune()
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
