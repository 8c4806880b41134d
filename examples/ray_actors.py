"""Actors of Ray that share one table in Redis, each with little memory of its own.

Run: python examples/ray_actors.py REDIS_URL [ROWS]

The table is opened once and passed to the actors, which get a reference: a few hundred bytes, of
whatever size it is. Each finds the nearest of its part of the rows; what it returns is a row of the
table, and that is a reference again. The table is removed in the end.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import pagemove
from pagemove.stores import RedisStore

DEFAULT_ROWS = 40_000
WIDTH = 256
ACTORS = 2
# A row is 1 KiB.
BLOCK = 64 << 10
LIMIT = "4MiB"

Vectors = npt.NDArray[np.float32]


def vectors(first: int, last: int) -> Vectors:
    """Return some rows of the table: what they are is not the point."""
    phases = np.arange(first, last)[:, None] * 0.61803398875 + np.arange(WIDTH) * 0.1
    return np.cos(phases).astype(np.float32)


class Searcher:
    """Part of a table, in a process of its own."""

    def __init__(self, part: Vectors) -> None:
        self._part = part

    def nearest(self, wanted: Vectors) -> tuple[float, Vectors]:
        """Return the distance of the row that is nearest, and the row."""
        found = np.inf, self._part[0]
        for first in range(0, len(self._part), 1024):
            some = self._part[first : first + 1024]
            distances = np.linalg.norm(some - wanted, axis=1)
            at = int(distances.argmin())
            if distances[at] < found[0]:
                found = float(distances[at]), some[at]
        return found

    def resident(self) -> int:
        """Return the bytes of the table in this process."""
        return pagemove.region_of(self._part).stats().resident_nbytes


def search(ray: Any, table: Vectors, wanted: Vectors) -> tuple[Vectors, list[int]]:
    """Return the row that is nearest, and what each actor has in memory."""
    step = -(-len(table) // ACTORS)
    actor = ray.remote(Searcher)
    actors = [actor.remote(table[at : at + step]) for at in range(0, len(table), step)]
    answers = ray.get([each.nearest.remote(wanted) for each in actors])
    resident = ray.get([each.resident.remote() for each in actors])
    return min(answers, key=lambda answer: float(answer[0]))[1], resident


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; 0 if the right row was found."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if not given:
        print(__doc__)
        return 2
    url, rows = given[0], int(given[1]) if len(given) > 1 else DEFAULT_ROWS
    key = f"vectors-{os.getpid()}"
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        print("Nothing done: ray is not installed: pip install ray")
        return 0
    with RedisStore(
        url, key, nbytes=rows * WIDTH * 4, create=True, block_size=BLOCK
    ) as store:  # fmt: skip
        for first in range(0, rows, 2048):
            last = min(first + 2048, rows)
            store.write(first * WIDTH * 4, vectors(first, last))
        store.flush()
    try:
        table = pagemove.open_array(
            f"{url}#{key}", dtype=np.float32, shape=(rows, WIDTH), resident_limit=LIMIT
        )
        ray.init(num_cpus=ACTORS, include_dashboard=False, object_store_memory=80 << 20)
        wanted = rows * 2 // 3
        row, resident = search(ray, table, vectors(wanted, wanted + 1)[0])
        here = pagemove.region_of(table).stats().bytes_read
        ray.shutdown()
        right = type(row) is pagemove.PagedArray and bool((row == table[wanted]).all())
        del row, table
    finally:
        with RedisStore(url, key, writable=True) as store:
            store.remove()
    print(f"{rows} rows of {WIDTH} numbers, {rows * WIDTH * 4 / 1e6:.0f} MB, in {url}")
    for number, nbytes in enumerate(resident):
        print(f"actor {number}: {nbytes / 1e6:.1f} MB in memory")
    print(f"this process had read {here} bytes when the row was found")
    print("The nearest row was found." if right else "Another row was found.")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
