"""Whatever a store may raise: with every errno there is, none, or one that is no number."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Any

from pagemove import StoreError


class _Silent(Exception):  # noqa: N818 (its name is not read by anybody)
    """Cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class _Numberless(OSError):  # noqa: N818
    """Has no errno, and says so loudly."""

    @property
    def errno(self) -> int:  # type: ignore[override]
        raise RuntimeError("no number")


class _Base(BaseException):
    """What `except Exception` misses."""


def _failed(*arguments: Any) -> Callable[[], BaseException]:
    return lambda: OSError(*arguments)


def _numbered(number: Any) -> Callable[[], BaseException]:
    """Make an OSError whose errno was set to anything by its owner."""

    def make() -> BaseException:
        error = OSError(errno.EIO, "of somebody")
        error.errno = number
        return error

    return make


#: Each makes an exception.
RAISED: tuple[Callable[[], BaseException], ...] = (
    *(
        _failed(code, os.strerror(code))
        for code in (
            errno.EIO,
            errno.EPIPE,
            errno.ETIMEDOUT,
            errno.EAGAIN,
            errno.EINTR,
            errno.ENOSPC,
            errno.ENOMEM,
            errno.EBADF,
            errno.EEXIST,
            errno.ENOENT,
            errno.ESRCH,
            errno.ECONNRESET,
            errno.ECANCELED,
        )
    ),
    _failed("no number at all"),
    _failed(0, "nothing"),
    _failed(-5, "negative"),
    _failed(1 << 20, "large"),
    _failed(1 << 40, "huge"),
    *map(_numbered, ("EIO", 2.5, None, True, b"", -(1 << 70), float("nan"))),
    lambda: socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    lambda: socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
    lambda: StoreError(-2, "negative"),
    lambda: StoreError(errno.ETIMEDOUT, "the server did not answer"),
    lambda: ValueError("a path of another time: \udcff\udcfe"),
    lambda: OSError(errno.ENOENT, "lone \ud800", "/tmp/\udcff"),
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
    lambda: KeyError("\udc80"),
    lambda: ValueError("long " * 200_000),
    lambda: ValueError("with a zero \0 inside, and no end\n" * 3),
    MemoryError,
    TimeoutError,
    StopIteration,
    KeyboardInterrupt,
    lambda: SystemExit(0),
    lambda: SystemExit(3),
    GeneratorExit,
    _Base,
    _Silent,
    _Numberless,
    lambda: ExceptionGroup("several", [OSError(errno.EPIPE, "one"), _Silent()]),
)
