"""Reading on in compressed memory, 64 KiB blocks, against zstd alone on one core."""

from __future__ import annotations

import numpy as np

from benchmarks._measure import Effort, Finding
from benchmarks._paging import QUARTER, Way, in_turn, speed, timed
from benchmarks._report import run_alone
from benchmarks._stores import elapsing, needed, touch_starts, warmed
from pagemove import PagedMemory
from pagemove.stores import CompressedStore

_BLOCK = 64 << 10
_TARGET = 0.6
_VALUES = 1000


def measure(effort: Effort) -> list[Finding]:
    needed("zstandard")
    import zstandard

    findings = []
    nbytes, blocks = effort.file, effort.file // _BLOCK
    store = CompressedStore(nbytes, block_size=_BLOCK)
    random = np.random.default_rng(0)
    compressor = zstandard.ZstdCompressor(level=1, write_checksum=True)
    packed = []
    for number in range(blocks):
        # Small numbers in 8 bytes each: what compressible arrays often are.
        block = random.integers(_VALUES, size=_BLOCK // 8).tobytes()
        store.write(number * _BLOCK, block)
        packed.append(compressor.compress(block))
    ratio = nbytes / sum(map(len, packed))
    decompressor = zstandard.ZstdDecompressor()

    def decompress() -> int:
        return sum(bool(decompressor.decompress(one)) for one in packed)

    for place in elapsing():
        subject, baseline = f"a block; {place.name}", "ZstdDecompressor, one thread"
        limit = nbytes // QUARTER
        with (
            place.here(),
            PagedMemory(store, block_size=_BLOCK, resident_limit=limit) as region,
        ):
            warmed(region)
            jobs = {baseline: decompress, subject: touch_starts(region.address, nbytes, _BLOCK)}
            ways = [
                Way(name, lambda job=job, place=place: timed(job, blocks, place, blocks))
                for name, job in jobs.items()
            ]
            samples = in_turn(ways, effort.passes)
        note = f"{ratio:.1f} times compressed; at a limit of a quarter"
        findings.append(speed(samples, subject, baseline, _TARGET, note))
    return findings


if __name__ == "__main__":
    run_alone(measure)
