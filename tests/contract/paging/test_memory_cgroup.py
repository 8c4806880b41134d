"""A memory cgroup that is full: a touch waits, and nothing is lost when there is room again."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support import living_child, wait_for
from support.paging import KIB, MIB, MODES, expected, paged, shared_zeros, words, wrong_words

pytestmark = pytest.mark.needs("paging", "root")

_ROOT = Path("/sys/fs/cgroup/memory")
_NBYTES = 16 * MIB


@contextlib.contextmanager
def cgroup() -> Iterator[Path]:
    """Make a memory cgroup whose processes wait when it is full, instead of being killed."""
    if not (_ROOT / "memory.oom_control").exists():
        pytest.skip("no memory controller of cgroup v1, which alone can do without killing")
    folder = _ROOT / f"pagemove-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        wait_for(lambda: not (folder / "cgroup.procs").read_text())
        folder.rmdir()


def _touch_all(path: Path, group: Path, mode: str, block: int, progress: np.ndarray) -> tuple:
    """Touch each block with room for a part of them."""
    with paged(path, mode, block_size=block, store_timeout=0.3, prefetch="off") as memory:
        array = words(memory)
        shadow = np.zeros(len(array), np.uint32)
        (group / "cgroup.procs").write_text(str(os.getpid()))
        used = int((group / "memory.usage_in_bytes").read_text())
        (group / "memory.oom_control").write_text("1")
        (group / "memory.limit_in_bytes").write_text(str(used + 6 * MIB))
        wrong = 0
        for place in range(3, len(array), block // 8):
            if mode == "r":
                wrong += int(array[place] != expected(_NBYTES)[place])
            else:
                array[place] += np.uint64(1)
                shadow[place] = 1
            progress[0] += 1
        found = wrong_words(array, shadow=shadow)
        memory.flush()
        errors = memory.stats().errors
        del array
    return wrong, found, errors


@pytest.mark.parametrize("block", [4 * KIB, 64 * KIB])
@pytest.mark.parametrize("mode", MODES)
def test_a_touch_waits_for_room(file, mode, block):
    path = file(_NBYTES)
    expected(_NBYTES)  # made before there is a limit
    progress = shared_zeros(1)
    with cgroup() as group, living_child(_touch_all, path, group, mode, block, progress) as one:
        wait_for(lambda: int((group / "memory.failcnt").read_text()) > 0)
        # Not for an order: longer than a store would be given.
        time.sleep(1.0)
        stood = int(progress[0])
        assert 0 < stood < _NBYTES // block
        (group / "memory.limit_in_bytes").write_text("-1")
        assert one.result(40) == (0, None, 0)
        one.end()
