"""Libraries over paged arrays: without a copy of them, within the limit, with equal results."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pagemove
from support.examples import EXAMPLES

pytestmark = pytest.mark.needs("paging")

FOLDER = EXAMPLES / "works_with"
#: What the examples of the folder are of; "slices" is the store over what can be sliced.
LIBRARIES = ("faiss", "numba", "numexpr", "opencv", "pandas", "pillow", "polars", "scipy")
LIBRARIES += ("sklearn", "torch", "xarray")
SLICES = ("function", "tensorstore", "xarray", "dask")

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


def run(name: str, *arguments: str) -> str:
    """Run an example in a process of its own, by one thread where libraries have many."""
    done = subprocess.run(
        [sys.executable, FOLDER / f"with_{name}.py", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "library", [pytest.param(name, marks=pytest.mark.needs(name)) for name in LIBRARIES]
)
def test_example(library: str) -> None:
    said = run(library)
    assert said.endswith("All as said.\n")
    assert "the same" in said
    assert "ANOTHER" not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind == "function" else pytest.mark.needs(kind))
        for kind in SLICES
    ],
)
def test_what_can_be_sliced(kind: str) -> None:
    pytest.importorskip("zarr")
    said = run("slices", kind)
    assert said.startswith(f"{kind}: the same, ")
    assert said.endswith("All as said.\n")


def test_every_example_is_run() -> None:
    names = {path.stem.removeprefix("with_") for path in FOLDER.glob("with_*.py")}
    assert names == {*LIBRARIES, "slices"}


def test_an_example_notices_a_copy_and_another_result(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    shown = importlib.import_module("shown")
    values = shown.numbers(64)
    with shown.paged(values) as array:
        for what, call, copies, right in [
            ("sum", lambda rows: rows.sum(0), False, True),
            ("copy", lambda rows: np.array(rows)[:5], True, True),
            ("copy unawares", lambda rows: np.array(rows)[:5], False, False),
            ("other", lambda rows: rows.ctypes.data, False, False),
        ]:
            report = shown.Shown("numpy", array.region)
            report.call(what, call, array, values, copies=copies)
            with pytest.raises(SystemExit) as ended:
                report.end()
            assert (ended.value.code == 0) == right, capsys.readouterr().out
        report = shown.Shown("numpy", array.region)
        report.view("copy", np.array(array[:5]), array)
        with pytest.raises(SystemExit, match="1"):
            report.end()
    assert "A COPY" in capsys.readouterr().out
