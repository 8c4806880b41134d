"""Move loops and pager under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .siblings import compiler

pytestmark = pytest.mark.needs("move")

_SANITIZE = Path(__file__).parents[1] / "sanitize"


def _links(tmp_path: Path, *flags: str) -> bool:
    source = tmp_path / "empty.c"
    source.write_text("int main(void) { return 0; }\n")
    command = [compiler(), *flags, str(source), "-o", str(tmp_path / "empty")]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


_PROGRAMS = {
    "address": "-fsanitize=address,undefined",
    "paging-address": "-fsanitize=address,undefined",
    "paging-thread": "-fsanitize=thread",
}


@pytest.mark.parametrize("program", _PROGRAMS)
def test_the_driver_passes(tmp_path: Path, program: str) -> None:
    if not _links(tmp_path, _PROGRAMS[program]):
        pytest.skip(f"the C compiler does not link {_PROGRAMS[program]}")
    built = f"BUILD={tmp_path}"
    make = ["make", "--silent", "-C", str(_SANITIZE), built, f"CC={compiler()}"]
    subprocess.run([*make, f"{tmp_path}/{program}"], check=True)
    done = subprocess.run(
        [f"{tmp_path}/{program}"], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all passed" in done.stdout
