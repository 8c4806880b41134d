"""Programs of scientific libraries under `pagemove run`: results are the same, bit for bit.

At three quarters, a half, and three tenths of the memory that their arrays take.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from pagemove.paging.sizes import nbytes_of
from support import docstrings
from support.applications import APPLICATIONS, DOCSTRINGS, RESULTS

pytestmark = [pytest.mark.needs("paging"), pytest.mark.slow]

_MIB = 1 << 20
_DOCSTRINGS = str(Path(docstrings.__file__))
#: Threads that share a sum out would make it another one each time.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
#: What the process may have more than without a limit, however large its libraries are.
_MORE = 32 * _MIB

#: At the end of a program: what it took, by the kernel's own count.
_PEAK = """
import sys
with open("/proc/self/status") as status:
    sys.stderr.writelines(line for line in status if line.startswith("VmHWM"))
"""


class Ran(NamedTuple):
    printed: str
    said: str

    def size(self, pattern):
        """Return a size that the report has."""
        found = re.search(pattern, self.said)
        assert found, self.said
        return nbytes_of(found[1].replace("kB", "KiB"), "size")

    @property
    def needed(self):
        return self.size(r"arrays: at most ([\d.]+ \w+) at a time")

    @property
    def peak(self):
        return self.size(r"VmHWM:\s*(\d+ kB)")


def ran(*command, directory=None):
    done = subprocess.run(
        [sys.executable, *command],
        cwd=directory,
        env={**os.environ, **_ONE_THREAD},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Ran(done.stdout, done.stderr)


def under(limit, *command, directory=None, **options):
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = ("-m", "pagemove", "run", "--report", "--limit", str(limit), *words, *command)
    return ran(*command, directory=directory)


@functools.cache
def without(name, folder):
    """Write a program and run it without a limit; return its path, that, and what it needs."""
    path = folder / f"with_{name}.py"
    path.write_text(RESULTS + APPLICATIONS[name] + _PEAK)
    return path, ran(path), under(64 << 30, path).needed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("applications")


@pytest.mark.parametrize("share", [75, 50, 30])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.needs(name)) for name in APPLICATIONS]
)
def test_an_application_at_a_part_of_its_memory(folder, name, share):
    path, plain, needed = without(name, folder)
    limit = needed * share // 100
    paged = under(limit, path)
    assert paged.printed == plain.printed
    assert len(plain.printed.splitlines()) >= 3
    assert re.search(r"evicted: [1-9]", paged.said), paged.said
    # What leaves goes to a file, so the process does not have it.
    spilled = under(limit, path, spill=folder)
    assert spilled.printed == plain.printed
    assert spilled.peak <= plain.peak + _MORE


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.needs(name)) for name in DOCSTRINGS]
)
def test_examples_of_docstrings_at_half_their_memory(tmp_path, name):
    """The libraries' own, as they are installed; nearly every array of theirs is in the arena."""
    command = (_DOCSTRINGS, *DOCSTRINGS[name])
    small = {"min-size": 64, "directory": tmp_path}
    plain = ran(*command, directory=tmp_path)
    needed = under(64 << 30, *command, **small).needed
    paged = under(max(needed // 2, 1 << 14), *command, **small)
    assert paged.printed == plain.printed
    assert len(plain.printed.splitlines()) >= 5
    assert re.search(r"evicted: [1-9]", paged.said), paged.said
