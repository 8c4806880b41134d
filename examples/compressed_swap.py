"""Hold an array four times as large as the memory it may take: what leaves is compressed.

Run: python examples/compressed_swap.py [MEBIBYTES]

An ordinary NumPy array, written and read by ordinary NumPy. Blocks that do not fit below the limit
are kept by zstd in the memory of a helper process.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from pagemove import PagedMemory
from pagemove.stores import CompressedStore

DEFAULT_MIB = 64
TIMES = 4
BLOCK = 256 << 10
ROW = 64 << 10  # readings of one sensor

Readings = npt.NDArray[np.int32]


def readings(sensor: int) -> Readings:
    """Return what one sensor says over time: it wanders, by a little at a time."""
    random = np.random.default_rng(sensor)
    return np.cumsum(random.integers(-2, 3, ROW), dtype=np.int32) + np.int32(20_000)


def fill(table: npt.NDArray[np.int32]) -> None:
    """Write all readings."""
    for sensor, row in enumerate(table):
        row[:] = readings(sensor)


def check(table: npt.NDArray[np.int32]) -> bool:
    """Read all of them, from the last to the first, and compare."""
    order = reversed(range(len(table)))
    return all(np.array_equal(table[sensor], readings(sensor)) for sensor in order)


def ratio(sensors: int) -> float:
    """Say how well such readings compress."""
    some = np.stack([readings(sensor) for sensor in range(min(sensors, 8))])
    with CompressedStore(some.nbytes, block_size=BLOCK) as store:
        store.write(0, some)
        return store.stats()["ratio"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; 0 if every reading came back."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    limit = int(given[0] if given else DEFAULT_MIB) << 20
    sensors = TIMES * limit // (4 * ROW)
    nbytes = sensors * 4 * ROW
    try:
        store = CompressedStore(nbytes, block_size=BLOCK)
    except ModuleNotFoundError as missing:
        print(f"Nothing done: {missing}")
        return 0
    with store, PagedMemory(store, mode="r+", resident_limit=limit, block_size=BLOCK) as region:
        table = region.asarray(np.int32, (sensors, ROW))
        before = time.perf_counter()
        fill(table)
        filled = time.perf_counter()
        same = check(table)
        checked = time.perf_counter()
        stats = region.stats()
        del table
    shown = Table(title="Compressed swap", show_header=False)
    shown.add_column(style="bold")
    shown.add_column(justify="right")
    for name, value in (
        ("the array", f"{nbytes >> 20} MiB"),
        ("the limit", f"{limit >> 20} MiB"),
        ("compresses by", f"{ratio(sensors):.1f} times"),
        ("written in", f"{filled - before:.2f} s"),
        ("read and compared in", f"{checked - filled:.2f} s"),
        ("blocks evicted", f"{stats.evicted:,}"),
        ("of which written back", f"{stats.written_back:,}"),
    ):
        shown.add_row(name, value)
    Console().print(shown)
    print(
        f"All {sensors} rows came back, with a quarter of them in memory at a time."
        if same
        else "A row is not what was written."
    )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
