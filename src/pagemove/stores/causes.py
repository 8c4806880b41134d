"""What the exceptions of other libraries say of a failure: an errno, and a text."""

from __future__ import annotations

import errno
import socket

# The highest of Linux. What is beyond, or below one, is a number of something else.
_LAST = 4095
_BY_STATUS = {401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT, 410: errno.ENOENT}
_BY_KIND = {
    TimeoutError: errno.ETIMEDOUT,
    FileNotFoundError: errno.ENOENT,
    PermissionError: errno.EACCES,
    IsADirectoryError: errno.EISDIR,
    ConnectionRefusedError: errno.ECONNREFUSED,
    ConnectionResetError: errno.ECONNRESET,
}
_MOST_CAUSES = 8


def errno_of(error: BaseException) -> int:
    """Return an errno, which is always positive, and EIO where nothing else is known.

    Names that do not resolve have numbers of their own (``socket.gaierror``): EHOSTUNREACH.
    """
    chain = _chain(error)
    for each in chain:
        if isinstance(each, socket.gaierror | socket.herror):
            return errno.EHOSTUNREACH
        code = getattr(each, "errno", None)
        if isinstance(code, int) and not isinstance(code, bool) and 0 < code <= _LAST:
            return code
        for kind, number in _BY_KIND.items():
            if isinstance(each, kind):
                return number
        status = getattr(each, "status", None)
        if isinstance(status, int) and status in _BY_STATUS:
            return _BY_STATUS[status]
    return errno.EIO


def cause_of(error: BaseException) -> str:
    """Return a text that says what happened, whatever the exception's methods do."""
    try:
        text = str(error)
    except Exception as failure:
        text = f"{type(error).__name__}, whose text cannot be read ({type(failure).__name__})"
    # obstore adds what its own developers want to know.
    text = text.partition("\n\nDebug source")[0].strip() or type(error).__name__
    return text.encode("utf-8", "backslashreplace").decode()


def _chain(error: BaseException) -> list[BaseException]:
    """List an exception and what caused it."""
    found: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and len(found) < _MOST_CAUSES:
        found.append(each)
        each = each.__cause__ or getattr(each, "os_error", None)
    return found
