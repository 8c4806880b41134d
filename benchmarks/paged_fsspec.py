"""A local file by fsspec, in a helper process, against the same file by the pager itself."""

from __future__ import annotations

import os

from benchmarks._measure import Effort, Finding
from benchmarks._paging import QUARTER, CachedFile, Way, cached_file, in_turn, speed, timed
from benchmarks._report import run_alone
from benchmarks._stores import elapsing, needed, touch_starts, warmed
from pagemove import PagedMemory
from pagemove.stores import FileStore, FsspecStore, Store

_BLOCK_SIZES = (64 << 10, 1 << 20)


def measure(effort: Effort) -> list[Finding]:
    needed("fsspec")
    with cached_file(effort.file) as file:
        path = f"/proc/{os.getpid()}/fd/{file.fd}"
        with FileStore(path) as ours, FsspecStore(f"file://{path}") as theirs:
            return _compared({"FileStore": ours, "FsspecStore": theirs}, file, effort)


def _compared(stores: dict[str, Store], file: CachedFile, effort: Effort) -> list[Finding]:
    findings = []
    for place in elapsing():
        for block in _BLOCK_SIZES:
            blocks = file.nbytes // block
            limit = file.nbytes // QUARTER
            with place.here():
                regions = [
                    PagedMemory(store, block_size=block, resident_limit=limit)
                    for store in stores.values()
                ]
                names = [f"{name}, {block >> 10} KiB; {place.name}" for name in stores]
                ways = []
                for name, region in zip(names, regions, strict=True):
                    warmed(region)
                    job = touch_starts(region.address, file.nbytes, block)
                    ways.append(
                        Way(
                            name,
                            lambda job=job, place=place, blocks=blocks: timed(
                                job, blocks, place, blocks
                            ),
                        )
                    )
                samples = in_turn(ways, effort.passes)
                for region in regions:
                    region.close()
            findings.append(speed(samples, names[1], names[0], None, "in order"))
    return findings


if __name__ == "__main__":
    run_alone(measure)
