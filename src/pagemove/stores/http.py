"""Ranges over HTTP: whether a server serves them, of what, and whether it is still the same.

fsspec takes whatever a server answers to a request for a range; here the answer is looked at: also
those that fsspec asks for itself, for the members of an archive or the blocks of a cache.
"""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import aiohttp

#: Headers that identify the version of a resource.
Validate = Literal["etag", "size", "none"]

_SPAN = re.compile(r"bytes=(\d+)-(\d+)$")
_CONTENT_RANGE = re.compile(r"\s*bytes\s+(\d+)-(\d+)/(\d+|\*)\s*$", re.IGNORECASE)
# A URL that needs no quoting is sent as it was given: it may be signed.
_QUOTED = re.compile(r"(?:[A-Za-z0-9\-._~:/?\[\]@!$&'()*+,;=]|%[0-9A-Fa-f]{2})+$")
_OURS = object()
_OWN_OPTIONS = {"encoded", "get_client", "skip_instance_cache"}
# Of a client's errors those that may be another the next time.
_PASSING = (408, 425, 429)
# And how servers say that the signature of a URL has expired.
_EXPIRED = (400, 401, 403)
# Of so many URLs the first answer is remembered: an archive of references may name any number.
_MOST_SEEN = 1024
#: What to do if a version differs, and nothing has changed.
REMEDY = (
    "open it anew; or with validate='size' (a keyword of FsspecStore, elsewhere a storage option) "
    "if servers behind one name differ in that for the same bytes"
)


class Resource(NamedTuple):
    """What is behind a URL: its length, and what changes when it does."""

    nbytes: int
    version: str


class Guard:
    """Makes the sessions of fsspec's filesystems, and looks at every answer for a range.

    Parameters
    ----------
    validate : {"etag", "size", "none"}
        What has to stay as it was in the first answer of a URL.
    """

    def __init__(self, validate: Validate) -> None:
        self._validate = validate
        self._seen: dict[str, Resource] = {}
        self._sessions: list[tuple[Any, aiohttp.ClientSession]] = []
        self._makers: list[Any] = []
        self._plain: list[Any] = []  # those of them that make what aiohttp makes by itself

    def options(self, options: dict[str, Any], url: str = "") -> dict[str, Any]:
        """Return options of such a filesystem, for what is at a URL, with these sessions."""
        make = options.get("get_client")
        maker = self._maker(make)
        self._makers.append(maker)
        if make is None:
            self._plain.append(maker)
        # Then fsspec sends the URL as it is, too.
        encoded = {"encoded": True} if _QUOTED.match(url) else {}
        return {**encoded, **options, "get_client": maker, "skip_instance_cache": True}

    def guarded(self, filesystem: Any) -> Any:
        """Return a filesystem whose sessions are made here: itself, or another like it."""
        if filesystem.get_client in self._makers:
            return filesystem
        return type(filesystem)(**self.options(filesystem.storage_options))

    def is_plain(self, filesystem: Any) -> bool:
        """Return whether its requests have nothing from the caller but the URL."""
        options = filesystem.storage_options.keys()
        return filesystem.get_client in self._plain and options <= _OWN_OPTIONS

    def _maker(
        self, make: Callable[..., Awaitable[aiohttp.ClientSession]] | None
    ) -> Callable[..., Awaitable[aiohttp.ClientSession]]:
        async def made(loop: Any = None, **options: Any) -> aiohttp.ClientSession:
            import aiohttp

            trace = aiohttp.TraceConfig()
            trace.on_request_end.append(self._check)
            # Compressed on its way it would be a range of something else.
            headers = {"Accept-Encoding": "identity", **(options.pop("headers", None) or {})}
            # What a redirect says may be signed, and is followed to the letter.
            options.setdefault("requote_redirect_url", False)
            options["trace_configs"] = [*(options.get("trace_configs") or ()), trace]
            if make is not None:
                session = await make(loop=loop, headers=headers, **options)
            else:
                session = aiohttp.ClientSession(headers=headers, **options)
            self._sessions.append((loop, session))
            return session

        return made

    async def _check(
        self,
        _session: aiohttp.ClientSession,
        context: Any,
        request: aiohttp.TraceRequestEndParams,
    ) -> None:
        answer = request.response
        ours = context.trace_request_ctx is _OURS  # checked by the caller
        if ours or request.method != "GET" or answer.status >= 400:
            return
        _check_plain(answer)
        span = _SPAN.match(request.headers.get("Range", ""))
        if span is None:
            return
        first, last = int(span[1]), int(span[2])
        length = answer.headers.get("Content-Length", "")
        # The whole is the beginning too, if there is no more than was asked for.
        if answer.status == 200 and not first and length.isdigit() and int(length) <= last + 1:
            return
        total = _check_range(answer, first, last)
        if total is None or not length:
            raise OSError(errno.EIO, f"the answer to {span[0]} does not say how long it is")
        # Where it was redirected to may be signed, and another address each time.
        asked = answer.history[0].request_info.url if answer.history else request.url
        self._remember(str(asked), Resource(total, version_of(answer)))

    def _remember(self, url: str, found: Resource) -> None:
        """Compare what is behind a URL with what was there first."""
        known = self._seen.pop(url, found)
        self._seen[url] = known
        if len(self._seen) > _MOST_SEEN:
            del self._seen[next(iter(self._seen))]
        _check_version(known, found, self._validate)

    async def close(self) -> None:
        """Close the connections, and wait until they are."""
        import asyncio

        sessions, self._sessions = self._sessions, []
        for _, session in sessions:
            await session.close()
        # aiohttp closes what is below in the next turn of the loop.
        await asyncio.sleep(0)

    @property
    def loop(self) -> Any:
        """Where the sessions are; None without any."""
        return self._sessions[0][0] if self._sessions else None


async def look(filesystem: Any, url: str) -> Resource:
    """Ask for the first byte.

    Raises
    ------
    FileNotFoundError
        There is nothing.
    ValueError
        It is empty, or its server does not serve ranges.
    aiohttp.ClientError, OSError
        The server cannot be asked, or has a failure.
    """
    async with await _get(filesystem, url, "bytes=0-0") as answer:
        if answer.status in (404, 410):
            raise FileNotFoundError(errno.ENOENT, "there is no such file")
        if answer.status == 416:
            raise ValueError("it is empty: there is nothing to page")
        answer.raise_for_status()
        if answer.status == 206:
            _check_plain(answer)
            total = _check_range(answer, 0, 0)
            if total is None:
                raise ValueError(
                    "the server does not say how long it is (its Content-Range ends with /*): "
                    "download it and open the file"
                )
            return Resource(total, version_of(answer))
        if answer.headers.get("Content-Length") == "0":
            raise ValueError("it is empty: there is nothing to page")
    raise ValueError(
        f"its server does not serve ranges of it (it answers with status {answer.status}): "
        "download it and open the file, or have it served by one that does"
    )


async def read(
    filesystem: Any,
    url: str,
    offset: int,
    view: memoryview,
    known: Resource,
    validate: Validate = "etag",
) -> None:
    """Read a range of what was looked at; OSError if the answer is anything else."""
    first, last = offset, offset + view.nbytes - 1
    async with await _get(filesystem, url, f"bytes={first}-{last}") as answer:
        answer.raise_for_status()
        _check_plain(answer)
        total = _check_range(answer, first, last)
        if total is None:
            raise OSError(errno.EIO, "the server does not say any more how long it is")
        _check_version(known, Resource(total, version_of(answer)), validate)
        got = 0
        # Never more than was asked for is taken, whatever is sent.
        while data := await answer.content.read(view.nbytes - got + 1):
            if got + len(data) > view.nbytes:
                answer.close()
                raise OSError(errno.EIO, f"asked for {view.nbytes} bytes, got more")
            view[got : got + len(data)] = data
            got += len(data)
    if got < view.nbytes:
        raise OSError(errno.EIO, f"asked for {view.nbytes} bytes, got {got}")


def is_passing(error: Exception) -> bool:
    """Return whether an answer may be another the next time."""
    status: int = getattr(error, "status", 0)
    # Where a redirect leads: a signature that has expired since. The next one has another.
    if status in _EXPIRED and getattr(error, "history", None):
        return True
    return not 400 <= status < 500 or status in _PASSING


def version_of(answer: aiohttp.ClientResponse) -> str:
    """Return what changes with the bytes."""
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "unversioned"


def _check_plain(answer: aiohttp.ClientResponse) -> None:
    """Refuse bytes of an encoding, which are not those of the resource."""
    encoding = answer.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise OSError(
            errno.EIO,
            f"the server sends it compressed ({encoding}), though it was asked not to: a range of "
            "that is another one; have it served as it is",
        )


def _check_range(answer: aiohttp.ClientResponse, first: int, last: int) -> int | None:
    """Check that it is the range that was asked for; return the length of the whole, if it is said.

    Raises
    ------
    OSError
        It is another range, or none.
    """
    asked = f"asked for bytes {first} to {last}"
    if answer.status != 206:
        raise OSError(errno.EIO, f"{asked}, the server answers with status {answer.status}")
    if answer.headers.get("Content-Type", "").strip().lower().startswith("multipart/"):
        raise OSError(errno.EIO, f"{asked}, the server answers with several parts")
    found = answer.headers.getall("Content-Range", [])
    span = _CONTENT_RANGE.match(found[0]) if len(found) == 1 else None
    if span is None:
        raise OSError(
            errno.EIO, f"{asked}, the answer does not say what it is: Content-Range {found}"
        )
    if (int(span[1]), int(span[2])) != (first, last):
        raise OSError(
            errno.EIO,
            f"{asked}, the server, or a cache before it, answers with bytes {span[1]} to {span[2]}",
        )
    length = answer.headers.get("Content-Length")
    if length is not None and length != str(last - first + 1):
        raise OSError(errno.EIO, f"{asked}, the answer has {length} bytes")
    return None if span[3] == "*" else int(span[3])


def _check_version(known: Resource, found: Resource, validate: Validate) -> None:
    if validate != "none" and found.nbytes != known.nbytes:
        raise OSError(
            errno.ESTALE,
            f"it has changed since it was opened (it had {known.nbytes} bytes, and has "
            f"{found.nbytes}); open it anew",
        )
    if validate == "etag" and found.version != known.version:
        raise OSError(
            errno.ESTALE,
            f"it has changed since it was opened (it was {known.version}, and is {found.version}); "
            f"{REMEDY}",
        )


async def _get(filesystem: Any, url: str, span: str) -> aiohttp.ClientResponse:
    import yarl

    session = await filesystem.set_session()
    options = dict(filesystem.kwargs)
    headers = {**options.pop("headers", {}), "Range": span, "Accept-Encoding": "identity"}
    target = yarl.URL(url, encoded=True) if _QUOTED.match(url) else filesystem.encode_url(url)
    answer: aiohttp.ClientResponse = await session.get(
        target, headers=headers, trace_request_ctx=_OURS, **options
    )
    return answer
