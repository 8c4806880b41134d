"""Sum a file at a limit of a quarter, again and again, against pread and paging by copies."""

from __future__ import annotations

from contextlib import ExitStack, closing

from benchmarks._baselines import bare_loop, copy_ahead, fresh_memory, sum_by_pread, sum_words
from benchmarks._measure import Effort, Finding, spread
from benchmarks._paging import (
    QUARTER,
    CachedFile,
    Place,
    Way,
    cached_file,
    in_turn,
    paged,
    places,
    speed,
    timed,
)
from benchmarks._report import run_alone

_BLOCK = 2 << 20
_BARE_BLOCKS = (64 << 10, 256 << 10, 1 << 20, 2 << 20)
_TARGET_PREAD = {"one CPU": 0.6, "free": 0.75}
_TARGET_COPY_AHEAD = 3
_TARGET_BARE = 2.5
_FEW = 3


def _summing(name: str, file: CachedFile, address: int, place: Place) -> Way:
    return Way(
        name,
        lambda: timed(lambda: sum_words(address, file.nbytes), file.total, place, file.nbytes),
    )


def _bare(file: CachedFile, block: int, place: Place) -> tuple[str, ExitStack, Way]:
    stack = ExitStack()
    limit = file.nbytes // QUARTER
    memory = stack.enter_context(closing(bare_loop(file.fd, file.nbytes, block, limit=limit)))
    name = f"speed of the bare C loop at its best, blocks of {block >> 10} KiB"
    return name, stack, _summing(name, file, memory.address, place)


def _best_block(file: CachedFile, place: Place, rounds: int) -> int:
    """Find the block size at which the bare loop is fastest."""
    with ExitStack() as stack:
        ways = []
        for block in _BARE_BLOCKS:
            _, opened, way = _bare(file, block, place)
            stack.enter_context(opened)
            ways.append(Way(str(block), way.measure))
        samples = in_turn(ways, rounds)
    return min(_BARE_BLOCKS, key=lambda block: spread(samples[str(block)]).median)


def _at(place: Place, file: CachedFile, passes: int) -> list[Finding]:
    limit = file.nbytes // QUARTER
    subject = f"steady state, 2 MiB blocks; {place.name}"
    by_pread = "speed of pread into a warm buffer of 2 MiB and summing it"
    by_copy = "speed of the same read-ahead with UFFDIO_COPY and MADV_DONTNEED"
    by_bare, opened, bare = _bare(file, _best_block(file, place, min(passes, _FEW)), place)
    with (
        opened,
        fresh_memory(_BLOCK) as buffer,
        closing(copy_ahead(file.fd, file.nbytes, _BLOCK, limit=limit)) as ahead,
        paged(file, _BLOCK, limit=limit) as memory,
    ):
        ways = [
            _summing(subject, file, memory.address, place),
            Way(
                by_pread,
                lambda: timed(
                    lambda: sum_by_pread(file.fd, file.nbytes, _BLOCK, buffer, 0),
                    file.total,
                    place,
                    file.nbytes,
                ),
            ),
            _summing(by_copy, file, ahead.address, place),
            bare,
        ]
        samples = in_turn(ways, passes)
    targets = {
        by_pread: _TARGET_PREAD[place.name],
        by_copy: _TARGET_COPY_AHEAD,
        by_bare: _TARGET_BARE,
    }
    return [speed(samples, subject, baseline, target) for baseline, target in targets.items()]


def measure(effort: Effort) -> list[Finding]:
    findings = []
    with cached_file(effort.long_file) as file:
        for place in places():
            with place.here():
                findings += _at(place, file, effort.passes)
    return findings


if __name__ == "__main__":
    run_alone(measure)
