"""Every test here is checked for descriptors and memory that it leaves."""

import pytest

from .siblings import library


@pytest.fixture(autouse=True)
def _clean(no_leak: None) -> None:
    return no_leak


@pytest.fixture(scope="session")
def siblings() -> None:
    """Build the siblings here, so that the children of the tests find them built."""
    library()
