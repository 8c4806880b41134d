"""The thread in which fsspec's asynchronous filesystems run."""

from __future__ import annotations

import asyncio
import errno
import sys
from typing import Any


def wait_for(filesystem: Any, request: Any, seconds: float) -> Any:
    """Have the filesystem's loop make a request, in a thread of its own.

    Raises
    ------
    TimeoutError
        There is no answer in time.
    """
    from fsspec.asyn import sync  # type: ignore[import-untyped]

    async def awaited() -> Any:
        return await request

    try:
        return sync(filesystem.loop, awaited, timeout=seconds)
    except TimeoutError as error:
        raise TimeoutError(errno.ETIMEDOUT, f"no answer within {seconds:.3g} s") from error


def begin_in_a_thread() -> None:
    """Start fsspec's loop, where it would get no thread of its own.

    gevent makes threads greenlets. fsspec's loop would then run in the thread that waits for it,
    and fsspec refuses that ("Calling sync() from within a running loop").
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("threading"):
        return
    from fsspec import asyn  # type: ignore[import-untyped]

    with asyn.get_lock():
        if asyn.loop[0] is None:
            asyn.loop[0] = _running_loop(monkey)


def _running_loop(monkey: Any) -> asyncio.AbstractEventLoop:
    start, lock = monkey.get_original("_thread", ["start_new_thread", "allocate_lock"])
    made: list[asyncio.AbstractEventLoop] = []
    ready = lock()

    def run() -> None:
        # Here: gevent's selectors belong to the thread that makes them.
        made.append(asyncio.new_event_loop())
        ready.release()
        made[0].run_forever()

    ready.acquire()
    start(run, ())
    ready.acquire()
    return made[0]
