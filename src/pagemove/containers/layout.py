"""Where an array is in a file, and what is refused wherever it is said."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

_MOST_AXES = 64
_LARGEST = 2**63 - 1
_MOST_SHOWN = 5


class Layout(NamedTuple):
    """How bytes are an array.

    Attributes
    ----------
    dtype : dtype
        Of the items, in the byte order of the file.
    shape : tuple of int
        As the array has it.
    fortran : bool
        Whether the first axis is the one whose items follow each other.
    offset : int
        First byte in the file.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of all items."""
        return self.dtype.itemsize * math.prod(self.shape)


class Span(NamedTuple):
    """Where the bytes of an array are, and what their address has to be a multiple of."""

    offset: int
    nbytes: int
    alignment: int


class Packed(NamedTuple):
    """An array that is not in the file as it is, and can be unpacked.

    Attributes
    ----------
    nbytes : int
        Unpacked; not more than what is packed can be.
    read : callable
        Returns the unpacked bytes in pieces; raises ValueError where they are not what they are
        said to be.
    """

    nbytes: int
    read: Callable[[], Iterator[bytes]]


class Contents(Protocol):
    """What a container holds."""

    kind: str
    #: Why it cannot be written in place; empty: it can.
    sealed: str
    #: Whether there are arrays that raise `ChunkedError`.
    has_chunks: bool

    def names(self) -> list[str]:
        """List the arrays, in the order of the file."""

    def find(self, name: str) -> Layout | Packed:
        """Say where an array is; ValueError or TypeError where it cannot be paged, KeyError."""

    def spans(self) -> Iterable[Span]:
        """List where arrays are, as far as that is known without reading from afar."""


class Known:
    """Contents of which everything is known when the header was read.

    Parameters
    ----------
    kind : str
        The name of the format.
    what : str
        The file, in messages.
    found : mapping
        Of each array, what returns its layout, or raises what is to be raised.
    spans : iterable of Span
        Of those that are in place.
    has_chunks : bool
        Whether there are arrays that raise `ChunkedError`.
    """

    sealed = ""

    def __init__(
        self,
        kind: str,
        what: str,
        found: Mapping[str, Callable[[], Layout]],
        spans: Iterable[Span],
        *,
        has_chunks: bool = False,
    ) -> None:
        self.kind, self.has_chunks = kind, has_chunks
        self._what = what
        self._found = found
        self._spans = tuple(spans)

    def names(self) -> list[str]:
        """List the arrays."""
        return list(self._found)

    def find(self, name: str) -> Layout:
        """Say where an array is."""
        # HDF5 has names from the root on with a slash, and the other libraries have none.
        found = self._found.get(name) or self._found.get(name.removeprefix("/"))
        if found is None:
            raise KeyError(missing(self._what, name, self._found))
        return found()

    def spans(self) -> tuple[Span, ...]:
        """List where arrays are."""
        return self._spans


class ChunkedError(ValueError):
    """An array is there, but not as a range of bytes: it has to be decoded by slices."""


def refused(kind: type[Exception], text: str) -> Callable[[], Layout]:
    """Return a function that raises when the array is asked for."""

    def find() -> Layout:
        raise kind(text)

    return find


def check_shape(what: str, shape: tuple[int, ...], itemsize: int) -> int:
    """Return how many bytes an array has; ValueError where no array can have the shape."""
    if len(shape) > _MOST_AXES:
        raise ValueError(f"{what} has {len(shape)} axes, and NumPy has {_MOST_AXES} at most")
    if any(size < 0 for size in shape):
        raise ValueError(f"{what} has a negative length in shape {shape}")
    # NumPy multiplies what is not zero, also of an array without items.
    if math.prod(size for size in shape if size) * max(itemsize, 1) > _LARGEST:
        raise ValueError(f"{what} has more than 2**63 bytes by its shape, {_short(shape)}")
    return math.prod(shape) * itemsize


def check_apart(what: str, places: Iterable[tuple[int, int, str]]) -> None:
    """Raise ValueError where two arrays share bytes: (first, end, name) of each."""
    before, last = 0, ""
    for first, end, name in sorted(places):
        if first == end:
            continue
        if first < before:
            raise ValueError(
                f"{what}: arrays {last!r} and {name!r} overlap at byte {first}: the header is "
                "damaged or malicious; write the file again"
            )
        before, last = end, name


def missing(what: str, name: str, names: Iterable[str]) -> str:
    """Say that there is no such array, and which there are."""
    known = list(names)
    if not known:
        return f"{what} has no array {name!r}, nor any other"
    import difflib  # for this message alone

    near = difflib.get_close_matches(name, known, _MOST_SHOWN) or known[:_MOST_SHOWN]
    rest = len(known) - len(near)
    return (
        f"{what} has no array {name!r}; it has {', '.join(map(repr, near))}"
        f"{f' and {rest} more' if rest else ''}"
    )


def best_shift(spans: Iterable[Span]) -> int:
    """Choose the byte of the file from which on most bytes of arrays are aligned."""
    gains: dict[int, int] = {}
    known = [span for span in spans if span.nbytes]
    for shift in {span.offset % span.alignment for span in known} | {0}:
        gains[shift] = sum(s.nbytes for s in known if (s.offset - shift) % s.alignment == 0)
    return max(sorted(gains), key=gains.__getitem__)


def _short(shape: tuple[int, ...]) -> str:
    text = str(shape)
    return text if len(text) < 200 else f"{text[:200]}..."
