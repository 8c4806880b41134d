"""What a caller passes for memory: an address, or a buffer that is held while its pages move."""

from __future__ import annotations

import errno

import numpy as np

from pagemove._native.mapping import Hold
from pagemove.calls.failure import Failure
from pagemove.introspect import PAGE_SIZE
from pagemove.memory import spare_tail


def check_arguments(dst: int, src: int, length: int, flags: int, known_flags: int) -> None:
    """Raise the `Failure` of arguments that no mappings could make right."""
    for name, address in (("destination", dst), ("source", src)):
        if address % PAGE_SIZE:
            raise Failure(
                errno.EINVAL,
                address,
                f"{name} {address:#x} is not page aligned: the nearest page below it starts at "
                f"{address - address % PAGE_SIZE:#x}",
            )
    if length <= 0 or length % PAGE_SIZE:
        raise Failure(
            errno.EINVAL,
            None,
            f"length {length} is not a positive multiple of the page size, {PAGE_SIZE}",
        )
    for name, address in (("destination", dst), ("source", src)):
        if address < 0 or address + length > 2**64:
            raise Failure(
                errno.EINVAL,
                address,
                f"{name} {address:#x} and length {length} wrap around the address space",
            )
    if flags & ~known_flags:
        raise Failure(
            errno.EINVAL,
            None,
            f"unknown flag bits {flags & ~known_flags:#x}: only RAP_ALLOW_SRC_HOLES (1) is known",
        )
    if src <= dst < src + length:
        raise Failure(
            errno.EINVAL,
            dst,
            f"destination {dst:#x} starts inside the source range {src:#x}-{src + length:#x}: move "
            "the upper part first, in a call of its own",
        )


class Place:
    """Memory given as an address or as a buffer, which is held until the block is left.

    `TypeError` and `BufferError` as `Hold` raises them.

    Attributes
    ----------
    address : int
        Of the first byte.
    nbytes : int or None
        Length of the buffer; None for an address, of which nothing says how long it is.
    """

    __slots__ = ("_buffer", "_hold", "address", "nbytes")

    def __init__(self, argument: object) -> None:
        self.nbytes: int | None = None
        if isinstance(argument, int | np.integer):
            self.address = int(argument)
            return
        if isinstance(argument, np.generic):
            raise TypeError(f"{type(argument).__name__} is neither an address nor memory")
        self._buffer = argument
        self._hold = Hold(argument, True)
        self.address = self._hold.address
        self.nbytes = self._hold.nbytes

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.nbytes is not None:
            self._hold.release()

    def own_nbytes(self, name: str) -> int:
        """Bytes of the buffer, with the rest of its last page where nothing else is in that.

        `Failure` where it does not begin with a page; `TypeError` for an address.
        """
        if self.nbytes is None:
            raise TypeError(f"{name} must be a buffer, not the address {self.address:#x}")
        if self.address % PAGE_SIZE:
            raise Failure(
                errno.EINVAL,
                self.address,
                f"{name} at {self.address:#x} is not page aligned: use Memory or pagemove.empty",
            )
        return self.nbytes + spare_tail(self._buffer, self.address + self.nbytes)

    def whole_pages(self, name: str) -> int:
        """`own_nbytes`, which have to be whole pages, and not none."""
        length = self.own_nbytes(name)
        if length % PAGE_SIZE or not length:
            raise Failure(
                errno.EINVAL,
                self.address,
                f"{name} at {self.address:#x} with {self.nbytes} bytes is not made of whole pages "
                f"of {PAGE_SIZE} bytes: use Memory or pagemove.empty",
            )
        return length
