"""NumPy's own tests with their arrays of a page and more in the arena, at a limit that evicts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.needs("paging"), pytest.mark.slow]

_NUMPY = Path(np.__file__).parent
#: Files of its tests, and of which the arrays are large enough to matter.
_FILES = [
    "_core/tests/test_multiarray.py",
    "_core/tests/test_umath.py",
    "_core/tests/test_indexing.py",
    "_core/tests/test_mem_overlap.py",
    "_core/tests/test_mem_policy.py",
    "lib/tests/test_format.py",
]
#: Which says how many have passed, failed ...
_COUNTED = re.compile(r"(\d+) (passed|failed|errors?)\b")


def ran(directory, *words):
    # Its own options: those of this project are not for it.
    command = [sys.executable, *words, "-m", "pytest", "-q", "-c", os.devnull]
    command += ["--rootdir", _NUMPY, "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow"]
    return subprocess.run(
        [*command, *(_NUMPY / name for name in _FILES)],
        cwd=directory,
        # One of them builds a module, by the meson that is beside the interpreter.
        env={
            **os.environ,
            "PYTEST_ADDOPTS": "",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )


def counts(done):
    """Return how many have passed, failed, and what has failed."""
    last = done.stdout.rstrip().splitlines()[-1]
    failed = re.findall(r"^(?:FAILED|ERROR) \S*?/numpy/(\S+)", done.stdout, re.M)
    return {what: int(count) for count, what in _COUNTED.findall(last)}, set(failed)


@pytest.mark.skipif(not (_NUMPY / _FILES[0]).exists(), reason="this NumPy has no tests with it")
@pytest.mark.timeout(3000)
def test_numpys_tests_do_as_without(tmp_path):
    paged = ran(
        tmp_path, "-m", "pagemove", "run", "--limit", "4MiB", "--min-size", "4096", "--report"
    )
    found, failed = counts(paged)
    assert found.get("passed", 0) > 3000, paged.stdout[-2000:] + paged.stderr[-2000:]
    assert re.search(r"evicted: [1-9]", paged.stderr), paged.stderr
    # What fails without fails with it.
    if failed:
        assert failed == counts(ran(tmp_path))[1]
