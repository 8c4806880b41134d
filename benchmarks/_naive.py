"""The C baseline: built here with `cc -O2`, called by ctypes; its loops run in C."""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks._measure import Disturbed, Unmeasurable
from pagemove._native import remap

Words = npt.NDArray[np.uint64]
Pages = npt.NDArray[np.int64]

_SOURCE = Path(__file__).with_name("naive.c")


@functools.cache
def _library() -> ctypes.CDLL:
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not shutil.which(compiler[0]):
        raise Unmeasurable(f"no C compiler ({compiler[0]}) to build the baseline with")
    # Once loaded the file is not needed again.
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "naive.so"
        command = [*compiler, "-O2", "-Wall", "-shared", "-fPIC", "-o", str(built), str(_SOURCE)]
        subprocess.run(command, check=True)
        library = ctypes.CDLL(str(built), use_errno=True)
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
