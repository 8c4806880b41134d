"""Builds the C baselines: on the spot, from this folder, loaded by ctypes."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks._measure import Unmeasurable

_FOLDER = Path(__file__).parent


def build(*sources: str, optimise: str = "-O2") -> ctypes.CDLL:
    """Compile C files of this folder into one library, and load it.

    Raises
    ------
    Unmeasurable
        There is no C compiler.
    """
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not shutil.which(compiler[0]):
        raise Unmeasurable(f"no C compiler ({compiler[0]}) to build the baseline with")
    # Once loaded the file is not needed again.
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / Path(sources[0]).with_suffix(".so").name
        files = [str(_FOLDER / source) for source in sources]
        options = [optimise, "-Wall", "-Wextra", "-pthread", "-shared", "-fPIC"]
        subprocess.run([*compiler, *options, "-o", str(built), *files], check=True)
        return ctypes.CDLL(str(built), use_errno=True)
