"""PyTorch over paged arrays: tensors that are their memory, bfloat16, and a DataLoader.

Install PyTorch first: the CPU build of https://pytorch.org is small, that of PyPI is not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from shown import Shown, numbers, paged
from torch.utils.data import DataLoader, Dataset


class Rows(Dataset[Any]):
    """The rows of an array, as a DataLoader takes them: in processes of its own too."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array) // 64

    def __getitem__(self, index: int) -> Any:
        """Return 64 rows in memory of their own."""
        return torch.from_numpy(np.array(self._array[64 * index : 64 * index + 64]))


def sums(rows: Any) -> Any:
    """Reduce all of it."""
    return torch.from_numpy(np.asarray(rows)).sum(0)


def product(rows: Any) -> Any:
    """Multiply it by a small matrix."""
    return torch.from_numpy(np.asarray(rows)) @ torch.ones(rows.shape[1], 2)


def loaded(rows: Any, workers: int = 0) -> Any:
    """Go through it in batches, in an order that is the same each time."""
    torch.manual_seed(1)
    # Workers are spawned: the array travels by reference, and each has a region of its own.
    context = "spawn" if workers else None
    batches = DataLoader(
        Rows(rows), 8, shuffle=True, num_workers=workers, multiprocessing_context=context
    )
    return torch.stack([batch.sum() for batch in batches])


def doubled(rows: Any) -> Any:
    """Compute as many items as there are."""
    return (torch.from_numpy(np.asarray(rows)) * 2)[::1000]


def main() -> None:
    """Show it."""
    values = numbers(64)
    # Tensors can be written: the mode is one in which arrays can be, and changes stay private.
    with paged(values, mode="c") as array, paged(values) as shared:
        shown = Shown("torch", array.region)
        shown.view("from_numpy", torch.from_numpy(np.asarray(array)).numpy(), array)
        shown.call("sum", sums, array, values)
        shown.call("matrix product", product, array, values)
        shown.call("DataLoader", loaded, array, values)
        whole = memoryview(np.asarray(array)).cast("B")
        seen = torch.frombuffer(whole, dtype=torch.bfloat16)
        shown.view("frombuffer of bfloat16", seen.view(torch.int16).numpy(), array)
        shown.call("a new tensor of all", doubled, array, values, copies=True)
        same = torch.equal(loaded(shared, workers=2), loaded(values))
        shown.check("DataLoader with two processes: the same", same)
        shown.end()


if __name__ == "__main__":
    main()
