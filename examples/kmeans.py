"""Cluster an array four times larger than the memory it may take: mini-batch k-means.

Run: python examples/kmeans.py [FILE.npy] [--nbytes SIZE] [--clusters N] [--epochs N]

The clustering is plain NumPy, and knows nothing of paging. It is done twice, on the array as it is
paged in, at a limit of a quarter, and on an ordinary one; the centres are the same, bit for bit.
Without a FILE, which has to hold rows of floats, one is made in a temporary directory.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

import pagemove
from pagemove.paging.sizes import nbytes_of, text_of

Rows = npt.NDArray[np.floating[Any]]

COLUMNS = 32
BATCH = 4096


def make(path: Path, nbytes: int, clusters: int) -> None:
    """Write rows around so many centres."""
    random = np.random.default_rng(2014)
    centres = random.normal(scale=4, size=(clusters, COLUMNS)).astype(np.float32)
    count = max(nbytes // (4 * COLUMNS), clusters)
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, COLUMNS)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, count, BATCH):
            which = random.integers(clusters, size=min(BATCH, count - start))
            noise = random.standard_normal((which.size, COLUMNS), np.float32)
            file.write((centres[which] + noise).tobytes())


@contextmanager
def made_file(nbytes: int, clusters: int) -> Iterator[Path]:
    """Make a file to be clustered, and remove it afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        make(path, nbytes, clusters)
        yield path


def nearest(rows: Rows, centres: Rows) -> npt.NDArray[np.intp]:
    """Return the number of the nearest centre of each row."""
    return np.argmin((centres**2).sum(1) - 2 * (rows @ centres.T), axis=1)


def kmeans(
    data: Rows, clusters: int, epochs: int, watch: Callable[[], object] = lambda: None
) -> Rows:
    """Find centres, by batches of neighbouring rows in random order (Sculley, 2010)."""
    random = np.random.default_rng(1)
    starts = np.arange(0, len(data), BATCH)
    centres = data[np.sort(random.choice(len(data), clusters, replace=False))].astype(np.float64)
    seen = np.zeros(clusters)
    # In memory of its own, so that the arithmetic does not depend on where a batch comes from.
    batch = pagemove.empty((BATCH, data.shape[1]), np.float64)
    for _ in range(epochs):
        for start in random.permutation(starts):
            rows = batch[: len(data) - start]
            rows[:] = data[start : start + BATCH]
            which = nearest(rows, centres)
            for number in np.unique(which):
                members = rows[which == number]
                seen[number] += len(members)
                centres[number] += (members.mean(0) - centres[number]) * (
                    len(members) / seen[number]
                )
            watch()
    return centres


def cluster(path: Path, clusters: int, epochs: int) -> bool:
    """Do it both ways, print what happened, and tell whether it was the same."""
    console = Console(highlight=False)
    limit = max(path.stat().st_size // 4, 4 * 65536)
    paged = pagemove.open_array(path, resident_limit=limit)
    region = pagemove.region_of(paged)
    resident = []
    started = time.perf_counter()
    found = kmeans(paged, clusters, epochs, lambda: resident.append(region.stats().resident_nbytes))
    paged_seconds = time.perf_counter() - started
    stats = region.stats()

    ordinary = np.load(path)
    started = time.perf_counter()
    expected = kmeans(ordinary, clusters, epochs)
    ordinary_seconds = time.perf_counter() - started
    same = found.tobytes() == expected.tobytes()

    shape = f"{len(paged):,} rows of {paged.shape[1]}"
    console.print(f"\n{path}: {shape}, {clusters} centres, {epochs} epochs\n", soft_wrap=True)
    table = Table()
    for name in ("", "in memory", "paged"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("seconds", f"{ordinary_seconds:.2f}", f"{paged_seconds:.2f}")
    table.add_row("resident at most", text_of(ordinary.nbytes), text_of(max(resident)))
    table.add_row("limit", "none", text_of(limit))
    table.add_row("faults", "", f"{stats.faults:,}")
    table.add_row("read ahead", "", f"{stats.prefetched:,} blocks")
    table.add_row("evicted", "", f"{stats.evicted:,} blocks")
    console.print(table)
    console.print("The same centres, bit for bit." if same else "[bold red]They differ.[/]")
    return same and max(resident) <= limit


def main(arguments: Sequence[str]) -> int:
    """Do it with the file that is named, or with one that is made."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE.npy")
    parser.add_argument("--nbytes", default="256MiB", metavar="SIZE", help="of the file to be made")
    parser.add_argument("--clusters", type=int, default=16, metavar="N")
    parser.add_argument("--epochs", type=int, default=2, metavar="N")
    chosen = parser.parse_args(arguments)
    file = (
        nullcontext(chosen.file)
        if chosen.file
        else made_file(nbytes_of(chosen.nbytes, "--nbytes"), chosen.clusters)
    )
    with file as path:
        return 0 if cluster(path, chosen.clusters, chosen.epochs) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
