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


def compiler() -> str:
    """Give the C compiler, or skip: only these tests, and building the package, need one."""
    name = os.environ.get("CC", "cc")
    if not shutil.which(name):
        pytest.skip(f"no C compiler: {name} is not on the path")
    return name


@functools.cache
def load(*sources: Path) -> ctypes.CDLL:
    """Build C files into one library, once a session, and load it."""
    with tempfile.TemporaryDirectory() as directory:
        built = Path(directory) / "native.so"
        command = [compiler(), *_FLAGS, "-shared", "-fPIC", "-o", str(built), *map(str, sources)]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(built))
