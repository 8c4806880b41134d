"""Read a file of a gigabyte through 256 MiB of memory, and verify every byte.

Run: python examples/page_file.py [FILE] [--limit SIZE] [--block SIZE] [--nbytes SIZE]

The file is an array; hashlib, a C extension that knows nothing of paging, reads it through its
pointer. Without a FILE one is made, of random bytes, in a temporary directory. What the kernel says
of the memory of the process is printed beside what pagemove says.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import pagemove
from pagemove import PAGE_SIZE
from pagemove.paging.sizes import nbytes_of, text_of

PIECE = 4 << 20


@contextmanager
def made_file(nbytes: int) -> Iterator[Path]:
    """Make a file of random bytes, and remove it afterwards."""
    random = np.random.default_rng(2014)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.bin"
        with path.open("wb") as file:
            for start in range(0, nbytes, PIECE):
                file.write(random.bytes(min(PIECE, nbytes - start)))
        yield path


def resident() -> int:
    """Bytes of memory that the process has, as the kernel counts them."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_SIZE


def read_plainly(path: Path) -> tuple[str, float]:
    """Hash a file by reading it piece by piece; return the sum and the seconds."""
    started = time.perf_counter()
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(PIECE))
    with path.open("rb", buffering=0) as file:
        while got := file.readinto(buffer):
            digest.update(buffer[:got])
    return digest.hexdigest(), time.perf_counter() - started


def read_paged(path: Path, limit: str, block: str) -> tuple[str, float, dict[str, int]]:
    """Hash a file as one array; return the sum, the seconds, and what happened meanwhile."""
    before = most_resident = resident()
    started = time.perf_counter()
    digest = hashlib.sha256()
    array = pagemove.open_array(path, dtype=np.uint8, resident_limit=limit, block_size=block)
    region = pagemove.region_of(array)
    most_paged = 0
    for start in range(0, array.size, PIECE):
        digest.update(array[start : start + PIECE])
        most_paged = max(most_paged, region.stats().resident_nbytes)
        most_resident = max(most_resident, resident())
    seconds = time.perf_counter() - started
    stats = region.stats()
    return (
        digest.hexdigest(),
        seconds,
        {
            "region": most_paged,
            "process": most_resident - before,
            "faults": stats.faults,
            "prefetched": stats.prefetched,
            "p50": stats.p50_ns,
            "p99": stats.p99_ns,
        },
    )


def report(path: Path, limit: str, block: str) -> bool:
    """Read the file both ways, print what happened, and tell whether all is as it should be."""
    console = Console(highlight=False)
    nbytes = path.stat().st_size
    plain_sum, plain_seconds = read_plainly(path)
    paged_sum, paged_seconds, seen = read_paged(path, limit, block)
    size = text_of(nbytes)
    console.print(f"\n{path}: {size}, through {limit} in blocks of {block}\n", soft_wrap=True)
    table = Table()
    for name in ("", "read by pieces", "paged, as one array"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("seconds, with SHA-256", f"{plain_seconds:.2f}", f"{paged_seconds:.2f}")
    table.add_row(
        "GB/s", *(f"{nbytes / seconds / 1e9:.2f}" for seconds in (plain_seconds, paged_seconds))
    )
    table.add_row("resident at most", text_of(PIECE), text_of(seen["region"]))
    table.add_row("the process grew by", "", text_of(seen["process"]))
    table.add_row("faults, read ahead", "", f"{seen['faults']:,}, {seen['prefetched']:,} blocks")
    table.add_row("half of the faults within", "", f"{seen['p50'] / 1000:.1f} us")
    table.add_row("99 of 100 faults within", "", f"{seen['p99'] / 1000:.1f} us")
    console.print(table)
    for name, total in (("by pieces", plain_sum), ("paged", paged_sum)):
        console.print(f"SHA-256 {name:<10} {total[:32]}...")
    within = seen["region"] <= nbytes_of(limit, "--limit")
    console.print("The same bytes." if plain_sum == paged_sum else "[bold red]They differ.[/]")
    console.print("Within the limit." if within else "[bold red]Beyond the limit.[/]")
    return within and plain_sum == paged_sum


def main(arguments: Sequence[str]) -> int:
    """Do it with the file that is named, or with one that is made."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--limit", default="256MiB", metavar="SIZE")
    parser.add_argument("--block", default="64KiB", metavar="SIZE")
    parser.add_argument("--nbytes", default="1GiB", metavar="SIZE", help="of the file to be made")
    chosen = parser.parse_args(arguments)
    if chosen.file is None:
        with made_file(nbytes_of(chosen.nbytes, "--nbytes")) as path:
            return 0 if report(path, chosen.limit, chosen.block) else 1
    if not chosen.file.is_file() or not chosen.file.stat().st_size:
        print(f"{chosen.file} is not a file with something in it", file=sys.stderr)
        return 2
    return 0 if report(chosen.file, chosen.limit, chosen.block) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
