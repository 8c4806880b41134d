"""Log records of the libraries that open URLs, without secrets.

fsspec, botocore and others log whole URLs, headers and arguments at level DEBUG. Filters of loggers
do not see the records of loggers below them, and handlers belong to the program: so records are
changed where they are made.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

from pagemove.stores.urls import Secrets, without_secrets

# The first part of the names of their loggers. Records of the program are its own.
_LIBRARIES = (
    *("adlfs", "aiobotocore", "aiohttp", "asyncio", "azure", "boto3", "botocore", "fsspec"),
    *("gcsfs", "google", "httpcore", "httpx", "huggingface_hub", "obstore", "ocifs", "ossfs"),
    *("paramiko", "redis", "requests", "s3fs", "s3transfer", "smbprotocol", "urllib3", "webdav4"),
)
_lock = threading.Lock()
_of_stores: weakref.WeakSet[Secrets] = weakref.WeakSet()


def hide_in_logs(secrets: Secrets) -> None:
    """Leave the secrets of a store out of what libraries log, as long as they exist."""
    with _lock:
        _of_stores.add(secrets)
        make = logging.getLogRecordFactory()
        # Others may have put theirs in its place.
        if not isinstance(make, _Factory):
            logging.setLogRecordFactory(_Factory(make))


def hidden(text: str) -> str:
    """Return a text without the secrets of any store of this process."""
    for secrets in _known():
        text = secrets.hide_known(text)
    return text


def _known() -> list[Secrets]:
    with _lock:
        return list(_of_stores)


class _Factory:
    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self._make = make

    def __call__(self, name: str | None, *args: Any, **options: Any) -> logging.LogRecord:
        record = self._make(name, *args, **options)
        if str(name).partition(".")[0] in _LIBRARIES:
            # A message that its arguments do not go with is an error of its handler.
            with contextlib.suppress(Exception):
                _hide(record)
        return record


def _hide(record: logging.LogRecord) -> None:
    text = record.getMessage()
    shown = _shown(text)
    if shown != text:
        record.msg, record.args = shown, None
    if record.exc_info:
        # Formatters take it for what they have made themselves.
        record.exc_text = _shown(logging.Formatter().formatException(record.exc_info))


def _shown(text: str) -> str:
    return without_secrets(hidden(text))
