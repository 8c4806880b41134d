"""Known defects on the kernel that runs: the library refuses, or the kernel is mended.

Nothing is pretended here: without the library's guard the test fails on a kernel that has the
defect, and so it does on one that is wrongly taken to be mended. PAGEMOVE_TEST_WITHOUT_GUARDS=1
takes the guard away, to see that; only in a guest, for the kernel may not survive it.
"""

from __future__ import annotations

import mmap
import os
import time
from itertools import cycle
from pathlib import Path

import pytest

from pagemove import (
    HUGE_PAGE_SIZE,
    PAGE_SIZE,
    PageShared,
    PageState,
    UnsupportedError,
    features,
    remap_anon_pages,
)
from pagemove._native import remap
from stress.ring import Ring, integers, lies
from stress.siblings import COLD, Sibling, apart, library
from support import child, state
from support.foreign import foreign as map_foreign
from support.slowness import SLOWNESS
from support.system import in_a_pipe

_FRAME = (1 << 55) - 1
_FRAME_IS_ZERO_PAGE = 1 << 24


def _word(file: str, index: int) -> int:
    with Path(file).open("rb") as words:
        words.seek(8 * index)
        return int.from_bytes(words.read(8), "little")


def _take_guards_away_if_asked() -> None:
    if os.environ.get("PAGEMOVE_TEST_WITHOUT_GUARDS", "") not in ("", "0"):
        remap.set_defects(0)


def _move_a_huge_zero_page() -> str:
    pages = HUGE_PAGE_SIZE // PAGE_SIZE
    dst, src = (map_foreign(pages, align=HUGE_PAGE_SIZE) for _ in range(2))
    dst.advise(mmap.MADV_HUGEPAGE)
    src.advise(mmap.MADV_HUGEPAGE)
    assert not src.array().any()
    _take_guards_away_if_asked()
    if state(src.address) & (PageState.HUGE | PageState.ZERO) != PageState.HUGE | PageState.ZERO:
        return "no huge zero page here"
    try:
        remap_anon_pages(dst.address, src.address, HUGE_PAGE_SIZE)
    except UnsupportedError as error:
        return str(error)
    # Reading what a broken entry points to is no good idea: ask what it is first.
    frame = _word("/proc/self/pagemap", dst.address // PAGE_SIZE) & _FRAME
    if not _word("/proc/kpageflags", frame) & _FRAME_IS_ZERO_PAGE:
        return f"maps frame {frame:#x}, which is not the page of zeros"
    return "zeros" if not dst.array().any() else "not zeros"


def _move_a_page_of_a_huge_page_in_a_pipe() -> str:
    dst, src = map_foreign(1), map_foreign(HUGE_PAGE_SIZE // PAGE_SIZE, align=HUGE_PAGE_SIZE)
    src.advise(mmap.MADV_HUGEPAGE)
    src.fill()
    assert state(src.address) & PageState.HUGE
    _take_guards_away_if_asked()
    with in_a_pipe(src.page(7)):
        try:
            remap_anon_pages(dst.address, src.page(5), PAGE_SIZE)
        except PageShared as error:
            return str(error)
    return "moved"


@pytest.mark.needs("move", "thp", "fork")
def test_an_unsplittable_huge_page_is_refused_without_looping():
    said = child(_move_a_page_of_a_huge_page_in_a_pipe)
    assert "pipe" in said
    assert ("split-spin" in said) == ("split-spin" in features().defects)


@pytest.mark.needs("move", "thp", "root", "fork")
def test_a_huge_zero_page_moves_or_is_refused_by_the_name_of_the_defect():
    if not Path("/proc/kpageflags").exists():
        pytest.skip("a kernel without /proc/kpageflags")
    said = child(_move_a_huge_zero_page)
    if said == "no huge zero page here":
        pytest.skip(said)
    if "CVE-2026-31397" in features().defects:
        assert "CVE-2026-31397" in said
    else:
        assert said == "zeros"


_PACES = (300, 3_000, 30_000, 100_000)


def _wrong_answers() -> int:
    """Count false answers to moves of a page whose entry another thread changes meanwhile."""
    _take_guards_away_if_asked()
    ring = Ring(1)
    wrong, end = 0, time.monotonic() + 3 * SLOWNESS
    with apart() as cpu, Sibling(COLD, ring.address, ring.pages, cpu=cpu) as sibling:
        for pace in cycle(_PACES):
            sibling.pause(pace)
            wrong += lies(ring, integers(0), 2)
            if wrong or time.monotonic() > end:
                break
    ring.close()
    return wrong


@pytest.mark.needs("move", "two_cpus", "fork")
def test_no_page_that_was_moved_is_denied():
    library()  # built here, not in the child
    assert child(_wrong_answers) == 0


@pytest.mark.needs("without_move")
def test_a_kernel_without_the_call_has_none_of_its_defects():
    assert not features().defects
