"""Look up embeddings in a table that is in Redis, from several processes with little memory each.

Run: python examples/embeddings_in_redis.py REDIS_URL [ROWS]

One process writes the table. Then each of some others has all of it as an ordinary array, of which
it keeps what it looks up often. The server may be a cluster; the table is removed in the end.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pagemove import PagedMemory
from pagemove.stores import RedisStore

DEFAULT_ROWS = 100_000
WIDTH = 256
PROCESSES = 3
LOOKUPS = 2000
# A row is 1 KiB. Rows are picked one by one, so little is read with each.
BLOCK = 16 << 10
LIMIT = "4MiB"

Vectors = npt.NDArray[np.float32]


class Told(NamedTuple):
    """What one process says of its lookups."""

    right: bool
    seconds: float
    faults: int
    resident: int


def embeddings(rows: npt.NDArray[np.int64]) -> Vectors:
    """Return the embeddings of some rows: what they are is not the point."""
    phases = rows[:, None] * np.float64(0.61803398875) + np.arange(WIDTH) * 0.1
    return np.cos(phases).astype(np.float32)


def store_table(url: str, key: str, rows: int) -> None:
    """Write the table."""
    nbytes = rows * WIDTH * 4
    with RedisStore(url, key, nbytes=nbytes, create=True, block_size=BLOCK) as store:
        for first in range(0, rows, 2048):
            some = embeddings(np.arange(first, min(first + 2048, rows)))
            store.write(first * WIDTH * 4, some)
        store.flush()


def look_up(url: str, key: str, rows: int, seed: int) -> Told:
    """Look up rows, some of them far more often than others, as words of a text are."""
    picked = (np.random.default_rng(seed).zipf(1.3, LOOKUPS) * 7919 % rows).astype(np.int64)
    with (
        RedisStore(url, key) as store,
        PagedMemory(store, resident_limit=LIMIT, block_size=BLOCK, prefetch="off") as region,
    ):
        table = region.asarray(np.float32, (rows, WIDTH))
        before = time.perf_counter()
        found = np.stack([table[row] for row in picked])
        seconds = time.perf_counter() - before
        stats = region.stats()
        del table
    right = np.array_equal(found, embeddings(picked))
    return Told(right, seconds, stats.faults, stats.resident_nbytes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; 0 if every process found what was stored."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if not given:
        print(__doc__)
        return 2
    url, rows = given[0], int(given[1]) if len(given) > 1 else DEFAULT_ROWS
    key = f"embeddings-{os.getpid()}"
    try:
        store_table(url, key, rows)
    except ModuleNotFoundError as missing:
        print(f"Nothing done: {missing}")
        return 0
    try:
        with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
            told = pool.starmap(look_up, [(url, key, rows, seed) for seed in range(PROCESSES)])
    finally:
        with RedisStore(url, key, writable=True) as store:
            store.remove()
    print(f"{rows} rows of {WIDTH} numbers, {rows * WIDTH * 4 / 1e6:.0f} MB, in {url}")
    for number, one in enumerate(told):
        print(
            f"process {number}: {LOOKUPS} lookups in {one.seconds:.2f} s, {one.faults} of them had "
            f"to ask the server; {one.resident / 1e6:.1f} MB in memory"
        )
    right = all(one.right for one in told)
    print("All found what was stored." if right else "Something else was found than was stored.")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
