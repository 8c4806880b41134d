"""Headers read from a store, in pieces that are kept: far away each read is a request."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import Any

from pagemove.stores.base import Store, read_whole
from pagemove.stores.file import FileStore

#: More than any header that was seen, and little enough to be read at once.
HEADER_MOST = 32 << 20
_NEAR, _FAR = 4 << 10, 64 << 10
_MOST_PIECES = 16


class Reading:
    """The bytes of a store, for those who read a few here and there.

    Parameters
    ----------
    store : Store
        Stays the caller's.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.nbytes = store.nbytes
        self.what = repr(store)
        self.is_near = isinstance(store, FileStore)
        self._size = _NEAR if self.is_near else _FAR
        self._pieces: OrderedDict[int, bytes] = OrderedDict()

    def read(self, offset: int, nbytes: int, of: str = "the header") -> bytes:
        """Return so many bytes; ValueError where there are fewer, or it is too much for a header.

        Nothing is allocated before both were checked.
        """
        if offset + nbytes > self.nbytes:
            raise ValueError(
                f"{self.what} has {self.nbytes} bytes, and {of} needs {nbytes} from byte {offset} "
                "on: it was truncated, or it is not such a file; copy or write it again"
            )
        if nbytes > HEADER_MOST:
            raise ValueError(
                f"{self.what} says that {of} has {nbytes} bytes, and at most {HEADER_MOST} are "
                "read: it is damaged, or not such a file"
            )
        first, last = offset // self._size, (offset + nbytes - 1) // self._size
        if last - first >= 2:
            data = bytearray(nbytes)
            read_whole(self.store, offset, data)
            return bytes(data)
        joined = b"".join(self._piece(number) for number in range(first, last + 1))
        start = offset - first * self._size
        return joined[start : start + nbytes]

    def head(self, nbytes: int) -> bytes:
        """Return the first bytes, as many of them as there are."""
        return self.read(0, min(nbytes, self.nbytes))

    def _piece(self, number: int) -> bytes:
        piece = self._pieces.get(number)
        if piece is None:
            start = number * self._size
            data = bytearray(min(self._size, self.nbytes - start))
            read_whole(self.store, start, data)
            piece = self._pieces[number] = bytes(data)
            if len(self._pieces) > _MOST_PIECES:
                self._pieces.popitem(last=False)
        return piece


class ReadingFile(io.RawIOBase):
    """The same as a file object, for libraries that read headers themselves."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move on."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._reading.nbytes}
        place = base[whence] + offset
        if place < 0:
            # As files do: zipfile takes it for a file that is shorter than what it looks for.
            raise OSError(f"negative seek position {place}")
        self._at = place
        return place

    def tell(self) -> int:
        """Return where it is."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read as much as there is."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._reading.nbytes - self._at))
        done = 0
        while done < count:
            part = min(count - done, HEADER_MOST)
            view[done : done + part] = self._reading.read(self._at + done, part)
            done += part
        self._at += count
        return count

    def read(self, size: int | None = -1) -> bytes:
        """Read as much as there is, all at once."""
        left = max(0, self._reading.nbytes - self._at)
        count = left if size is None or size < 0 else min(size, left)
        data = self._reading.read(self._at, count)
        self._at += count
        return data
