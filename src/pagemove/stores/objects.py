"""Ranges of objects and of what is behind a URL, read by obstore.

Python finds them: s3fs and botocore know options, credentials, endpoints and regions, aiohttp asks
a server once and checks all that it answers. The reads after that run without the GIL in obstore,
where it is installed and can be told the same: in a tenth to a half of the time
(``benchmarks/object_storage.py``, ``benchmarks/own_or_library.py``).

Only a complete answer to the question counts. On anything else the caller reads again by the
slower way, which knows what to say about it.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

from pagemove._native.mapping import generation
from pagemove.stores.http import Resource, Validate

_MOST_DOUBTS = 3
# obstore writes other characters of a path in its own way; a query may be a signature.
_PLAIN_PATH = re.compile(r"(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)+$")
_ETAG = re.compile(r'(?:W/)?"')


# obstore's threads are started by its first request, and a forked child does not have them: what it
# asks would never be answered.
_process: int | None = None


def is_usable() -> bool:
    """Return whether obstore is installed, and was not used before this process was forked."""
    global _process
    if find_spec("obstore") is None:
        return False
    if _process is None:
        _process = generation()
    return _process == generation()


class Reader:
    """Reads ranges of one object.

    Parameters
    ----------
    store : obstore.store.S3Store or obstore.store.HTTPStore
        Where it is.
    key : str
        Of the object.
    known : Resource
        What it was when it was opened.
    validate : {"etag", "size", "none"}
        What of that has to be the same.
    """

    def __init__(self, store: Any, key: str, known: Resource, validate: Validate = "etag") -> None:
        self._store = store
        self._key = key
        self._known = known
        self._validate = validate
        self._proven = False
        self._doubts = 0

    @property
    def hopeless(self) -> bool:
        """Whether it has failed from the beginning, or belongs to another process."""
        return self._doubts >= _MOST_DOUBTS or not is_usable()

    def read(self, start: int, view: memoryview) -> bool:
        """Fill a buffer with a range; False if the answer is not just that range."""
        try:
            filled = self._fill(start, view)
        except Exception:
            filled = False
        self._proven |= filled
        self._doubts += not filled and not self._proven
        return filled

    def _fill(self, start: int, view: memoryview) -> bool:
        import obstore

        asked = (start, start + view.nbytes)
        options: Any = {"range": asked}
        version = self._known.version if self._validate == "etag" else ""
        # HTTP compares strongly there: a weak ETag never matches.
        if version and not version.startswith("W/"):
            options["if_match"] = version
        answer = obstore.get(self._store, self._key, options=options)
        if tuple(answer.range) != asked or not _is_plain(answer.attributes):
            return False
        if self._validate != "none" and answer.meta["size"] != self._known.nbytes:
            return False
        if version and answer.meta["e_tag"] != version:
            return False
        return _take(answer, view)


def _is_plain(attributes: Any) -> bool:
    """Return whether a body is the bytes themselves: in no encoding, and not in parts."""
    encoding = attributes.get("Content-Encoding", "identity")
    kind = attributes.get("Content-Type", "")
    return encoding.lower() == "identity" and not kind.lower().startswith("multipart/")


def _take(answer: Any, view: memoryview) -> bool:
    """Fill a buffer with the body of an answer, of which hardly more is read than that."""
    got = 0
    for chunk in answer.stream(min_chunk_size=view.nbytes + 1):
        data = memoryview(chunk)
        if got + data.nbytes > view.nbytes:
            return False
        view[got : got + data.nbytes] = data
        got += data.nbytes
    return got == view.nbytes


def client_options(endpoint: str, seconds: float) -> dict[str, Any]:
    """Return what a store of obstore is made with, for requests that take at most `seconds`."""
    limit = f"{seconds:.3f}s"
    return {
        "client_options": {
            "allow_http": endpoint.startswith("http://"),
            "timeout": limit,
            "connect_timeout": limit,
        },
        # How long it is tried again is for the caller to say.
        "retry_config": {"max_retries": 0},
    }


def reader_of_url(url: str, known: Resource, validate: Validate, seconds: float) -> Reader | None:
    """Return what reads a URL that needs no options; None if obstore would ask for another.

    Parameters
    ----------
    url : str
        Where it is.
    known : Resource
        What it was when it was opened.
    validate : {"etag", "size", "none"}
        What of that has to be the same.
    seconds : float
        The most that a request may take.
    """
    parts = urlsplit(url)
    comparable = validate != "etag" or _ETAG.match(known.version)
    plain = _PLAIN_PATH.match(parts.path) and "@" not in parts.netloc
    # aiohttp asks no proxy that the environment names, and obstore does.
    if not comparable or not plain or parts.query or parts.fragment or getproxies_environment():
        return None
    if not is_usable():
        return None
    from obstore.store import HTTPStore

    origin = f"{parts.scheme}://{parts.netloc}"
    store = HTTPStore.from_url(origin, **client_options(origin, seconds))
    return Reader(store, parts.path[1:], known, validate)
