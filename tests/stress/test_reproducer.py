"""The program that the page on the stale EAGAIN shows, compiled and run as the page says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from support.native import compiler

pytestmark = pytest.mark.needs("userfaultfd_missing")

_EXPLANATION = Path(__file__).parents[2] / "docs" / "explanation"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("reproducer") / "stale_eagain"
    warnings = ["-Wall", "-Wextra", "-Werror"]
    source = str(_EXPLANATION / "stale_eagain.c")
    command = [compiler(), "-O2", *warnings, "-pthread", "-o", str(built), source]
    subprocess.run(command, check=True)
    return built


def _run(program: Path, mode: str, seconds: int) -> str:
    command = [str(program), mode, str(seconds)]
    # The deadline covers a machine on which a hundred processes want the CPU.
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.needs("move")
@pytest.mark.parametrize("mode", ["page", "run"])
def test_no_page_is_lost(program: Path, mode: str) -> None:
    out = _run(program, mode, 2)
    found = re.search(r"wrong answers: (\d+) of (\d+) calls; no page was lost", out)
    assert found is not None
    assert int(found[2]) > 0


@pytest.mark.needs("move", "stale_eagain", "two_cpus")
def test_the_defect_is_shown(program: Path) -> None:
    for _ in range(4):
        if "wrong answers: 0 " not in (out := _run(program, "page", 3)):
            return
    pytest.skip(f"the kernel told the truth: {out}")


@pytest.mark.needs("move", "stale_eagain", "two_cpus")
def test_the_call_that_stays(program: Path) -> None:
    out = _run(program, "holes", 6)
    assert re.fullmatch(r"after \d+ calls one did not come back: killed\n|\d+ calls, and.*\n", out)


def test_the_page_shows_the_program() -> None:
    page = (_EXPLANATION / "stale-eagain.md").read_text()
    assert "stale_eagain.c" in page
