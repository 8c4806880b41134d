"""Ranges of objects on S3, read by obstore.

s3fs finds the object: options, credentials, endpoints and regions are its and botocore's. Ranges it
reads by a loop that runs Python for every piece that arrives; obstore does that without the GIL, in
about a tenth of the time for 64 KiB and half of it for 2 MiB (``benchmarks/object_storage.py``). So
what s3fs has found is handed to obstore, where that is installed and can do the same; where it
cannot, s3fs reads as well.
"""

from __future__ import annotations

import datetime
import errno
import re
from importlib.util import find_spec
from typing import Any

from pagemove._native.mapping import generation
from pagemove.stores.http import REMEDY, Resource, Validate
from pagemove.stores.loops import wait_for

# What s3fs does of these obstore does too. Of others (requester_pays, version_aware ...) not.
_SAME = {"anon", "endpoint_url", "key", "secret", "token", "profile", "use_ssl", "client_kwargs"}
_SAME_OF_CLIENT = {"endpoint_url", "region_name"}
# Access points and directory buckets have addresses, and signatures, of their own.
_PLAIN_BUCKET = re.compile(r"(?!.*--x-s3$)[a-z0-9][a-z0-9.-]+$")
# How long credentials that s3fs has are used before it is asked again, which renews them.
_FRESH = datetime.timedelta(minutes=5)
_MOST_DOUBTS = 3


class Reader:
    """Reads ranges of one object.

    Parameters
    ----------
    store : obstore.store.S3Store
        The bucket.
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
        self._process = generation()
        self._proven = False
        self._doubts = 0

    @property
    def hopeless(self) -> bool:
        """Whether it has failed from the beginning, so that s3fs should read instead."""
        return self._doubts >= _MOST_DOUBTS or generation() != self._process

    def read(self, start: int, view: memoryview) -> bool:
        """Fill a buffer with a range; False: it cannot, perhaps s3fs can.

        Raises
        ------
        OSError
            The object has changed.
        obstore.exceptions.BaseError
            Whatever else goes wrong, if a read has succeeded before.
        """
        import obstore
        from obstore.exceptions import PreconditionError

        options: Any = {"range": (start, start + view.nbytes)}
        version = self._known.version if self._validate == "etag" else ""
        # A weak one never matches: HTTP compares them as strong ones there.
        weak = version.startswith("W/")
        if version and not weak:
            options["if_match"] = version
        try:
            answer = obstore.get(self._store, self._key, options=options)
            if tuple(answer.range) != (start, start + view.nbytes):
                first, end = answer.range
                raise _another(start, view.nbytes, f"bytes {first} to {end - 1}")
            if self._validate != "none" and answer.meta["size"] != self._known.nbytes:
                raise _changed(self._known, answer.meta["size"])
            if weak and answer.meta["e_tag"] != version:
                raise _changed(self._known)
            _take(answer, view)
        except PreconditionError as error:
            raise _changed(self._known) from error
        except Exception:
            if self._proven:
                raise
            self._doubts += 1
            return False
        self._proven = True
        return True


def _take(answer: Any, view: memoryview) -> None:
    """Fill a buffer with the body of an answer, of which no more is read than that."""
    got = 0
    for chunk in answer.stream(min_chunk_size=view.nbytes + 1):
        data = memoryview(chunk)
        if got + data.nbytes > view.nbytes:
            raise OSError(errno.EIO, f"asked for {view.nbytes} bytes, got more")
        view[got : got + data.nbytes] = data
        got += data.nbytes
    if got < view.nbytes:
        raise OSError(errno.EIO, f"asked for {view.nbytes} bytes, got {got}")


def _another(start: int, length: int, answer: str) -> OSError:
    return OSError(errno.EIO, f"asked for bytes {start} to {start + length - 1}, got {answer}")


def _changed(known: Resource, nbytes: int | None = None) -> OSError:
    if nbytes is None:
        how, remedy = f"it is not {known.version} any more", REMEDY
    else:
        how, remedy = f"it had {known.nbytes} bytes, and has {nbytes}", "open it anew"
    return OSError(errno.ESTALE, f"it has changed since it was opened ({how}); {remedy}")


def is_s3(filesystem: Any) -> bool:
    """Tell whether it is s3fs's filesystem."""
    return "s3" in type(filesystem).protocol and hasattr(type(filesystem), "_call_s3")


async def fetch(
    filesystem: Any, path: str, start: int, length: int, known: Resource, validate: Validate
) -> bytes:
    """Have s3fs read a range; OSError if the answer is anything else."""
    bucket, key, version = filesystem.split_path(path)
    options = {"VersionId": version} if version else {}
    answer = await filesystem._call_s3(
        "get_object",
        Bucket=bucket,
        Key=key,
        Range=f"bytes={start}-{start + length - 1}",
        **options,
    )
    body = answer["Body"]
    try:
        span = str(answer.get("ContentRange"))
        found = re.match(r"bytes (\d+)-(\d+)/(\d+)$", span)
        if not found or (int(found[1]), int(found[2])) != (start, start + length - 1):
            raise _another(start, length, span)
        if validate != "none" and int(found[3]) != known.nbytes:
            raise _changed(known, int(found[3]))
        if validate == "etag" and known.version and answer.get("ETag") != known.version:
            raise _changed(known)
        data = b""
        while len(data) <= length and (more := await body.read(length - len(data) + 1)):
            data += more
        return data
    finally:
        body.close()


def is_passing(error: Exception) -> bool:
    """Tell whether an error of obstore may be another the next time; others may."""
    return type(error).__name__ not in ("PermissionDeniedError", "UnauthenticatedError")


def reader(
    filesystem: Any, path: str, known: Resource, validate: Validate, seconds: float
) -> Reader | None:
    """Give what reads an object that s3fs has found; None: s3fs itself.

    Parameters
    ----------
    filesystem : s3fs.S3FileSystem
        That has found it.
    path : str
        Bucket and key.
    known : Resource
        What it has found.
    validate : {"etag", "size", "none"}
        What of that has to be the same.
    seconds : float
        The most that a request may take.
    """
    if not known.version or not _is_same(filesystem) or find_spec("obstore") is None:
        return None
    bucket, key, version = filesystem.split_path(path)
    if version or not _PLAIN_BUCKET.match(bucket):
        return None
    signed = _signed(filesystem, seconds)
    if signed is None:
        return None
    from obstore.store import S3Store

    endpoint = filesystem.s3.meta.endpoint_url
    limit = f"{seconds:.3f}s"
    store = S3Store(
        bucket,
        endpoint=endpoint,
        region=filesystem.s3.meta.region_name or "us-east-1",
        virtual_hosted_style_request=False,
        client_options={
            "allow_http": endpoint.startswith("http://"),
            "timeout": limit,
            "connect_timeout": limit,
        },
        # How long it is tried again is for the caller to say.
        retry_config={"max_retries": 0},
        **signed,
    )
    return Reader(store, key, known, validate)


def _is_same(filesystem: Any) -> bool:
    """Tell whether obstore, told what it can be told, asks for the same as s3fs."""
    options = filesystem.storage_options
    if not is_s3(filesystem) or not options.keys() <= _SAME:
        return False
    return (options.get("client_kwargs") or {}).keys() <= _SAME_OF_CLIENT


def _signed(filesystem: Any, seconds: float) -> dict[str, Any] | None:
    """Give how requests are to be signed; None: it is not known."""
    if filesystem.anon:
        return {"skip_signature": True}
    if filesystem.key and filesystem.secret:
        token = {"session_token": filesystem.token} if filesystem.token else {}
        return {
            "access_key_id": filesystem.key,
            "secret_access_key": filesystem.secret,
            **token,
        }
    if _found(filesystem, seconds) is None:
        return None
    return {"credential_provider": lambda: _found(filesystem, seconds)}


def _found(filesystem: Any, seconds: float) -> dict[str, Any] | None:
    """Give the credentials that botocore finds for s3fs, renewed if need be."""

    async def frozen() -> Any:
        credentials = await filesystem.session.get_credentials()
        return credentials and await credentials.get_frozen_credentials()

    found = wait_for(filesystem, frozen(), seconds)
    if found is None:
        return None
    return {
        "access_key_id": found.access_key,
        "secret_access_key": found.secret_key,
        "token": found.token,
        "expires_at": datetime.datetime.now(datetime.UTC) + _FRESH,
    }
