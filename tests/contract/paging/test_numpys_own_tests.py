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
#: Files of its tests, and the fewest bytes of an array that is in the arena.
_FILES = {
    "_core/tests/test_multiarray.py": 4096,
    "_core/tests/test_umath.py": 4096,
    "_core/tests/test_indexing.py": 4096,
    "_core/tests/test_mem_overlap.py": 4096,
    "_core/tests/test_mem_policy.py": 1,
    "lib/tests/test_format.py": 4096,
}
#: Which says how many have passed, failed ...
_COUNTED = re.compile(r"(\d+) (passed|failed|errors?)\b")


def ran(directory, name, *words):
    # Its own options: those of this project are not for it.
    command = [sys.executable, *words, "-m", "pytest", "-q", "-c", os.devnull]
    command += ["--rootdir", _NUMPY, "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow"]
    return subprocess.run(
        [*command, _NUMPY / name],
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


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", _FILES)
def test_numpys_tests_do_as_without(tmp_path, name):
    if not (_NUMPY / name).exists():
        pytest.skip(f"this NumPy comes without {name}")
    least = str(_FILES[name])
    paged = ran(
        tmp_path, name, "-m", "pagemove", "run", "--limit", "8MiB", "--min-size", least, "--report"
    )
    found, failed = counts(paged)
    assert found.get("passed"), paged.stdout[-2000:] + paged.stderr[-2000:]
    assert re.search(r"arrays: at most [1-9]", paged.stderr), paged.stderr
    # What fails without fails with it.
    if failed:
        assert failed == counts(ran(tmp_path, name))[1]
