"""Programs of their own, as users write them: scripts that page a file and end somehow."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from support.paging import KIB, wrong_words
from support.slowness import patience

BLOCK = 64 * KIB
NBYTES = 16 * BLOCK

BEGIN = """
import ctypes, errno, os, signal, sys, threading, time, warnings
import numpy as np
import pagemove
from pagemove.stores import FileStore
from pagemove.testing import Fault, FaultyStore

# What these programs print is compared, whoever runs them.
warnings.simplefilter("ignore", pagemove.KernelFaultsWarning)

def opened(mode="r+", faults=None, lock=True, **how):
    how = {"resident_limit": 6 * 65536, "block_size": 65536, "store_timeout": 1.0} | how
    if faults is None:
        store = FileStore(sys.argv[1], writable=mode == "r+", lock=lock)
    else:
        store = FaultyStore(sys.argv[1], writable=mode == "r+", faults=faults)
    return pagemove.PagedMemory(store, mode=mode, **how)

def count_up(memory):
    array = memory.asarray(np.uint64)
    array[::64] += np.uint64(1)
    return array
"""


@contextmanager
def running(path: Path, script: str) -> Iterator[subprocess.Popen[str]]:
    """Run a script over a file; whatever happens, it is gone in the end."""
    command = [sys.executable, "-c", BEGIN + textwrap.dedent(script), str(path)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def run(path: Path, script: str, deadline: float = 20.0) -> tuple[int, str, str]:
    """Run a script to its end: status, stdout, stderr."""
    with running(path, script) as process:
        out, err = process.communicate(timeout=deadline)
        return process.returncode, out, err


def said(process: subprocess.Popen[str], seconds: float = 20.0) -> str:
    """Wait for one line of a script."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    assert ready, "the script has not come so far"
    line = process.stdout.readline()
    assert line, process.communicate()
    return line.strip()


def counted(path: Path, times: int = 1) -> str | None:
    """Check that every 64th word of a file was counted up."""
    found = np.fromfile(path, np.uint64)
    found[::64] -= np.uint64(times)
    return wrong_words(found)


_DESCRIPTORS = """
    import ctypes, os, sys, time, warnings
    import numpy as np, pagemove
    path = sys.argv[1]
    def lost(region):
        until = time.monotonic() + 20
        while not region.lost and time.monotonic() < until:
            time.sleep(0.001)
        return region.lost
    """


def program(
    code: str, *arguments: object, status: int = 0, shell: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program, with a redirection of the shell; return what it has printed."""
    command = [sys.executable, "-c", textwrap.dedent(_DESCRIPTORS) + textwrap.dedent(code)]
    command += map(str, arguments)
    if shell:
        command = ["sh", "-c", f'exec "$@" {shell}', "sh", *command]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == status, done.stderr
    return done


def run_paged(
    folder: Path, program: str, *options: str, deadline: float = 100
) -> subprocess.CompletedProcess[str]:
    """Run a program by `pagemove run`, in a folder."""
    (folder / "program.py").write_text(program)
    return subprocess.run(
        [sys.executable, "-m", "pagemove", "run", *options, "program.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=patience(deadline),
        check=False,
    )


def run_beside(
    folder: Path, module: str, source: str, code: str, *arguments: str, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder, with a module that it imports: its stores, to be pickled.

    What it prints is returned, unless `options` of subprocess.run have it go elsewhere.
    """
    (folder / f"{module}.py").write_text(source)
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        text=True,
        timeout=patience(60),
        check=False,
        cwd=folder,
        **({"capture_output": True} if "stdout" not in options else {}),
        **options,
    )
