"""Data sets over paged arrays in workers: PyTorch's DataLoader where it is installed.

Its wheel on PyPI is 550 MB, and needs the libraries of CUDA; its CPU build is 190 MB, and is not on
PyPI. So `Loader` has workers as that has: the data set is an argument of their processes, each has
a queue of batches of indices, and what they return comes by one queue.
"""

from __future__ import annotations

import multiprocessing
import os

import numpy as np
import pytest

import pagemove
from support.children import newborn

pytestmark = [pytest.mark.needs("paging", "fork"), pytest.mark.slow]

ROWS = np.arange(400_000, dtype=np.int64).reshape(8000, 50)
LIMIT = 256 << 10
BATCH = 64
WORKERS = 4
#: None is the default of the interpreter: fork, from Python 3.14 on forkserver.
METHODS = [None, "fork", "spawn", "forkserver"]


class Rows:
    """A data set, as `torch.utils.data.Dataset`: it has a length, and items."""

    def __init__(self, array):
        self.array = array

    def __len__(self):
        return len(self.array)

    def __getitem__(self, at):
        return int(self.array[at].sum())

    def __getitems__(self, batch):
        return [self[at] for at in batch]


class Taken(Rows):
    """The same, but a batch is one call of `pagemove.take`."""

    def __getitems__(self, batch):
        return pagemove.take(self.array, batch).sum(axis=1).tolist()


class Resident(Rows):
    """The same, but an item is what is in memory of it, and the process where."""

    def __getitem__(self, at):
        super().__getitem__(at)
        return os.getpid(), pagemove.region_of(self.array).stats().resident_nbytes


class Loader:
    """Batches in order, of a data set that is in so many processes."""

    def __init__(self, data, batches, workers, method):
        self._data, self._batches, self._workers = data, batches, workers
        self._context = multiprocessing.get_context(method)

    def __iter__(self):
        results = self._context.Queue()
        queues = [self._context.Queue() for _ in range(self._workers)]
        processes = [
            self._context.Process(target=_work, args=(self._data, queue, results), daemon=True)
            for queue in queues
        ]
        for process in processes:
            process.start()
        for number, batch in enumerate(self._batches):
            queues[number % self._workers].put((number, batch))
        for queue in queues:
            queue.put(None)
        waiting = {}
        for number in range(len(self._batches)):
            while number not in waiting:
                at, items = results.get(timeout=100)
                waiting[at] = items
            yield waiting.pop(number)
        for process in processes:
            process.join()
            assert process.exitcode == 0


def _work(data, batches, results):
    for number, batch in iter(batches.get, None):
        results.put((number, data.__getitems__(batch)))


def _loaded(path, method, make):
    array = pagemove.open_array(path, resident_limit=LIMIT, block_size=4096)
    batches = np.random.default_rng(5).permutation(len(ROWS))[: 40 * BATCH].reshape(-1, BATCH)
    array[0, 0].item()  # as programs look at what they have opened
    before = pagemove.region_of(array).stats().faults
    for kind in (Rows, Taken):
        for batch, sums in zip(batches, make(kind(array), batches.tolist(), method), strict=True):
            assert list(sums) == ROWS[batch].sum(axis=1).tolist()
    assert pagemove.region_of(array).stats().faults == before  # not one by this process
    seen = [each for some in make(Resident(array), batches.tolist(), method) for each in some]
    most = {pid: max(nbytes for other, nbytes in seen if other == pid) for pid, _ in seen}
    assert len(most) == WORKERS
    assert os.getpid() not in most
    assert all(0 < nbytes <= LIMIT for nbytes in most.values()), most
    assert int(array[7, 7]) == ROWS[7, 7]


def _as_there(data, batches, method):
    return Loader(data, batches, WORKERS, method)


def _by_torch(data, batches, method):
    from torch.utils.data import DataLoader

    return DataLoader(
        data,
        batch_sampler=batches,
        num_workers=WORKERS,
        multiprocessing_context=method,
        collate_fn=list,
    )


@pytest.mark.parametrize("method", METHODS)
def test_workers_as_those_of_a_data_loader(tmp_path, method):
    np.save(tmp_path / "rows.npy", ROWS)
    newborn(_loaded, tmp_path / "rows.npy", method, _as_there, deadline=100)


@pytest.mark.needs("torch")
@pytest.mark.parametrize("method", METHODS)
def test_a_data_loader(tmp_path, method):
    np.save(tmp_path / "rows.npy", ROWS)
    newborn(_loaded, tmp_path / "rows.npy", method, _by_torch, deadline=100)
