"""Killed at a random moment: all that a completed flush covered is in the file, and nothing else
than what was once written.

The counters are in memory shared with the parent, so they outlive the child. A page of the file is
as it was in memory at one moment, and never older than the last completed flush.
"""

from __future__ import annotations

import os
import random
import signal
import time

import numpy as np
import pytest

from support import fork
from support.paging import (
    COUNT,
    KIB,
    MIB,
    RANDOM,
    SEQUENTIAL,
    VERSION,
    outside,
    wrong_words,
)

from . import SOAK
from .hot import Hot

pytestmark = pytest.mark.needs("paging", "fork")


def killed(hot: Hot, after: float) -> None:
    """Run it in a child that is killed so many seconds after its first flush."""
    pid = fork()
    if not pid:
        try:
            os.setpgid(0, 0)
            hot.run()
        finally:
            os._exit(1)
    try:
        limit = time.monotonic() + 20
        while not hot.flushes[0]:
            assert time.monotonic() < limit, "no flush within 20 s"
            time.sleep(0.0005)
        time.sleep(after)
        gone, status = os.waitpid(pid, os.WNOHANG)
        assert not gone, f"the child ended by itself: {os.waitstatus_to_exitcode(status)}"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def check(hot: Hot) -> None:
    found = np.fromfile(hot.path, np.uint64)
    wrong = outside(found, hot.flushed, hot.shadow, per=hot.per, whole=hot.per > 1)
    assert wrong is None, f"after {hot.flushes[0]} flushes: {wrong}"


BLOCKS = [4 * KIB, 16 * KIB, 64 * KIB, 512 * KIB, 2 * MIB]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("kind", [COUNT, VERSION], ids=["words", "pages"])
def test_killed_at_a_random_moment(file, block, kind):
    rng = random.Random(f"{block} {kind} {time.time_ns() if SOAK > 1 else 0}")
    for _ in range(int(3 * SOAK)):
        path = file(16 * block if block >= 64 * KIB else MIB)
        blocks = max(4, path.stat().st_size // block // 4)
        hot = Hot(path, "r+", block, blocks, seconds=60, kind=kind, orders=(RANDOM, SEQUENTIAL))
        killed(hot, rng.random() * 0.15)
        check(hot)


def test_killed_while_changes_are_private(file):
    path = file(MIB)
    hot = Hot(path, "c", 64 * KIB, 4, seconds=60)
    pid = fork()
    if not pid:
        hot.run()
        os._exit(1)
    time.sleep(0.3)
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert wrong_words(np.fromfile(path, np.uint64)) is None


def test_a_torn_page_would_be_seen(file):
    """What the check of a page is worth: a newer word after an older one is none of its moments."""
    hot = Hot(file(64 * KIB), "r+", kind=VERSION)
    found = np.fromfile(hot.path, np.uint64)
    hot.shadow[:] = 5
    found += np.uint64(5)
    check_of = {"per": hot.per, "whole": True}
    assert outside(found, hot.flushed, hot.shadow, **check_of) is None
    found[600] += np.uint64(1)
    assert "600" in str(outside(found, hot.flushed, hot.shadow, **check_of))
    found[600] -= np.uint64(1)
    found[:100] += np.uint64(1)
    assert outside(found, hot.flushed, hot.shadow, **check_of) is None
    hot.flushed[0] = 6
    assert outside(found, hot.flushed, hot.shadow, **check_of) is not None
