"""What a program's arrays have cost, in a few lines on standard error."""

from __future__ import annotations

import atexit
import signal
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pagemove._native.mapping import generation
from pagemove.cgroups import read
from pagemove.paging import counts  # noqa: F401 (at exit it is to be there)
from pagemove.paging.exits import tell
from pagemove.paging.sizes import text_of
from pagemove.program.lines import Lines
from pagemove.program.lines import text_of as place_of

if TYPE_CHECKING:
    from pagemove.paging.allocations import PagedAllocations
    from pagemove.paging.stats import AllocationStats

#: Of the program's.
_MOST_LINES = 5


def begin(arena: PagedAllocations) -> None:
    """Print it at the end of the program, and on SIGUSR1."""
    born, faulting = generation(), Lines(arena._faults)
    faulting.begin()

    def show_now(*_: object) -> None:
        # Not in a child made by fork: nobody looks at its lines.
        if generation() == born:
            faulting.look()
            show(arena.stats(), faulting)

    atexit.register(show_now)
    signal.signal(signal.SIGUSR1, show_now)


def show(stats: AllocationStats, faulting: Lines) -> None:
    """Print it."""
    for line in lines(stats, faulting):
        tell(line)


def lines(stats: AllocationStats, faulting: Lines) -> Iterator[str]:
    """Yield the lines.

    Parameters
    ----------
    stats : AllocationStats
        Of the program.
    faulting : Lines
        Which of its lines have faulted.
    """
    paging, block = stats.paging, "blocks"
    yield (
        f"arrays: at most {text_of(stats.peak_nbytes)} at a time, now {text_of(stats.nbytes)} in "
        f"{stats.arrays}; {stats.allocations} made"
    )
    yield (
        f"memory: limit {text_of(stats.limit or 0)}, resident now "
        f"{text_of(paging.resident_nbytes)}; the whole process at most {_peak()}"
    )
    waited = sum(bound * count for bound, count in paging.histogram) / 1e9
    yield (
        f"faults: {paging.faults}, at most {waited:.3g} s waited, 99 of 100 at most "
        f"{paging.p99_ns / 1e3:.3g} us; {paging.prefetched} {block} read ahead"
    )
    yield (
        f"evicted: {paging.evicted} {block}, of them {paging.written_back} written "
        f"({text_of(paging.bytes_written)}); read again {text_of(paging.bytes_read)}"
    )
    kept = paging.store.get("stored_nbytes")
    if kept is not None:
        yield (
            f"compressed: {paging.store.get('ratio', 0):.3g} times, {text_of(kept)} kept outside "
            f"of the limit now, at most {_most_kept(paging.store)}"
        )
    if stats.refused:
        yield f"refused: {stats.refused} arrays, for want of address space"
    for place, share in faulting.most(_MOST_LINES):
        yield f"about {share:.0%} of faults: {place_of(place)}"


def _most_kept(store: Mapping[str, float]) -> str:
    most = store.get("peak_memory_nbytes")
    return "unknown" if most is None else f"{text_of(int(most))} of memory"


def _peak() -> str:
    for line in read("/proc/self/status").splitlines():
        name, _, rest = line.partition(":")
        if name == "VmHWM":
            return text_of(int(rest.split()[0]) << 10)
    return "unknown"
