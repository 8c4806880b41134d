"""Programs as the documents show them pass a strict type checker."""

from __future__ import annotations

import doctest
import importlib.util
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest

from unit.test_docs import ALL_BLOCKS, ROOT

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


# For 3.11 NumPy's stubs know of no other buffers than those of the standard library.
MYPY = (
    *(sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-version", "3.12"),
    # Libraries of the examples that ship no types.
    "--disable-error-code=import-untyped",
    # Dask's methods.
    "--allow-untyped-calls",
)
PYRIGHT = ("--pythonversion", "3.12", "--pythonpath", sys.executable)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write every script of the documents, and the sessions of a page as one program."""
    folder = tmp_path_factory.mktemp("programs")
    texts = {"program": PROGRAM}
    for block in ALL_BLOCKS:
        if block.language not in ("python", "py"):
            continue
        if "import ray" in block.text and importlib.util.find_spec("ray") is None:
            continue  # of the group works-with, which `make test` leaves out
        page = "_".join(block.page.relative_to(ROOT).with_suffix("").parts).replace("-", "_")
        if block.is_session:
            examples = doctest.DocTestParser().get_examples(block.text)
            source = "".join(example.source for example in examples)
            texts[f"{page}_session"] = texts.get(f"{page}_session", "") + source
        else:
            texts[f"{page}_{block.first}"] = block.text
    paths = [folder / f"{name}.py" for name in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        path.write_text(text)
    assert len(paths) > 15
    return paths


def _accepts(command: Sequence[str], programs: list[Path]) -> None:
    done = subprocess.run(
        (*command, *map(str, programs)),
        cwd=programs[0].parent,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_documented_programs_are_accepted_by_mypy_strict(programs: list[Path]) -> None:
    pytest.importorskip("mypy")
    _accepts(MYPY, programs)


def test_documented_programs_are_accepted_by_pyright(programs: list[Path]) -> None:
    pyright = os.environ.get("PAGEMOVE_PYRIGHT") or shutil.which("pyright")
    if pyright is None:
        pytest.skip("pyright is not installed: npm install pyright, PAGEMOVE_PYRIGHT=its path")
    _accepts((pyright, *PYRIGHT), programs)
