"""Ranges over HTTP: whether a server gives them, of what, and whether it is still the same.

fsspec takes whatever a server answers to a request for a range; here the answer is looked at.
"""

from __future__ import annotations

import asyncio
import errno
import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import aiohttp

_TOTAL = re.compile(r"bytes (?:\d+-\d+|\*)/(\d+)$")
# Of a client's errors those that may be another the next time.
_PASSING = (408, 425, 429)


class Resource(NamedTuple):
    """What is behind a URL: its length, and what changes when it does."""

    nbytes: int
    version: str


async def look(filesystem: Any, url: str) -> Resource:
    """Ask for the first byte.

    Raises
    ------
    FileNotFoundError
        There is nothing.
    ValueError
        It has no bytes, or they cannot be had by ranges.
    aiohttp.ClientError, OSError
        The server cannot be asked, or has a failure.
    """
    async with await _get(filesystem, url, "bytes=0-0") as answer:
        if answer.status in (404, 410):
            raise FileNotFoundError(errno.ENOENT, "there is no such file", url)
        if answer.status == 416:
            raise ValueError(f"{url} is empty: there is nothing to page")
        answer.raise_for_status()
        total = _TOTAL.match(answer.headers.get("Content-Range", ""))
        if answer.status == 206 and total:
            return Resource(int(total[1]), _version(answer))
        if answer.headers.get("Content-Length") == "0":
            raise ValueError(f"{url} is empty: there is nothing to page")
    raise ValueError(
        f"the server of {url} does not give ranges of it (it answers with status {answer.status}): "
        "download it and open the file, or have it served by one that does"
    )


async def read(filesystem: Any, url: str, offset: int, length: int, version: str) -> bytes:
    """Read a range of what was looked at; OSError if it has become something else."""
    span = f"bytes={offset}-{offset + length - 1}"
    async with await _get(filesystem, url, span) as answer:
        answer.raise_for_status()
        if answer.status != 206:
            raise OSError(errno.EIO, f"asked for {span}, the server answers {answer.status}")
        found = _version(answer)
        if found != version:
            raise OSError(
                errno.ESTALE,
                f"it has changed since it was opened (it was {version}, and is {found}); open it "
                "anew",
            )
        data: bytes = await answer.read()
        return data


def is_passing(error: Exception) -> bool:
    """Tell whether an answer may be another the next time."""
    status: int = getattr(error, "status", 0)
    return not 400 <= status < 500 or status in _PASSING


async def _get(filesystem: Any, url: str, span: str) -> aiohttp.ClientResponse:
    session = await filesystem.set_session()
    options = dict(filesystem.kwargs)
    # Compressed on its way it would be a range of something else.
    headers = {**options.pop("headers", {}), "Range": span, "Accept-Encoding": "identity"}
    answer: aiohttp.ClientResponse = await session.get(
        filesystem.encode_url(url), headers=headers, **options
    )
    return answer


def _version(answer: aiohttp.ClientResponse) -> str:
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "unversioned"


async def close(filesystem: Any) -> None:
    """Close the connections, and wait until they are."""
    session = getattr(filesystem, "_session", None)
    if session is not None:
        await session.close()
        # aiohttp closes what is below in the next turn of the loop.
        await asyncio.sleep(0)
