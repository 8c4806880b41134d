"""Files to page, and the C parts of the tests built before their children are forked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support import paging


@pytest.fixture(scope="session", autouse=True)
def _built() -> None:
    paging.build()


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """Make a file of so many bytes with the pattern of a tag (`support.paging.make_file`)."""
    made = 0

    def make(nbytes: int, tag: int = 0, *, cold: bool = False) -> Path:
        nonlocal made
        made += 1
        return paging.make_file(tmp_path / f"file-{made}", nbytes, tag, cold=cold)

    return make
