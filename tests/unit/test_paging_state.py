"""The state of the pager by itself: nothing else of it is linked, no thread, no system call."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from support import native

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "src/pagemove/_native"

pytestmark = pytest.mark.skipif(not NATIVE.is_dir(), reason="the sources of the pager are not here")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("state") / "state_alone"
    sources = [ROOT / "tests/support/state_alone.c", *(NATIVE / "pager/state").glob("*.c")]
    flags = ("-std=gnu11", "-g", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}")
    command = [native.compiler(), *flags, "-o", str(built), *map(str, sources)]
    subprocess.run(command, check=True)
    return built


def run(state: Path, case: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(state), case], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "case",
    [
        *("frames", "jobs", "streams", "record", "latency", "errnos"),
        *("who_leaves", "what_stays", "missed", "in_place"),
    ],
)
def test_state(state, case):
    done = run(state, case)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("lost_track", "cannot go from state 2 to 4"),
        ("lost_place", "cannot go from state 2 to 0"),
        ("wrong_list", "cannot be in list 1"),
    ],
)
def test_a_transition_that_makes_no_sense_ends_the_process(state, case, said):
    done = run(state, case)
    assert done.returncode == -signal.SIGABRT
    assert done.stdout == f"pagemove: block 7 {said}\n"


def test_a_case_that_there_is_not_is_no_success(state):
    assert run(state, "nonsense").returncode == 2
