"""The thread in which fsspec's asynchronous filesystems run."""

from __future__ import annotations

import errno
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
