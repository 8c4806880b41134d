"""Reading past the page cache: O_DIRECT, which `direct=` uses, against RWF_DONTCACHE."""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Callable

import numpy as np

from benchmarks._measure import Effort, Finding, Unmeasurable, pinned
from benchmarks._paging import Way, cached_file, chill, cost, in_turn, opened_directly
from benchmarks._report import run_alone

#: linux/fs.h, of Linux 6.14; the headers of distributions are often older.
_RWF_DONTCACHE = 0x80
_SIZES = (4 << 10, 64 << 10, 1 << 20)
_CLOCKS = {"CPU time": time.process_time_ns, "elapsed": time.perf_counter_ns}


class _Reader:
    """Reads blocks of a file at random, the page cache empty of it at first."""

    def __init__(self, fd: int, cached: int, flags: int, size: int, reads: int) -> None:
        self._fd, self._cached, self._flags = fd, cached, flags
        self._size, self._reads = size, reads
        self._blocks = os.fstat(fd).st_size // size
        self._random = np.random.default_rng(1)

    def read(self, clock: Callable[[], int]) -> float:
        """Return nanoseconds a read."""
        chill(self._cached)
        blocks = self._random.choice(self._blocks, self._reads, replace=False)
        with mmap.mmap(-1, self._size) as memory:
            memory.write(bytes(self._size))
            began = clock()
            for block in blocks.tolist():
                got = os.preadv(self._fd, [memory], block * self._size, self._flags)
                assert got == self._size, "a short read"
            return (clock() - began) / self._reads


def _check_uncached(fd: int) -> None:
    try:
        os.preadv(fd, [bytearray(1)], 0, _RWF_DONTCACHE)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        raise Unmeasurable(f"no RWF_DONTCACHE where temporary files go: {error}") from None


def measure(effort: Effort) -> list[Finding]:
    found = []
    with cached_file(effort.file) as file, pinned():
        _check_uncached(file.fd)
        with opened_directly(f"/proc/self/fd/{file.fd}") as direct:
            for size in _SIZES:
                reads = min(effort.pages, effort.file // size)
                readers = {
                    "O_DIRECT": _Reader(direct, file.fd, 0, size, reads),
                    "RWF_DONTCACHE": _Reader(file.fd, file.fd, _RWF_DONTCACHE, size, reads),
                }
                for clock, now in _CLOCKS.items():
                    ways = [
                        Way(
                            f"{name}, blocks of {size >> 10} KiB, cold",
                            lambda reader=reader, now=now: reader.read(now),
                        )
                        for name, reader in readers.items()
                    ]
                    samples = in_turn(ways, effort.passes)
                    found.append(cost(samples, ways[0].name, ways[1].name, 1, clock))
    return found


if __name__ == "__main__":
    run_alone(measure)
