"""A byte range of a store, as a store: an array in a file that holds others too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagemove.stores import ranges
from pagemove.stores.base import Store, read_whole, write_whole

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Part(Store):
    """Bytes `first` to ``first + nbytes`` of another store, which is closed with it.

    Of a file the pager reads and writes them itself, as it does the whole.

    Parameters
    ----------
    whole : Store
        Pickled with it.
    first, nbytes : int
        Within it; not empty.
    """

    def __init__(self, whole: Store, first: int, nbytes: int) -> None:
        if not 0 <= first < first + nbytes <= whole.nbytes:
            raise ValueError(
                f"bytes {first} to {first + nbytes} are not within the {whole.nbytes} of {whole!r}"
            )
        self.whole, self.first = whole, first
        self._nbytes = nbytes
        self.concurrency = whole.concurrency
        self.restartable = whole.restartable
        self.flush_retryable = whole.flush_retryable

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self._nbytes

    @property
    def writable(self) -> bool:
        """Whether the whole is."""
        return self.whole.writable

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill a buffer from the whole."""
        view = ranges.target(buffer)
        start = ranges.place(self, self._nbytes, offset, view.nbytes)
        read_whole(self.whole, self.first + start, view)

    def write(self, offset: int, data: Buffer) -> None:
        """Write into the whole."""
        view = memoryview(data).cast("B")
        start = ranges.place(self, self._nbytes, offset, view.nbytes)
        write_whole(self.whole, self.first + start, view)

    def flush(self) -> None:
        """Flush the whole."""
        self.whole.flush()

    def _get_ready(self) -> None:
        self.whole._get_ready()

    def close(self) -> None:
        """Close the whole."""
        self.whole.close()

    def stats(self) -> dict[str, float]:
        """Return those of the whole."""
        return self.whole.stats()

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.whole, self.first, self._nbytes))

    def __repr__(self) -> str:
        return f"{self.whole!r}, bytes {self.first} to {self.first + self._nbytes}"


def whole_of(store: Store) -> tuple[Store, int]:
    """Return what a part is a part of, and its first byte there; of any other store itself."""
    if isinstance(store, Part):
        whole, first = whole_of(store.whole)
        return whole, first + store.first
    return store, 0
