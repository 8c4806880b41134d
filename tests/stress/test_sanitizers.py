"""The move loops under AddressSanitizer and UndefinedBehaviorSanitizer: tests/sanitize."""

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


def test_the_driver_passes(tmp_path: Path) -> None:
    if not _links(tmp_path, "-fsanitize=address,undefined"):
        pytest.skip("the C compiler has no AddressSanitizer")
    built = f"BUILD={tmp_path}"
    make = ["make", "--silent", "-C", str(_SANITIZE), built, f"CC={compiler()}"]
    subprocess.run([*make, f"{tmp_path}/address"], check=True)
    done = subprocess.run(
        [f"{tmp_path}/address"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all passed" in done.stdout
