"""The C baselines of paged memory, called by ctypes, and the C code that touches all memory."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from benchmarks._build import build
from benchmarks._measure import Unmeasurable
from pagemove import HUGE_PAGE_SIZE

Words = npt.NDArray[np.uint64]

_WORD = np.dtype(np.uint64).itemsize


@functools.cache
def _library() -> ctypes.CDLL:
    # -O3 for the sum: older compilers vectorize nothing at -O2.
    library = build("touching.c", "bare_loop.c", "copy_ahead.c", optimise="-O3")
    word, size, number, truth = ctypes.c_uint64, ctypes.c_size_t, ctypes.c_int, ctypes.c_bool
    address = ctypes.c_void_p
    signatures = {
        "sum_words": (word, [address, size]),
        "sum_by_pread": (number, [number, size, size, address, size, ctypes.POINTER(word)]),
        "touch_each": (None, [address, address, size, truth, word, address]),
        "read_by_threads": (number, [number, address, size, size, address, ctypes.c_uint]),
        "touch_by_threads": (None, [address, address, size, ctypes.c_uint]),
        "bare_loop_open": (address, [number, size, size, size, truth]),
        "copy_ahead_open": (address, [number, size, size, size]),
    }
    for kind in ("bare_loop", "copy_ahead"):
        signatures[f"{kind}_address"] = (address, [address])
        signatures[f"{kind}_faults"] = (word, [address])
        signatures[f"{kind}_close"] = (None, [address])
    for name, (answer, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = answer, arguments
    return library


class Baseline:
    """Memory that a C baseline pages.

    Attributes
    ----------
    address : int
        Where it begins.
    faults : int
        Served so far.
    """

    def __init__(self, kind: str, *arguments: int | bool) -> None:
        self._library, self._kind = _library(), kind
        self._handle = self._call("open", *arguments)
        if not self._handle:
            reason = os.strerror(ctypes.get_errno())
            raise Unmeasurable(f"no baseline with userfaultfd: {reason}")
        self.address: int = self._call("address", self._handle)

    def _call(self, name: str, *arguments: int | bool) -> int:
        return int(getattr(self._library, f"{self._kind}_{name}")(*arguments) or 0)

    @property
    def faults(self) -> int:
        return self._call("faults", self._handle)

    def close(self) -> None:
        self._call("close", self._handle)


def bare_loop(
    file: int, nbytes: int, block_size: int, *, limit: int = 0, writable: bool = False
) -> Baseline:
    """One thread: pread and UFFDIO_COPY; at a limit (bytes) MADV_DONTNEED, FIFO."""
    return Baseline("bare_loop", file, nbytes, block_size, limit // block_size, writable)


def copy_ahead(file: int, nbytes: int, block_size: int, *, limit: int) -> Baseline:
    """Serve sequential faults with UFFDIO_COPY and MADV_DONTNEED; a thread reads ahead."""
    return Baseline("copy_ahead", file, nbytes, block_size, limit // block_size)


def sum_words(address: int, nbytes: int) -> int:
    """Sum memory as 64-bit numbers, modulo 2**64."""
    return int(_library().sum_words(address, nbytes // _WORD))


def sum_by_pread(file: int, nbytes: int, piece: int, address: int, stride: int) -> int:
    """Read a file in pieces and sum each, every one `stride` bytes behind the last."""
    total = ctypes.c_uint64()
    error = _library().sum_by_pread(file, nbytes, piece, address, stride, ctypes.byref(total))
    if error:
        raise OSError(-error, f"pread: {os.strerror(-error)}")
    return total.value


def touch_each(address: int, offsets: Words, *, write: int | None = None) -> Words:
    """Read one word at each offset, or write this value; return the nanoseconds of each."""
    offsets = np.ascontiguousarray(offsets)
    took = np.empty(len(offsets), np.uint64)
    _library().touch_each(
        address, offsets.ctypes.data, len(offsets), write is not None, write or 0, took.ctypes.data
    )
    return took


def touch_by_threads(address: int, offsets: Words, threads: int) -> None:
    """Read one word at each offset, in equal parts by threads that begin together."""
    offsets = np.ascontiguousarray(offsets)
    _library().touch_by_threads(address, offsets.ctypes.data, len(offsets), threads)


def read_by_threads(file: int, offsets: Words, nbytes: int, address: int, threads: int) -> None:
    """Read so many bytes from each offset on, to one place after the other, by so many threads."""
    offsets = np.ascontiguousarray(offsets)
    error = _library().read_by_threads(
        file, offsets.ctypes.data, len(offsets), nbytes, address, threads
    )
    if error:
        raise OSError(-error, f"pread: {os.strerror(-error)}")


@contextmanager
def fresh_memory(nbytes: int) -> Iterator[int]:
    """Map memory that will be huge pages and that nobody has touched yet; return its address."""
    # Not aligned by itself on older kernels.
    alignment = HUGE_PAGE_SIZE or mmap.PAGESIZE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, nbytes + alignment, flags=flags) as memory:
        if HUGE_PAGE_SIZE:
            memory.madvise(mmap.MADV_HUGEPAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        yield start + -start % alignment
