"""A store as somebody else would write it."""

from __future__ import annotations

from pagemove.stores import Store


class BytesStore(Store):
    """Bytes in memory: what the interface asks for, and nothing more."""

    writable = False

    def __init__(self, contents: bytes, *, writable: bool = False) -> None:
        self._contents = bytearray(contents)
        self.writable = writable

    @property
    def nbytes(self) -> int:
        return len(self._contents)

    def read_into(self, offset: int, buffer: object) -> None:
        view = memoryview(buffer).cast("B")
        if not 0 <= offset <= self.nbytes - view.nbytes:
            raise ValueError("out of range")
        view[:] = self._contents[offset : offset + view.nbytes]

    def write(self, offset: int, data: object) -> None:
        view = memoryview(data).cast("B")
        if not self.writable:
            super().write(offset, view)
        if not 0 <= offset <= self.nbytes - view.nbytes:
            raise ValueError("out of range")
        self._contents[offset : offset + view.nbytes] = view
