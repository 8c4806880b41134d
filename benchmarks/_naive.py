"""The C baseline of the moves, called by ctypes; its loops run in C."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from benchmarks._build import build
from benchmarks._measure import Disturbed
from pagemove._native import remap

Words = npt.NDArray[np.uint64]
Pages = npt.NDArray[np.int64]


@functools.cache
def _library() -> ctypes.CDLL:
    library = build("naive.c")
    word, size, words = ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p
    library.move_each.argtypes = [ctypes.c_int, words, words, size, word]
    library.move_each.restype = size
    library.move_pages_of.argtypes = [ctypes.c_int, word, word, words, words, size, word]
    library.move_pages_of.restype = size
    return library


class Naive:
    """The C loops, on the library's own userfaultfd: the kernel is asked for the same.

    Each method prepares a call: what is timed should be the loop, not the way to it.
    """

    def __init__(self) -> None:
        self._library = _library()
        self._fd = remap.descriptor()

    def each(self, dst: Words, src: Words, length: int) -> Callable[[], None]:
        """Move `length` bytes from each address of `src`."""
        arguments = (self._fd, dst.ctypes.data, src.ctypes.data, dst.size, length)
        return _call(self._library.move_each, arguments, (dst, src))

    def by_number(
        self, dst: int, src: int, dst_pages: Pages, src_pages: Pages, page_size: int
    ) -> Callable[[], None]:
        """Move pages by number."""
        to, of = dst_pages.ctypes.data, src_pages.ctypes.data
        arguments = (self._fd, dst, src, to, of, dst_pages.size, page_size)
        return _call(self._library.move_pages_of, arguments, (dst_pages, src_pages))


def _call(
    loop: Callable[..., int], arguments: tuple[int, ...], arrays: tuple[object, ...]
) -> Callable[[], None]:
    def call(_keep: tuple[object, ...] = arrays) -> None:
        refused = loop(*arguments)
        if refused:
            raise Disturbed(f"the kernel refused {refused} moves of the C loop")

    return call
