"""Reverse the order of a file's pages in memory, and back, without copying a byte.

Run: python examples/reorder_file.py [FILE]

The file is read into one `Memory`. A second one takes up addresses, but no memory: each page goes
from the first to its new place in the second, so at no time are there two copies of anything.
"""

from __future__ import annotations

import hashlib
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from pagemove import PAGE_SIZE, Memory, move_many, vmas

Blocks = npt.NDArray[Any]

TURNS = 9
#: Pages that go together.
SIZES = (1, 16, 256)
METHODS = ("moving pages", "copying", "copying, fresh memory")


def default_file() -> Path:
    """Return the running interpreter: its executable, or the library that most of it is in."""
    executable = Path(sys.executable).resolve()
    library = Path(
        sysconfig.get_config_var("LIBDIR") or "", sysconfig.get_config_var("INSTSONAME") or ""
    )
    is_tiny = executable.stat().st_size < 1 << 20
    return library if is_tiny and library.is_file() else executable


def sha256(blocks: Blocks, nbytes: int) -> str:
    """Hash the first `nbytes` bytes of blocks that follow each other."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block[:nbytes])
        nbytes -= min(nbytes, block.size)
    return digest.hexdigest()


def milliseconds(call: Callable[[], object]) -> float:
    """Time one call."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


def reverse_and_back(path: Path, pages: int) -> dict[str, Any]:
    """Reverse blocks of pages and back, by moving and by copying; tell what happened."""
    size, nbytes = pages * PAGE_SIZE, path.stat().st_size
    count = -(-nbytes // size)
    forward = np.arange(count)
    backward = forward[::-1].copy()
    with Memory(count * size) as memory, Memory(count * size) as other:
        here, there = (area.asarray(np.uint8, (count, size)) for area in (memory, other))
        here[:] = 0
        with path.open("rb") as file:
            file.readinto(here.reshape(-1)[:nbytes])
        # The competitors: NumPy in memory of its own, the second array at hand, or made for it.
        array, temporary = here.copy(), np.zeros_like(here)

        def move() -> None:
            move_many(other, memory, forward, backward, page_size=size)

        def move_back() -> None:
            move_many(memory, other, backward, forward, page_size=size)

        def copy_there_and_back() -> None:
            temporary[:] = array[::-1]
            array[:] = temporary[::-1]

        def copy_fresh_there_and_back() -> None:
            array[::-1].copy()[::-1].copy()

        vmas()  # so that the interpreter has what memory it needs for the list
        mappings = [len(vmas())]
        move()
        mappings.append(len(vmas()))
        sums = [sha256(there[::-1], nbytes)]
        move_back()
        copy_there_and_back()
        times: dict[str, list[float]] = {method: [] for method in METHODS}
        for _ in range(TURNS):
            times["moving pages"].append(milliseconds(move) + milliseconds(move_back))
            times["copying"].append(milliseconds(copy_there_and_back))
            times["copying, fresh memory"].append(milliseconds(copy_fresh_there_and_back))
        sums.append(sha256(here, nbytes))
        assert (array == here).all()
        del here, there
        return {
            "mappings": mappings,
            "sums": sums,
            "times": {method: statistics.median(each) for method, each in times.items()},
            "nbytes": array.nbytes,
        }


def report(path: Path, outcomes: dict[int, dict[str, Any]], file_sum: str) -> bool:
    """Print what happened; return whether every sum is that of the file."""
    console = Console(highlight=False)
    title = f"{path}: {path.stat().st_size / 2**20:.1f} MiB, reversed in memory, and back"
    console.print(f"\n{title}\n", soft_wrap=True)
    table = Table(caption=f"Medians of {TURNS} turns, each of them there and back.")
    for name in ("", *METHODS):
        table.add_column(name, justify="right" if name else "left")
    for pages, one in outcomes.items():
        what = "one page" if pages == 1 else f"{pages} pages"
        table.add_row(
            f"{what} at a time", *(f"{one['times'][method]:.2f} ms" for method in METHODS)
        )
    single = outcomes[SIZES[0]]
    nbytes, (before, after) = single["nbytes"], single["mappings"]
    table.add_row("bytes copied", "0", *[f"{2 * nbytes:,}"] * 2)
    table.add_row("bytes needed beside", "0", *[f"{nbytes:,}"] * 2)
    table.add_row("mappings before, after", f"{before}, {after}", "", "")
    console.print(table)
    reversed_sum, back_sum = single["sums"]
    for name, total in (
        ("of the file", file_sum),
        ("reversed, read backwards", reversed_sum),
        ("there and back", back_sum),
    ):
        console.print(f"SHA-256 {name:<25} {total[:32]}...")
    right = all(total == file_sum for one in outcomes.values() for total in one["sums"])
    console.print("All the same." if right else "[bold red]They differ.[/]")
    for pages, one in outcomes.items():
        ratio = one["times"]["moving pages"] / one["times"]["copying"]
        blocks = f"blocks of {pages * PAGE_SIZE // 1024:,} KiB"
        console.print(f"In {blocks} moving takes {ratio:.2f} x as long as copying.")
    return right


def main(arguments: Sequence[str]) -> int:
    """Do it with the file that is named, or with the interpreter itself."""
    path = Path(arguments[0]) if arguments else default_file()
    if not path.is_file() or not path.stat().st_size:
        print(f"{path} is not a file with something in it", file=sys.stderr)
        return 2
    file_sum = hashlib.sha256(path.read_bytes()).hexdigest()
    outcomes = {pages: reverse_and_back(path, pages) for pages in SIZES}
    return 0 if report(path, outcomes, file_sum) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
