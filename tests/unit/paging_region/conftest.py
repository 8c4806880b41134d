"""The file that the tests of a region page."""

from __future__ import annotations

from pathlib import Path

import pytest

from .files import CONTENTS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "file"
    found.write_bytes(CONTENTS)
    return found
