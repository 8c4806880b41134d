"""Reading on in 2 MiB blocks of a store in Python, against a copy out of shared memory."""

from __future__ import annotations

from contextlib import closing
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from benchmarks._measure import Effort, Finding
from benchmarks._paging import QUARTER, Place, Way, in_turn, speed, timed
from benchmarks._report import run_alone
from benchmarks._stores import Instant, elapsing, touch_starts, warmed
from pagemove import PagedMemory

_BLOCK = 2 << 20
_TARGET = 0.6


def _compare(place: Place, nbytes: int, effort: Effort) -> Finding:
    store = Instant(nbytes)
    blocks = nbytes // _BLOCK
    subject, baseline = f"a block; {place.name}", "SharedMemory, copied to a warm buffer"
    shared = SharedMemory(create=True, size=nbytes)
    with (
        closing(shared),
        place.here(),
        PagedMemory(store, block_size=_BLOCK, resident_limit=nbytes // QUARTER) as region,
    ):
        warmed(region)
        buffer = np.ones(_BLOCK, np.uint8)
        for start in range(0, nbytes, _BLOCK):
            shared.buf[start : start + _BLOCK] = buffer

        def copy() -> int:
            for start in range(0, nbytes, _BLOCK):
                buffer[:] = shared.buf[start : start + _BLOCK]
            return blocks

        ways = [
            Way(baseline, lambda: timed(copy, blocks, place, blocks)),
            Way(
                subject,
                lambda: timed(touch_starts(region.address, nbytes, _BLOCK), blocks, place, blocks),
            ),
        ]
        samples = in_turn(ways, effort.passes)
        shared.unlink()
    return speed(samples, subject, baseline, _TARGET, "at a limit of a quarter")


def measure(effort: Effort) -> list[Finding]:
    # A quarter of it is no fewer than eight blocks.
    nbytes = max(effort.file, QUARTER * 8 * _BLOCK)
    return [_compare(place, nbytes, effort) for place in elapsing()]


if __name__ == "__main__":
    run_alone(measure)
