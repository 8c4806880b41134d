"""Return a paged array to C code that knows nothing of paging: a pointer is a pointer.

Run: python examples/c_extension.py [--nbytes SIZE]

Two C functions are compiled on the spot. One reads the whole array, from several threads at once;
the other sorts every row in place, so that the file is changed. Both get the address of the first
item, and nothing else. The results are compared with those on an ordinary array, bit for bit.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

import pagemove
from pagemove.paging.sizes import nbytes_of, text_of

SOURCE = r"""
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

void count_values(const uint16_t *items, size_t count, uint64_t *counts)
{
    for (size_t i = 0; i < count; i++)
        counts[items[i]]++;
}

static int compare(const void *one, const void *other)
{
    return (int)*(const uint16_t *)one - (int)*(const uint16_t *)other;
}

void sort_rows(uint16_t *items, size_t rows, size_t columns)
{
    for (size_t row = 0; row < rows; row++)
        qsort(items + row * columns, columns, sizeof *items, compare);
}
"""

COLUMNS = 2048
THREADS = 3

Words = npt.NDArray[np.uint16]


def compiled(folder: Path) -> ctypes.CDLL | None:
    """Compile and load the C code; None where there is no compiler."""
    compiler = os.environ.get("CC") or shutil.which("cc")
    if not compiler:
        return None
    source, library = folder / "example.c", folder / "example.so"
    source.write_text(SOURCE)
    command = [*compiler.split(), "-O2", "-shared", "-fPIC", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    found = ctypes.CDLL(str(library))
    found.count_values.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    found.count_values.restype = None
    found.sort_rows.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    found.sort_rows.restype = None
    return found


def count_values(code: ctypes.CDLL, array: Words) -> npt.NDArray[np.uint64]:
    """Count how often each value occurs, in several threads; ctypes lets go of the GIL."""
    counts = np.zeros((THREADS, 1 << 16), np.uint64)
    parts = np.array_split(array.reshape(-1), THREADS)

    def count(part: Words, into: npt.NDArray[Any]) -> None:
        code.count_values(part.ctypes.data, part.size, into.ctypes.data)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(count, parts, counts))
    return counts.sum(0)


def sort_rows(code: ctypes.CDLL, array: Words) -> None:
    """Sort each row, where it is."""
    code.sort_rows(array.ctypes.data, *array.shape)


def run(path: Path, code: ctypes.CDLL) -> bool:
    """Do it with the paged array, print what happened, and tell whether it is right."""
    console = Console(highlight=False)
    ordinary = np.load(path)
    limit = max(path.stat().st_size // 4, 4 * 65536)
    paged = pagemove.open_array(path, mode="r+", resident_limit=limit)
    region = pagemove.region_of(paged)

    counted = (count_values(code, paged) == count_values(code, ordinary)).all()
    after_counting = region.stats()
    sort_rows(code, paged)
    region.flush()
    after_sorting = region.stats() - after_counting
    sorted_right = np.load(path).tobytes() == np.sort(ordinary, axis=1).tobytes()

    console.print(f"\n{len(paged):,} rows, {text_of(paged.nbytes)}, through {text_of(limit)}\n")
    table = Table()
    for name in ("", f"read by {THREADS} threads", "sorted in place"):
        table.add_column(name, justify="right" if name else "left")
    for name in ("faults", "write_faults", "prefetched", "evicted", "written_back"):
        row = (getattr(after_counting, name), getattr(after_sorting, name))
        table.add_row(name.replace("_", " "), *(f"{number:,}" for number in row))
    console.print(table)
    console.print("The same counts." if counted else "[bold red]The counts differ.[/]")
    console.print(
        "The file is sorted, bit for bit." if sorted_right else "[bold red]The rows differ.[/]"
    )
    return bool(counted) and sorted_right


def main(arguments: Sequence[str]) -> int:
    """Make a file and give it to C."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nbytes", default="64MiB", metavar="SIZE", help="of the array")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        code = compiled(Path(folder))
        if code is None:
            print("there is no C compiler: set CC, or install one as cc", file=sys.stderr)
            return 2
        path = Path(folder) / "rows.npy"
        rows = max(nbytes_of(chosen.nbytes, "--nbytes") // (2 * COLUMNS), 1)
        random = np.random.default_rng(2014)
        np.save(path, random.integers(1 << 16, size=(rows, COLUMNS), dtype=np.uint16))
        return 0 if run(path, code) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
