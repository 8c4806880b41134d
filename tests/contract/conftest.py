"""Every test here is checked for descriptors and memory that it leaves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pagemove._native import remap
from pagemove.memory import register
from support import Area

pytest.register_assert_rewrite("contract.checks")


@pytest.fixture(autouse=True)
def _clean(no_leak: None) -> None:
    return no_leak


@pytest.fixture(params=[False, True], ids=["unknown", "known"])
def area(request: pytest.FixtureRequest, foreign: Callable[..., Area]) -> Callable[..., Area]:
    """Make foreign memory (`foreign`), once unknown to the library and once registered already.

    A call into unknown memory is answered in two steps, one into known memory in one.
    """

    def make(pages: int = 1, **how: int) -> Area:
        made = foreign(pages, **how)
        if request.param:
            register(made.address, made.nbytes)
        return made

    return make


@pytest.fixture
def guarded() -> Callable[[bool], None]:
    """Choose the way of kernels with the stale-EAGAIN defect, or that of kernels without."""

    def choose(guard: bool) -> None:
        others = remap.quirks() & ~remap.QUIRK_STALE_EAGAIN
        remap.set_quirks(others | (remap.QUIRK_STALE_EAGAIN if guard else 0))

    return choose
