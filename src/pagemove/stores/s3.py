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
    etag : str
        What it was when it was opened.
    """

    def __init__(self, store: Any, key: str, etag: str) -> None:
        self._store = store
        self._key = key
        self._etag = etag
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

        options: Any = {"range": (start, start + view.nbytes), "if_match": self._etag}
        try:
            answer = obstore.get(self._store, self._key, options=options)
            data = memoryview(answer.bytes())
            if data.nbytes != view.nbytes:
                raise OSError(errno.EIO, f"asked for {view.nbytes} bytes, got {data.nbytes}")
        except PreconditionError as error:
            why = "it has changed since it was opened; open it anew"
            raise OSError(errno.ESTALE, why) from error
        except Exception:
            if self._proven:
                raise
            self._doubts += 1
            return False
        view[:] = data
        self._proven = True
        return True


def is_passing(error: Exception) -> bool:
    """Tell whether an error of obstore may be another the next time; others may."""
    return type(error).__name__ not in ("PermissionDeniedError", "UnauthenticatedError")


def reader(
    filesystem: Any, path: str, etag: str, options: dict[str, Any], seconds: float
) -> Reader | None:
    """Give what reads an object that s3fs has found; None: s3fs itself.

    Parameters
    ----------
    filesystem : s3fs.S3FileSystem
        That has found it.
    path : str
        Bucket and key.
    etag : str
        Of the object.
    options : dict
        What the filesystem was made with.
    seconds : float
        The most that a request may take.
    """
    if not etag or not _is_same(filesystem, options) or find_spec("obstore") is None:
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
    return Reader(store, key, etag)


def _is_same(filesystem: Any, options: dict[str, Any]) -> bool:
    """Tell whether obstore, told what it can be told, asks for the same as s3fs."""
    if "s3" not in filesystem.protocol or not options.keys() <= _SAME:
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
