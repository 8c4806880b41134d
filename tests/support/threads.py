"""Several functions at once, and waiting for what happens in its own time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from support.slowness import patience

T = TypeVar("T")


def together(*functions: Callable[[], Any], deadline: float = 60.0) -> list[Any]:
    """Run each function in a thread of its own, all started at one barrier; return their results.

    An exception in any of them is raised here. A thread that does not end in time fails the test;
    it is a daemon, so that the interpreter can still exit.
    """
    deadline = patience(deadline)
    barrier = threading.Barrier(len(functions))
    results: list[Any] = [None] * len(functions)
    errors: list[BaseException] = []

    def run(index: int, function: Callable[[], Any]) -> None:
        try:
            barrier.wait(deadline)
            results[index] = function()
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=item, daemon=True) for item in enumerate(functions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(deadline)
    if errors:
        raise errors[0]
    alive = [thread.name for thread in threads if thread.is_alive()]
    assert not alive, f"threads that did not end within {deadline} s: {alive}"
    return results


def thread_names() -> dict[int, str]:
    """Return the names of this process's threads, as the kernel has them, by their numbers."""
    names = {}
    for path in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            names[int(path.parent.name)] = path.read_text().strip()
    return names


def passing_threads() -> list[int]:
    """List this process's threads but the one that waits for SIGTERM, which stays once it is."""
    return sorted(task for task, name in thread_names().items() if name != "pagemove-ending")


def wait_for(condition: Callable[[], T], seconds: float = 20.0) -> T:
    """Wait for what others do in their own time, and give it; fail the test if they do not."""
    seconds = patience(seconds)
    limit = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < limit, f"waited {seconds} s in vain"
        time.sleep(0.002)
    return found
