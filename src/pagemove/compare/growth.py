"""Moves mappings or moves pages: how many mappings there are after n scattered one-page moves."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import pagemove
from pagemove import PAGE_SIZE, features, lowlevel
from pagemove.compare.plan import Bench
from pagemove.compare.verdicts import Finding
from pagemove.introspect import count_vmas
from pagemove.measuring.child import run_in_child
from pagemove.measuring.machine import Area

REMAP_ANON_PAGES = "remap_anon_pages"
MREMAP = "mremap"
MREMAP_KEPT = "mremap, source kept"
_REMAP = lowlevel.MREMAP_MAYMOVE | lowlevel.MREMAP_FIXED
_FLAGS = {MREMAP: _REMAP, MREMAP_KEPT: _REMAP | lowlevel.MREMAP_DONTUNMAP}
# The largest number of pages resident at once; a method that leaves its source mapped starts again.
_MOST_RESIDENT = 32_768


@dataclass(frozen=True, slots=True)
class Growth:
    """Mappings against moves for one method.

    Attributes
    ----------
    method : str
        Its name.
    points : tuple of (int, int)
        Moves made, and mappings there were more than before the first.
    moves : int
        Moves made in all.
    ended_by : str or None
        The errno that ended it, None if it could have gone on.
    """

    method: str
    points: tuple[tuple[int, int], ...]
    moves: int
    ended_by: str | None

    @property
    def per_move(self) -> float:
        """Mappings added by one move; what the interpreter maps for itself rounds to nothing."""
        moves, added = self.points[-1]
        return round(added / moves, 2)


@dataclass(frozen=True, slots=True)
class Mappings:
    """What was counted."""

    limit: int
    growths: tuple[Growth, ...]

    def of(self, method: str) -> Growth:
        """Return the counts of one method."""
        return next(growth for growth in self.growths if growth.method == method)


def _checkpoints(most: int) -> list[int]:
    return sorted({int(n) for n in np.geomspace(1, most, 16)})


def _mover(method: str) -> Callable[[int, int], object]:
    if method == REMAP_ANON_PAGES:
        return lambda destination, source: pagemove.remap_anon_pages(destination, source, PAGE_SIZE)
    flags = _FLAGS[method]
    return lambda destination, source: lowlevel.mremap(
        source, PAGE_SIZE, PAGE_SIZE, flags, destination
    )


def grow_here(method: str, most: int) -> dict[str, object]:
    """Move up to `most` pages, every other one of an area, and count this process's mappings.

    To be called in a process that has no other use: it may be left without a mapping to spare.
    """
    pages = min(
        most, _MOST_RESIDENT if method == REMAP_ANON_PAGES else features().max_map_count // 2 + 2
    )
    nbytes = 2 * pages * PAGE_SIZE
    move = _mover(method)
    with Area(nbytes) as one, Area(nbytes) as other:
        source, destination = one, other
        np.frombuffer(source.view(source.address, nbytes), np.uint8)[:: 2 * PAGE_SIZE] = 1
        if method == REMAP_ANON_PAGES:
            # The first call makes the library's own arrangements, and the interpreter's.
            move(destination.address, source.address)
            move(source.address, destination.address)
        count_vmas()
        before = count_vmas()
        points: list[tuple[int, int]] = []
        ended_by = None
        made = 0
        for checkpoint in _checkpoints(most):
            try:
                while made < checkpoint:
                    offset = made % pages * 2 * PAGE_SIZE
                    if made and not offset:
                        source, destination = destination, source
                    move(destination.address + offset, source.address + offset)
                    made += 1
            except OSError as error:
                if not made:
                    raise
                ended_by = errno.errorcode.get(error.errno or 0, str(error.errno))
            points.append((made, count_vmas() - before))
            if ended_by:
                break
    return {"method": method, "points": points, "moves": made, "ended_by": ended_by}


def measure(bench: Bench) -> Mappings:
    """Count the mappings that each method adds, each in a process of its own."""
    growths = []
    names = (REMAP_ANON_PAGES, MREMAP, MREMAP_KEPT)
    for number, method in enumerate(names):
        bench.tick(f"counting mappings: {method}", number / len(names))
        data = run_in_child(__name__, "grow_here", method, bench.plan.most_moves)
        points = tuple((moves, added) for moves, added in data["points"])
        growths.append(Growth(method, points, data["moves"], data["ended_by"]))
    return Mappings(features().max_map_count, tuple(growths))


def _sentence(growth: Growth, limit: int) -> str:
    text = f"{growth.method} adds {growth.per_move:g} mappings a move and "
    if growth.ended_by:
        return f"{text}ends with {growth.ended_by} after {growth.moves:,}"
    text += f"was not at its end after {growth.moves:,}"
    if growth.per_move > 0:
        text += f" (extrapolated: after about {limit / growth.per_move:,.0f})"
    return text


def judge(data: Mappings) -> Finding:
    """Ask whether mremap adds mappings, and moving pages none."""
    moved, remapped = data.of(REMAP_ANON_PAGES), data.of(MREMAP)
    held = [moved.per_move == 0 and moved.ended_by is None, remapped.per_move > 0]
    sentences = [_sentence(growth, data.limit) for growth in data.growths]
    why = f"{'; '.join(sentences)}. vm.max_map_count is {data.limit:,}."
    return Finding.of(held, why)
