"""The process that runs a store: it begins and ends with its region, and is started again once."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pagemove import PagedMemory
from support import ChildFailed, child, fork, living_child, wait_for
from support.helpers import (
    has_ended,
    helpers,
    kill_helper,
    numbered,
    reined,
    reined_region,
    touch,
    touch_at_last,
)

pytestmark = pytest.mark.needs("paging", "fork")

K = 1024
SIZES = (4 * K, 64 * K)
N = 16


class TestLifetime:
    @pytest.mark.parametrize(
        "end",
        [
            "sys.exit(3)",
            "os._exit(0)",
            "raise ValueError",
            "os.kill(os.getpid(), signal.SIGKILL)",
            "os.kill(os.getpid(), signal.SIGTERM)",
            "os.abort()",
        ],
    )
    @pytest.mark.parametrize("companion", ["", "forked", "spawned", "forked before"])
    def test_it_ends_with_its_parent_however_that_ends(self, tmp_path, end, companion):
        """Also if the store has the parent's main module as its home; and with others alive."""
        script = tmp_path / "script.py"
        script.write_text(_SCRIPT.replace("END", end))
        command = [sys.executable, str(script), companion]
        parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert parent.stdout is not None
        alive: list[int] = []
        try:
            line = parent.stdout.readline().split()
            helper, *alive = map(int, line)
            assert parent.wait(30) is not None
            wait_for(lambda: has_ended(helper))
            assert not any(has_ended(pid) for pid in alive)
        finally:
            parent.kill()
            parent.wait()
            parent.stdout.close()
            for pid in alive:
                os.kill(pid, signal.SIGKILL)

    def test_it_ends_with_its_region(self, tmp_path):
        assert child(_closed, tmp_path) == []

    def test_close_does_not_wait_for_a_fault_under_way(self, tmp_path):
        for block in SIZES:
            code, seconds = child(_closed_under_a_fault, tmp_path, block, deadline=60)
            assert code == errno.EFAULT
            assert seconds < 10

    def test_a_forked_child_has_no_region_and_leaves_the_parents_alone(self, tmp_path):
        assert child(_forked, tmp_path, deadline=60) == {"child": -signal.SIGSEGV, "right": True}

    def test_a_child_that_is_killed_takes_its_helper_along(self, tmp_path):
        with living_child() as one:
            pid = one.run(_opened, tmp_path)
            assert not has_ended(pid)
            one.kill()
            wait_for(lambda: has_ended(pid))

    def test_an_interrupt_of_the_terminal_does_not_end_it(self, tmp_path):
        assert child(_interrupted, tmp_path)


_SCRIPT = """
import os, signal, subprocess, sys, time
import pagemove

class Mine(pagemove.stores.Store):
    nbytes = 1 << 16

    def read_into(self, offset, buffer):
        buffer[:] = b"m" * len(buffer)

def helpers():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = open(f"/proc/{pid}/cmdline", "rb").read().split(b"\\0")
        except OSError:
            continue
        if b"pagemove.paging.helper" in b" ".join(words) and words[-2] == b"%d" % os.getpid():
            yield pid

def companion():
    # The pipe to the test is not to be kept open, nor is anything that the region has.
    pid = os.fork()
    if not pid:
        os.close(1)
        time.sleep(60)
        os._exit(0)
    return pid

if __name__ == "__main__":
    alive = []
    if sys.argv[1] == "forked before":
        alive.append(companion())
    region = pagemove.PagedMemory(Mine(), mode="r")
    assert bytes(memoryview(region)[:4]) == b"mmmm"
    if sys.argv[1] == "forked":
        alive.append(companion())
    if sys.argv[1] == "spawned":
        command = [sys.executable, "-c", "import time; time.sleep(60)"]
        alive.append(subprocess.Popen(command, stdout=2, close_fds=False).pid)
    print(*helpers(), *alive, flush=True)
    END
"""


def _closed(folder: Path) -> list[int]:
    regions = [reined_region(folder, isolated=True)[1] for _ in range(2)]
    assert len(helpers()) == 2
    for region in regions:
        touch(region.address)
        region.close()
    return helpers()


def _closed_under_a_fault(folder: Path, block: int) -> tuple[int, float]:
    store, region = reined_region(folder, block)
    touch(region.address + block)
    store.reins.hung = 1
    code = []

    def wait() -> None:
        with pytest.raises(OSError, match="Bad address") as caught:
            touch(region.address)
        code.append(caught.value.errno)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    wait_for(lambda: 0 in store.reins.offsets)
    before = time.monotonic()
    region.close()
    took = time.monotonic() - before
    thread.join(10)
    return code[0], took


def _forked(folder: Path) -> dict[str, Any]:
    _, region = reined_region(folder, mode="r+")
    array = region.asarray(np.uint64)
    array[0] = 1
    pid = fork()
    if not pid:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        ctypes.string_at(array.ctypes.data + 8 * K, 8)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    words = numbered(N * 4 * K)
    words[0] = 1
    right = np.array_equal(array, words)
    del array
    region.close()
    return {"child": os.waitstatus_to_exitcode(status), "right": right}


def _opened(folder: Path) -> int:
    region = reined_region(folder)[1]
    touch(region.address)
    (pid,) = helpers()
    _kept.append(region)
    return pid


_kept: list[object] = []


def _interrupted(folder: Path) -> bool:
    with reined_region(folder)[1] as region:
        touch(region.address)
        (pid,) = helpers()
        os.kill(pid, signal.SIGINT)
        touch(region.address + 8 * K)
        return helpers() == [pid] and region.counters()["restarts"] == 0


class TestRestart:
    def test_it_is_started_again_once(self, tmp_path):
        assert child(_restarted, tmp_path, deadline=60) == (0, 1, 1)

    @pytest.mark.parametrize("block", SIZES)
    def test_a_touch_without_one_is_a_signal(self, tmp_path, block):
        with pytest.raises(ChildFailed) as caught:
            child(_touched_without, tmp_path, block, deadline=60)
        assert caught.value.signal == signal.SIGBUS


def _restarted(folder: Path) -> tuple[int, ...]:
    with reined_region(folder, store_timeout=1)[1] as region:
        touch(region.address)
        counts = [region.counters()["restarts"]]
        kill_helper()
        touch_at_last(region, 8 * K)
        counts.append(region.counters()["restarts"])
        kill_helper()
        with pytest.raises(OSError, match="Bad address"):
            touch(region.address + 16 * K)
        counts.append(region.counters()["restarts"])
        return tuple(counts)


def _touched_without(folder: Path, block: int) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    store = reined(folder, numbered(N * block), restartable=False)
    region = PagedMemory(store, block_size=block, store_timeout=0.2, prefetch="off")
    kill_helper()
    region.asarray(np.uint64)[0]
