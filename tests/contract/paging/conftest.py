"""The C parts of the tests are built before their children are forked."""

from __future__ import annotations

import pytest

from support import paging


@pytest.fixture(scope="session", autouse=True)
def _built() -> None:
    paging.build()
