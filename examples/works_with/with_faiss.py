"""Nearest neighbours with faiss: indexes copy what is added, the brute force search does not."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from shown import Shown, numbers, paged


def main() -> None:
    """Show it."""
    values = numbers(64)
    queries = values[::40_000] + np.float32(0.01)

    def nearest(rows: Any) -> Any:
        """Search all of them where they are."""
        return faiss.knn(queries, np.asarray(rows), 5)[1]

    def added(rows: Any) -> Any:
        """Add all to an index, which keeps them in memory of its own."""
        index = faiss.IndexFlatL2(rows.shape[1])
        index.add(np.asarray(rows))
        return index.search(queries, 5)[1]

    def quantized(rows: Any) -> Any:
        """Add all to an index that keeps 8 bytes for each, some at a time."""
        index = faiss.IndexPQ(rows.shape[1], 8, 6)
        index.train(np.asarray(rows[:4096]))
        for start in range(0, len(rows), 8192):
            index.add(np.asarray(rows[start : start + 8192]))
        return index.search(queries, 5)[1]

    with paged(values) as array:
        shown = Shown("faiss-cpu", array.region)
        shown.call("knn", nearest, array, values)
        shown.call("IndexPQ.add", quantized, array, values)
        shown.call("IndexFlatL2.add", added, array, values, copies=True)
        shown.end()


if __name__ == "__main__":
    main()
