"""Mappings that 100,000 scattered one-page moves add, and where mremap(2) comes to its end."""

from __future__ import annotations

from benchmarks._measure import Effort, Finding, spread
from benchmarks._report import run_alone
from pagemove import features
from pagemove.compare import growth
from pagemove.compare.growth import MREMAP, MREMAP_KEPT, REMAP_ANON_PAGES
from pagemove.measuring.child import run_in_child


def _finding(method: str, moves: int, target: float | None) -> Finding:
    data = run_in_child(growth.__name__, "grow_here", method, moves)
    made, added = data["points"][-1]
    note = f"after {made:,} moves"
    if data["ended_by"]:
        note = f"fails after {made:,} moves with {data['ended_by']}"
    return Finding(
        method,
        f"mappings before; vm.max_map_count is {features().max_map_count:,}",
        spread([added]),
        target,
        unit="mappings",
        note=note,
    )


def measure(effort: Effort) -> list[Finding]:
    ours = _finding(REMAP_ANON_PAGES, effort.moves, 0)
    return [ours, *(_finding(method, effort.moves, None) for method in (MREMAP, MREMAP_KEPT))]


if __name__ == "__main__":
    run_alone(measure)
