"""Show on two screens what pagemove does: an array under a limit, and moves against copies.

Run: python examples/demo.py [--nbytes SIZE] [--limit SIZE]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

import pagemove
from pagemove.paging.sizes import nbytes_of, text_of

PIECE = 8 << 20
TURNS = 7
NEXT = """What to do next
  make compare                          the whole argument, measured here
  examples/page_file.py FILE            the same with a file of yours
  docs/tutorial/larger-than-memory.md   the tutorial
  make test                             the proof"""


def array_under_limit(console: Console, nbytes: int, limit: str) -> bool:
    """Sum a file in pieces and as one paged array; return whether all is as it should be."""
    random = np.random.default_rng(2014)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "numbers.bin")
        expected = 0
        with path.open("wb") as file:
            for start in range(0, nbytes, PIECE):
                piece = random.integers(0, 1000, min(PIECE, nbytes - start) // 8)
                expected += int(piece.sum())
                piece.tofile(file)
        array = pagemove.open_array(path, dtype=np.int64, resident_limit=limit)
        region = pagemove.region_of(array)
        most = total = 0
        for start in range(0, array.size, PIECE // 8):
            total += int(array[start : start + PIECE // 8].sum())
            most = max(most, region.stats().resident_nbytes)
    console.print(
        f"An array of {text_of(nbytes)}, under a limit of {text_of(nbytes_of(limit, '--limit'))}"
    )
    below = most <= nbytes_of(limit, "--limit")
    console.print(f"  resident at most  {most / 2**20:.1f} MiB  {'below' if below else 'BEYOND'}")
    equal = total == expected
    console.print(f"  its sum           {total:,}  {'equal' if equal else 'DIFFERENT'}\n")
    return below and equal


Action = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.uint8]], object]


def microseconds(action: Action, pages: int) -> float:
    """Return the median time of an action on a source that is filled, and a target that is not."""
    times = []
    for _ in range(TURNS):
        source, target = (pagemove.empty((pages, pagemove.PAGE_SIZE), np.uint8) for _ in range(2))
        source[:] = 1
        started = time.perf_counter_ns()
        action(target, source)
        times.append(time.perf_counter_ns() - started)
    return statistics.median(times) / 1000


def moves_against_copies(console: Console) -> None:
    """Print what three moves cost, beside copies into memory that is not there yet."""
    order = np.random.default_rng(1).permutation(4096)
    into = np.arange(4096)
    measured: tuple[tuple[str, int, Action, Action], ...] = (
        ("64 pages", 64, pagemove.move, np.copyto),
        ("4096 pages", 4096, pagemove.move, np.copyto),
        (
            "4096 pages, shuffled",
            4096,
            lambda target, source: pagemove.move_many(target, source, into, order),
            lambda target, source: np.take(source, order, axis=0, out=target, mode="clip"),
        ),
    )
    table = Table(title="Microseconds", title_justify="left")
    for name in ("", "moved", "copied", "copied / moved"):
        table.add_column(name, justify="right" if name else "left")
    for label, pages, move, copy in measured:
        moved, copied = microseconds(move, pages), microseconds(copy, pages)
        table.add_row(label, f"{moved:,.0f}", f"{copied:,.0f}", f"{copied / moved:.1f}")
    console.print(table)
    console.print("Copied: into memory that has to be allocated first. A move needs none.\n")


def main(arguments: Sequence[str]) -> int:
    """Show both, and what to do next."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nbytes", default="512MiB", metavar="SIZE", help="of the array")
    parser.add_argument("--limit", default="64MiB", metavar="SIZE")
    chosen = parser.parse_args(arguments)
    console = Console(highlight=False)
    nbytes = nbytes_of(chosen.nbytes, "--nbytes") // 8 * 8
    right = array_under_limit(console, nbytes, chosen.limit)
    moves_against_copies(console)
    console.print(NEXT)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
