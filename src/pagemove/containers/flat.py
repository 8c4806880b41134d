"""As much of FlatBuffers as the metadata of Arrow files need: tables, and vectors of structs."""

from __future__ import annotations

import struct
from typing import Self


class Table:
    """A table in a buffer. Whatever points outside of that is ValueError."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._fields = at - self._number("<i", at)
        self._size = self._number("<H", self._fields)

    @classmethod
    def root(cls, data: bytes) -> Self:
        """Return the table that a buffer begins with."""
        (at,) = struct.unpack_from("<I", data) if len(data) >= 4 else (len(data),)
        return cls(data, at)

    def number(self, field: int, code: str) -> int:
        """Return a number; 0 where it is left out."""
        place = self._place(field)
        return self._number(f"<{code}", place) if place else 0

    def table(self, field: int) -> Table | None:
        """Return a table; None where it is left out."""
        place = self._place(field)
        return Table(self._data, place + self._number("<I", place)) if place else None

    def structs(self, field: int, form: str) -> list[tuple[int, ...]]:
        """Return a vector of structs."""
        place = self._place(field)
        if not place:
            return []
        start = place + self._number("<I", place)
        count, size = self._number("<I", start), struct.calcsize(form)
        if start + 4 + count * size > len(self._data):
            raise ValueError("a vector goes on behind the end")
        return list(struct.iter_unpack(form, self._data[start + 4 : start + 4 + count * size]))

    def _place(self, field: int) -> int:
        entry = 4 + 2 * field
        if entry + 2 > self._size:
            return 0
        offset = self._number("<H", self._fields + entry)
        return self._at + offset if offset else 0

    def _number(self, code: str, at: int) -> int:
        if not 0 <= at <= len(self._data) - struct.calcsize(code):
            raise ValueError("an offset leads outside of it")
        return int(struct.unpack_from(code, self._data, at)[0])
