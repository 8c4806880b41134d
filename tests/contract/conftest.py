"""Every test here is checked for descriptors and memory that it leaves."""

from __future__ import annotations

import mmap
from collections.abc import Callable

import pytest

from pagemove import HUGE_PAGE_SIZE, PAGE_SIZE, PageState
from pagemove._native import remap
from pagemove.registration import register
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
def huge(foreign: Callable[..., Area]) -> Callable[..., Area]:
    """Map `number` huge pages, filled and huge if asked."""
    pages = HUGE_PAGE_SIZE // PAGE_SIZE

    def make(number: int, *, filled: bool = False, extra: int = 0) -> Area:
        area = foreign(number * pages + extra, align=HUGE_PAGE_SIZE)
        area.advise(mmap.MADV_HUGEPAGE)
        if filled:
            area.fill()
            for page in range(0, number * pages, pages):
                assert area.states()[page] & PageState.HUGE, "the kernel gave no huge page"
        return area

    return make


@pytest.fixture
def guarded() -> Callable[[bool], None]:
    """Choose the way of kernels with all that can be guarded against, or that without stale-EAGAIN.

    The second has what else the running kernel needs.
    """

    def choose(guard: bool) -> None:
        others = remap.defects() & ~remap.DEFECT_STALE_EAGAIN
        more = remap.DEFECT_STALE_EAGAIN | remap.DEFECT_SPLIT_SPIN
        remap.set_defects(others | (more if guard else 0))

    return choose
