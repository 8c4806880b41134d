"""The kernel's own flag for holes, and why the library never passes it.

On a kernel with the stale EAGAIN a page that is discarded between the kernel's two tries makes
UFFDIO_MOVE with ALLOW_SRC_HOLES go round forever (docs/explanation/stale-eagain.md). Only killing
the process ends it, so both are tried in children with a deadline.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from pathlib import Path

import numpy as np
import pytest

from pagemove import PAGE_SIZE, RAP_ALLOW_SRC_HOLES, Memory, RemapError, lowlevel, remap_anon_pages
from pagemove._native import remap
from support import child, living_child

from .siblings import DISCARD, Sibling, apart, library

pytestmark = [pytest.mark.needs("move", "two_cpus"), pytest.mark.usefixtures("siblings")]

_CALLS = 400_000
_SECONDS = 8.0
_STILL = 1.0  # of CPU time without a call that comes back


def _by_the_kernels_flag(counter: int) -> None:
    uffd = remap.descriptor()
    with (
        Memory(PAGE_SIZE) as src,
        Memory(PAGE_SIZE) as dst,
        apart() as cpu,
        Sibling(DISCARD, src.address, 1, cpu=cpu),
    ):
        library().raw_holes(uffd, dst.address, src.address, _CALLS, counter)


def _cpu_seconds(pid: int) -> float:
    """CPU time of the main thread of a process, in user mode and in the kernel."""
    fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _stuck(pid: int, calls: memoryview) -> bool:
    """Wait until the calls have all come back, or one does not while it uses up CPU time."""
    end = time.monotonic() + _SECONDS
    before, since = -1, 0.0
    while time.monotonic() < end and calls[0] < _CALLS:
        if calls[0] != before:
            before, since = calls[0], _cpu_seconds(pid)
        elif _cpu_seconds(pid) - since > _STILL:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.needs("stale_eagain")
def test_the_kernels_flag_may_never_come_back() -> None:
    with mmap.mmap(-1, PAGE_SIZE) as shared, memoryview(shared).cast("Q") as calls:
        address = np.frombuffer(shared, np.uint8).ctypes.data
        with living_child(_by_the_kernels_flag, address) as one:
            stuck, made = _stuck(one.pid, calls), calls[0]
    if not stuck:
        pytest.skip(f"{made} calls came back: the kernel is not affected, or was not provoked")


def _by_the_library() -> None:
    with Memory(PAGE_SIZE) as src, Memory(PAGE_SIZE) as dst, apart() as cpu:
        view = memoryview(src)
        with Sibling(DISCARD, src.address, 1, cpu=cpu):
            for _ in range(30_000):
                view[0] = 1
                with contextlib.suppress(RemapError):
                    remap_anon_pages(dst.address, src.address, PAGE_SIZE, RAP_ALLOW_SRC_HOLES)
                lowlevel.madvise(dst.address, PAGE_SIZE, mmap.MADV_DONTNEED)
        view.release()


def test_the_librarys_flag_always_comes_back() -> None:
    child(_by_the_library, deadline=60)
