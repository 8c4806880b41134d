"""Change a large table in place, in its file, through a quarter of the memory it would take.

Run: python examples/update_table.py [--nbytes SIZE] [--transfers N]

The table is an array of records in a .npy file, made in a temporary directory. Every account gets
its interest, in order; then money goes from account to account, at random. Afterwards the file is
read by plain NumPy, and compared with the same changes of an ordinary array, bit for bit.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

import pagemove
from pagemove.paging.sizes import nbytes_of, text_of

Accounts = npt.NDArray[Any]

ACCOUNT = np.dtype([("owner", "S16"), ("cents", "<i8"), ("rate", "<f8"), ("changes", "<u4")])
PART = 1 << 15


def make(path: Path, nbytes: int) -> None:
    """Write a table of accounts."""
    random = np.random.default_rng(2014)
    count = max(nbytes // ACCOUNT.itemsize, 2)
    with path.open("wb") as file:
        descr = np.lib.format.dtype_to_descr(ACCOUNT)
        header = {"descr": descr, "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, count, PART):
            part = np.zeros(min(PART, count - start), ACCOUNT)
            part["owner"] = np.char.mod("owner %d", np.arange(start, start + len(part)))
            part["cents"] = random.integers(1, 10_000_000, len(part))
            part["rate"] = random.choice([0.0, 0.01, 0.025], len(part))
            file.write(part.tobytes())


def pay_interest(accounts: Accounts) -> None:
    """Add to each account its share, in order."""
    for start in range(0, len(accounts), PART):
        part = accounts[start : start + PART]
        part["cents"] += (part["cents"] * part["rate"]).astype(np.int64)
        part["changes"] += 1


def transfer(accounts: Accounts, count: int) -> None:
    """Bring money from account to account, wherever they are in the table."""
    random = np.random.default_rng(1)
    cents, changes = accounts["cents"], accounts["changes"]
    for giver, taker in random.integers(len(accounts), size=(count, 2)):
        amount = cents[giver] // 10
        cents[giver] -= amount
        cents[taker] += amount
        changes[giver] += 1
        changes[taker] += 1


def update(path: Path, transfers: int) -> bool:
    """Do it in the file and in memory, print what happened, and tell whether it was the same."""
    console = Console(highlight=False)
    expected = np.load(path)
    pay_interest(expected)
    transfer(expected, transfers)

    limit = max(path.stat().st_size // 4, 4 * 65536)
    started = time.perf_counter()
    accounts = pagemove.open_array(path, mode="r+", resident_limit=limit)
    region = pagemove.region_of(accounts)
    pay_interest(accounts)
    ordered = region.stats()
    transfer(accounts, transfers)
    changed = time.perf_counter()
    region.flush()
    flushed = time.perf_counter()
    stats = region.stats()

    # Read anew, by plain NumPy, while the region is still there.
    same = np.load(path).tobytes() == expected.tobytes()
    console.print(f"\n{len(accounts):,} accounts, {text_of(expected.nbytes)}\n")
    table = Table()
    for name in ("", "interest, in order", f"{transfers:,} transfers"):
        table.add_column(name, justify="right" if name else "left")
    for name in ("faults", "write_faults", "prefetched", "evicted", "written_back"):
        between = stats - ordered
        row = (getattr(ordered, name), getattr(between, name))
        table.add_row(name.replace("_", " "), *(f"{number:,}" for number in row))
    console.print(table)
    console.print(
        f"Changed in {changed - started:.2f} s, durable {flushed - changed:.2f} s later; "
        f"{text_of(stats.resident_nbytes)} resident of at most {text_of(limit)}."
    )
    console.print("The file is the same, bit for bit." if same else "[bold red]They differ.[/]")
    return same


def main(arguments: Sequence[str]) -> int:
    """Make a table and change it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nbytes", default="256MiB", metavar="SIZE", help="of the table")
    parser.add_argument("--transfers", type=int, default=20_000, metavar="N")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "accounts.npy"
        make(path, nbytes_of(chosen.nbytes, "--nbytes"))
        return 0 if update(path, chosen.transfers) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
