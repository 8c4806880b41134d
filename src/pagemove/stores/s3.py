"""Objects on S3: what s3fs has opened, for obstore to read.

s3fs finds the object: options, credentials, endpoints and regions are its and botocore's. What it
has found is handed to obstore (`objects`), where that is installed and can do the same; where it
cannot, s3fs reads as well.
"""

from __future__ import annotations

import datetime
import errno
import re
from typing import Any

from pagemove.stores.http import REMEDY, Resource, Validate
from pagemove.stores.loops import wait_for
from pagemove.stores.objects import Reader, client_options, is_usable

# What s3fs does of these obstore does too. Of others (requester_pays, version_aware ...) not.
_SAME = {"anon", "endpoint_url", "key", "secret", "token", "profile", "use_ssl", "client_kwargs"}
_SAME_OF_CLIENT = {"endpoint_url", "region_name"}
# Access points and directory buckets have addresses, and signatures, of their own.
_PLAIN_BUCKET = re.compile(r"(?!.*--x-s3$)[a-z0-9][a-z0-9.-]+$")
# How long credentials that s3fs has are used before it is asked again, which renews them.
_FRESH = datetime.timedelta(minutes=5)


def _another(start: int, length: int, answer: str) -> OSError:
    return OSError(errno.EIO, f"asked for bytes {start} to {start + length - 1}, got {answer}")


def _changed(known: Resource, nbytes: int | None = None) -> OSError:
    if nbytes is None:
        how, remedy = f"it is not {known.version} any more", REMEDY
    else:
        how, remedy = f"it had {known.nbytes} bytes, and has {nbytes}", "open it anew"
    return OSError(errno.ESTALE, f"it has changed since it was opened ({how}); {remedy}")


def is_s3(filesystem: Any) -> bool:
    """Return whether it is s3fs's filesystem."""
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


def reader(
    filesystem: Any, path: str, known: Resource, validate: Validate, seconds: float
) -> Reader | None:
    """Return what reads an object that s3fs has found; None: s3fs itself.

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
    if not known.version or not _is_same(filesystem) or not is_usable():
        return None
    bucket, key, version = filesystem.split_path(path)
    if version or not _PLAIN_BUCKET.match(bucket):
        return None
    signed = _signed(filesystem, seconds)
    if signed is None:
        return None
    from obstore.store import S3Store

    endpoint = filesystem.s3.meta.endpoint_url
    store = S3Store(
        bucket,
        endpoint=endpoint,
        region=filesystem.s3.meta.region_name or "us-east-1",
        virtual_hosted_style_request=False,
        **client_options(endpoint, seconds),
        **signed,
    )
    return Reader(store, key, known, validate)


def _is_same(filesystem: Any) -> bool:
    """Return whether obstore, told what it can be told, asks for the same as s3fs."""
    options = filesystem.storage_options
    if not is_s3(filesystem) or not options.keys() <= _SAME:
        return False
    return (options.get("client_kwargs") or {}).keys() <= _SAME_OF_CLIENT


def _signed(filesystem: Any, seconds: float) -> dict[str, Any] | None:
    """Return how requests are to be signed; None: it is not known."""
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
    """Return the credentials that botocore finds for s3fs, renewed if need be."""

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
