"""What happens to a process with a region besides what its store does, until a run is over."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from support import fork
from support.helpers import helpers

if TYPE_CHECKING:
    from .unruly import Run

_PR_SET_MEMORY_MERGE = 67


def _chance(run: Run, name: str) -> random.Random:
    return random.Random(f"{name} {run.scenario.seed}")


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def stopped(run: Run) -> None:
    """The helper is stopped, now and then for longer than anybody waits for it."""
    chance = _chance(run, "stopped")
    while not run.over.wait(chance.random() * 0.5):
        pids = helpers()
        _signal(pids, signal.SIGSTOP)
        try:
            run.over.wait(chance.choice([0.05, 1.5 * run.scenario.timeout]))
        finally:
            _signal(pids, signal.SIGCONT)


def frozen(run: Run) -> None:
    """The server is stopped, now and then for longer than anybody waits for it."""
    server = run.backing.server
    chance = _chance(run, "frozen")
    while server and not run.over.wait(chance.random() * 0.5):
        server.freeze()
        try:
            run.over.wait(chance.choice([0.05, 1.5 * run.scenario.timeout]))
        finally:
            server.freeze(on=False)


def killed(run: Run) -> None:
    """The helper dies once."""
    unruly = run.backing.unruly
    if unruly is None or not unruly.restartable:
        return
    if (
        run.over.wait(_chance(run, "killed").random() * run.scenario.seconds)
        or not unruly.whims.lives
    ):
        return
    unruly.whims.lives = 0
    _signal(helpers(), signal.SIGKILL)


def paused(run: Run) -> None:
    """The whole of it is stopped for longer than a store may take: nobody has waited for it."""
    chance = _chance(run, "paused")
    while not run.over.wait(chance.random() * 1.5):
        pids = " ".join(map(str, [os.getpid(), *helpers()]))
        pause = 1.5 * run.scenario.patience
        subprocess.run(
            ["sh", "-c", f"kill -STOP {pids}; sleep {pause}; kill -CONT {pids}"],
            check=False,
            stderr=subprocess.DEVNULL,
        )


def forked(run: Run) -> None:
    """Children come and go; each has the region's descriptors closed and touches nothing."""
    chance = _chance(run, "forked")
    while not run.over.wait(chance.random() * 0.2):
        pid = fork()
        if not pid:
            time.sleep(chance.random() * 0.05)
            os._exit(0)
        os.waitpid(pid, 0)


def merged(run: Run) -> None:
    """Equal pages are merged by the kernel: `merge` has seen to it."""
    run.over.wait()


def closed(run: Run) -> None:
    """Somebody closes the descriptors by which the region is served, when nobody uses it."""
    if run.over.wait(_chance(run, "closed").random() * run.scenario.seconds):
        return
    null = os.open(os.devnull, os.O_RDONLY)
    with contextlib.ExitStack() as stack:
        for lock in run.busy:
            stack.enter_context(lock)
        run.doomed = True
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):
                if "userfaultfd" in os.readlink(f"/proc/self/fd/{name}"):
                    # Not free for what is opened next, which the region would take for its own.
                    os.dup2(null, int(name))
        # Noticed at once is not before it has happened.
        time.sleep(0.2)
    os.close(null)


def pinned(run: Run) -> None:
    """Blocks are pinned, several pins at a time, and stay until the last of them ends."""
    chance, nbytes = _chance(run, "pinned"), run.memory.nbytes
    held: list[tuple[contextlib.ExitStack, int, int]] = []
    while not run.over.wait(chance.random() * 0.05):
        with run.busy[-1]:
            if run.doomed:
                break
            first = chance.randrange(nbytes)
            end = min(nbytes, first + chance.choice([1, run.scenario.block, nbytes // 3]))
            write = run.scenario.mode != "r" and chance.random() < 0.5
            pin = run.pin(first, end, write=write)
            if pin is not None:
                held.append((pin, first, end))
            for _, first, end in held:
                run.check_present(first, end)
            while len(held) > chance.randrange(5):
                held.pop(chance.randrange(len(held)))[0].close()
    for pin, *_ in held:
        pin.close()


def merge() -> None:
    """Let the kernel merge whatever this process maps from now on."""
    ctypes.CDLL(None).prctl(_PR_SET_MEMORY_MERGE, 1, 0, 0, 0)


ACTIONS: dict[str, Callable[[Run], None]] = {
    action.__name__: action
    for action in (stopped, frozen, killed, paused, forked, closed, merged, pinned)
}
#: What needs nothing of the machine, and does not end the region.
DRAWN = ("forked", "frozen", "killed", "paused", "stopped")
#: The same, in every second run.
OFTEN = ("pinned",)
