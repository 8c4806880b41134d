"""Headers that were changed: an error that is meant, or what is in the file; never much memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.children import newborn
from support.mutated_headers import SAMPLES, run

MODULES = {"hdf5": "h5py", "hdf5 latest": "h5py", "arrow": "pyarrow"}


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_changed_headers(tmp_path: Path, kind: str, count: int) -> None:
    if kind not in ("npz", "npy"):
        pytest.importorskip(MODULES.get(kind, kind))
    # A process of its own: a signal, or too much memory, is a failure.
    fine, refused = newborn(run, kind, count, 2014, tmp_path, deadline=280)
    assert fine + refused == count
    assert fine
    assert refused
