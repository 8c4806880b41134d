"""Every test here is checked for descriptors and memory that it leaves."""

import pytest


@pytest.fixture(autouse=True)
def _clean(no_leak: None) -> None:
    return no_leak
