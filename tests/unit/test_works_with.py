"""Libraries over paged arrays: without a copy of them, within the limit, with equal results."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pagemove

pytestmark = pytest.mark.needs("paging")

LIMIT = 1 << 20
SHAPE = (40_000, 16)  # 5 MB
Made = tuple[Any, Any]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Return an array that is paged, and the same in memory."""
    values = np.random.default_rng(6).random(SHAPE)
    np.save(tmp_path / "x.npy", values)
    paged = pagemove.open_array(
        tmp_path / "x.npy", mode="c", resident_limit=LIMIT, block_size=16384
    )
    return paged, values


def pandas(array: Any) -> tuple[Any, Any]:
    frame = importlib.import_module("pandas").DataFrame(np.asarray(array), copy=False)
    return frame.to_numpy(), frame.mean().to_numpy()


def xarray(array: Any) -> tuple[Any, Any]:
    data = importlib.import_module("xarray").DataArray(np.asarray(array), dims=("x", "y"))
    return data.values, data.mean("x").values


def dask(array: Any) -> tuple[Any, Any]:
    module = importlib.import_module("dask.array")
    lazy = module.from_array(np.asarray(array), chunks=(2000, 16), name=False)
    return np.asarray(array), lazy.sum(axis=0).compute(scheduler="single-threaded")


def pillow(array: Any) -> tuple[Any, Any]:
    module = importlib.import_module("PIL.Image")
    seen = np.asarray(array)[:512].view(np.uint8)
    return seen, np.asarray(module.fromarray(seen).resize((64, 64)))


@pytest.mark.parametrize(
    ("library", "use"),
    [("pandas", pandas), ("xarray", xarray), ("dask", dask), ("PIL", pillow)],
)
def test_the_same_without_a_copy_and_within_the_limit(
    made: Made, library: str, use: Callable[[Any], tuple[Any, Any]]
) -> None:
    pytest.importorskip(library)
    paged, values = made
    seen, result = use(paged)
    assert np.shares_memory(seen, paged)
    np.testing.assert_array_equal(result, use(values)[1])
    stats = paged.region.stats()
    assert 0 < stats.resident_nbytes <= LIMIT
    assert stats.bytes_read > 0
