"""The C parts are built before the children of the tests are forked."""

import pytest

from stress.siblings import library
from support import paging


@pytest.fixture(scope="session", autouse=True)
def _built() -> None:
    paging.build()
    library()
