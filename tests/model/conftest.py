"""An address space with two areas in it."""

from __future__ import annotations

import pytest

from . import AddressSpace
from .helpers import COUNT, A, B


@pytest.fixture
def space() -> AddressSpace:
    space = AddressSpace()
    space.map(A, COUNT)
    space.map(B, COUNT)
    return space
