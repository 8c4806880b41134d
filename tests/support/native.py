"""Parts of the tests in C: they need neither the GIL nor a page of the interpreter."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

_FLAGS = ["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]
_TESTS = Path(__file__).parents[1]
#: What is built into libraries, for machines that have no compiler.
LIBRARIES = (
    (_TESTS / "support/guard.c", _TESTS / "support/workers.c"),
    (_TESTS / "stress/siblings.c",),
    (_TESTS / "support/tmpfile.c",),
    (_TESTS / "support/held_io.c",),
    (_TESTS / "support/hung_io.c",),
)


def compiler() -> str:
    """Return the C compiler, or skip: only these tests, and building the package, need one."""
    name = os.environ.get("CC", "cc")
    if not shutil.which(name):
        pytest.skip(f"no C compiler: {name} is not on the path")
    return name


def _name(sources: tuple[Path, ...]) -> str:
    return "-".join(source.stem for source in sources) + ".so"


def _build(sources: tuple[Path, ...], built: Path) -> None:
    command = [compiler(), *_FLAGS, "-shared", "-fPIC", "-o", str(built), *map(str, sources)]
    subprocess.run(command, check=True)


def build_all(folder: Path) -> None:
    """Build every library into `folder`, which PAGEMOVE_TEST_NATIVE can name then."""
    folder.mkdir(parents=True, exist_ok=True)
    for sources in LIBRARIES:
        _build(sources, folder / _name(sources))


def library_file(source: Path, directory: Path) -> Path:
    """Build a C file into a library that is to be preloaded; return its path."""
    folder = os.environ.get("PAGEMOVE_TEST_NATIVE")
    if folder:
        return Path(folder) / _name((source,))
    built = directory / _name((source,))
    _build((source,), built)
    return built


@functools.cache
def load(*sources: Path) -> ctypes.CDLL:
    """Build C files into one library, once a session, and load it."""
    folder = os.environ.get("PAGEMOVE_TEST_NATIVE")
    if folder:
        return ctypes.CDLL(str(Path(folder) / _name(sources)))
    with tempfile.TemporaryDirectory() as directory:
        built = Path(directory) / "native.so"
        _build(sources, built)
        return ctypes.CDLL(str(built))
