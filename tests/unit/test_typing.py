"""Programs as the documents show them pass a strict type checker."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROGRAM = textwrap.dedent(
    """
    from typing import assert_type

    import numpy as np
    import numpy.typing as npt

    import pagemove
    from pagemove.stores import Store


    class Zeros(Store):
        @property
        def nbytes(self) -> int:
            return 8000

        def read_into(self, offset: int, buffer: memoryview) -> None:
            buffer[:] = bytes(len(buffer))

        def write(self, offset: int, data: memoryview) -> None:
            assert offset + len(data) <= self.nbytes


    with pagemove.Memory(100_000) as memory:
        assert_type(np.frombuffer(memory, np.uint8), npt.NDArray[np.uint8])
        assert_type(memory.asarray(np.float64), npt.NDArray[np.float64])
        assert_type(memory.asarray(np.dtype(np.int32), (3,)), npt.NDArray[np.int32])
        untyped: npt.NDArray[np.int8] = memory.asarray("i1")

    with pagemove.PagedMemory(Zeros()) as region:
        assert_type(np.frombuffer(region, np.uint8), npt.NDArray[np.uint8])
        assert_type(region.asarray(np.float64), npt.NDArray[np.float64])
    """
)


def test_documented_programs_are_accepted_by_mypy_strict(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        # For 3.11 NumPy's stubs know of no other buffers than those of the standard library.
        (
            *(sys.executable, "-m", "mypy", "--strict", "--config-file="),
            *("--python-version", "3.12", program),
        ),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
