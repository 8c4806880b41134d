"""Draw docs/_static/resident.svg: a file that is read as one array, and the memory that it takes.

Run: python docs/figures/resident.py [FIGURE] [--nbytes SIZE] [--limit SIZE]

The file is sparse, so that it needs no disk; the pager reads all of its bytes all the same. What is
drawn is what the kernel says of the process (/proc/self/statm), less what it had before.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import pagemove
from pagemove.paging.sizes import nbytes_of, text_of

PIECE = 64 << 20
FIGURE = Path(__file__).parents[1] / "_static" / "resident.svg"


def resident() -> int:
    """Return the bytes of memory that the process has, as the kernel counts them."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * pagemove.PAGE_SIZE


def measured(nbytes: int, limit: str) -> tuple[list[int], list[int]]:
    """Sum a file of that length as one array; return bytes read, and bytes that it took then."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "large.bin")
        with path.open("wb") as file:
            file.truncate(nbytes)
        before = resident()
        array = pagemove.open_array(path, dtype=np.int64, resident_limit=limit)
        read, taken = [0], [resident() - before]
        for start in range(0, array.size, PIECE // 8):
            assert array[start : start + PIECE // 8].sum() == 0
            read.append(min(nbytes, start * 8 + PIECE))
            taken.append(resident() - before)
    return read, taken


def draw(path: Path, read: list[int], taken: list[int], limit: str) -> None:
    """Draw what was measured."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    gib = 1 << 30
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "pagemove"}):
        figure = Figure(figsize=(7.2, 3.6), facecolor="white")
        axes = figure.add_axes((0.09, 0.15, 0.87, 0.68))
        x = [n / gib for n in read]
        axes.fill_between(x, x, color="#DDE6EE")
        axes.plot(x, [n / gib for n in taken], color="#007A55", linewidth=3)
        axes.set(xlim=(0, x[-1]), ylim=(0, x[-1]))
        axes.set_xlabel("GiB of the array read so far")
        axes.set_ylabel("GiB")
        axes.text(x[-1] * 0.66, x[-1] * 0.36, "read so far", color="#4A5A68", fontsize=12)
        axes.text(
            x[-1] * 0.02,
            max(taken) / gib + x[-1] * 0.04,
            f"memory of the process: at most {text_of(max(taken) >> 20 << 20)} more than before",
            color="#007A55",
            fontsize=12,
            fontweight="bold",
        )
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        figure.text(
            0.09,
            0.9,
            f"One array of {text_of(read[-1])} under a limit of "
            f"{text_of(nbytes_of(limit, '--limit'))}",
            fontsize=14,
            fontweight="bold",
        )
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main(arguments: Sequence[str]) -> int:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("figure", type=Path, nargs="?", default=FIGURE)
    parser.add_argument("--nbytes", default="8GiB", metavar="SIZE", help="of the file")
    parser.add_argument("--limit", default="256MiB", metavar="SIZE")
    chosen = parser.parse_args(arguments)
    read, taken = measured(nbytes_of(chosen.nbytes, "--nbytes"), chosen.limit)
    draw(chosen.figure, read, taken, chosen.limit)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
