"""Log records of the libraries that stores use, without the secrets of the stores.

At level DEBUG they log the requests that they make, with what these are signed by. Those of the
process that runs a store are scrubbed where they leave it, and those of a store that is used here
where they are made. Records of the program itself are its own.
"""

from __future__ import annotations

import contextlib
import logging
import traceback
import weakref
from collections.abc import Callable
from typing import Any

from pagemove.stores.urls import Secrets

_LIBRARIES = (
    *("adlfs", "aiobotocore", "aiohttp", "asyncio", "azure", "boto3", "botocore", "fsspec"),
    *("gcsfs", "google", "obstore", "ocifs", "paramiko", "redis", "requests", "s3fs"),
    *("s3transfer", "smbprotocol", "urllib3"),
)
_known: weakref.WeakValueDictionary[int, Secrets] = weakref.WeakValueDictionary()
# The factory of before; once, for somebody else's may call ours by now.
_before: list[Callable[..., logging.LogRecord]] = []


def leave_out(secrets: Secrets) -> None:
    """Have no library log these, as long as the object is there."""
    _known[id(secrets)] = secrets
    if not _before:
        _before.append(logging.getLogRecordFactory())
        logging.setLogRecordFactory(_made)


def hidden(text: str) -> str:
    """Give a text without the secrets of any store of this process."""
    for each in list(_known.values()):
        text = each.hide_known(text)
    return text


def _made(*arguments: Any, **options: Any) -> logging.LogRecord:
    record = _before[0](*arguments, **options)
    if str(record.name).partition(".")[0] in _LIBRARIES:
        # Which may be of any kind, with arguments that cannot be shown.
        with contextlib.suppress(Exception):
            _scrub(record)
    return record


def _scrub(record: logging.LogRecord) -> None:
    text = record.getMessage()
    if (shown := hidden(text)) != text:
        record.msg, record.args = shown, None
    if record.exc_info:
        text = "".join(traceback.format_exception(*record.exc_info)).removesuffix("\n")
        if (shown := hidden(text)) != text:
            record.exc_text, record.exc_info = shown, None
