"""Secrets of URLs and options are in nothing that can be seen, whatever characters they have."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pagemove.paging.sources import Source
from pagemove.stores import FsspecStore
from pagemove.stores.causes import errno_of
from pagemove.stores.urls import Secrets, without_secret

pytestmark = pytest.mark.needs("fsspec")

# No part of a message by chance.
_MARK = "q7Zx"
_ODD = "@:/?#&=%+ '\"\\$!~*()[]{}<>|^`,;é中\x7f"
secrets = st.text(st.sampled_from(_ODD + "abcXYZ019"), min_size=1, max_size=12).map(
    lambda text: _MARK + text + _MARK
)

SHAPES: dict[str, Callable[[str], str]] = {
    "password": lambda secret: f"https://me:{quote(secret, safe='')}@host/x.npy",
    "password as it is": lambda secret: f"https://me:{secret}@host/x.npy",
    "token": lambda secret: f"https://{quote(secret, safe='')}@host/x.npy",
    "query": lambda secret: f"https://host/x.npy?X-Amz-Signature={quote(secret, safe='')}",
    "query with another": lambda secret: f"https://host:80/x?a=b@c&sig={quote(secret)}&t=1",
    "redis": lambda secret: f"redis://me:{quote(secret, safe='')}@host:6379/0#name",
    "redis query": lambda secret: f"redis://host?password={quote(secret, safe='')}#name",
    "chain": lambda secret: f"zip://x::https://u:{quote(secret, safe='')}@h/x.zip",
    "cache": lambda secret: f"filecache::https://u:p@h/x?token={quote(secret, safe='')}",
    "two": lambda secret: f"simplecache::zip://a.npy::ftp://u:{secret}@h/x.zip",
}


def _seen(text: str) -> bool:
    return _MARK in text


@given(secret=secrets, shape=st.sampled_from(sorted(SHAPES)))
def test_urls_are_shown_without(secret, shape):
    url = SHAPES[shape](secret)
    assert not _seen(without_secret(url))
    assert not _seen(f"{Source(url)} {Source(url)!r} {Source(url).name}")


@given(
    secret=secrets,
    shape=st.sampled_from(sorted(SHAPES)),
    around=st.sampled_from(["%s", "url='%s'", "(%s)"]),
)
def test_texts_of_libraries_lose_them(secret, shape, around):
    url = SHAPES[shape](secret)
    hidden = Secrets(url, {})
    for text in (url, quote(url), repr(url), ascii(url), secret, quote(secret), repr(secret)):
        assert not _seen(hidden.hide("failed: " + around % text))


@given(
    secret=secrets,
    name=st.sampled_from(["key", "secret", "token", "password", "sas_token", "client_kwargs"]),
)
def test_texts_of_libraries_lose_options(secret, name):
    options = {name: {"auth": ("me", secret)} if name == "client_kwargs" else secret}
    hidden = Secrets("s3://bucket/x", options)
    for text in (secret, quote(secret, safe=""), repr(secret), repr(options)):
        assert not _seen(hidden.hide(f"refused: {text}"))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    secret=secrets,
    url=st.sampled_from(
        [
            "http://me:%s@127.0.0.1:1/x.npy",
            "http://127.0.0.1:1/x.npy?sig=%s",
            "simplecache::http://me:%s@127.0.0.1:1/x.npy",
            "zip://x::http://127.0.0.1:1/x.zip?token=%s",
            "nosuch://me:%s@host/x",
            "memory://none?password=%s",
            "ftp://me:%s@127.0.0.1:1/x",
        ]
    ),
    raw=st.booleans(),
)
def test_failures_say_nothing_of_them(secret, url, raw):
    # Written as it is, it ends the part of the chain that it is in.
    assume(not (raw and "::" in secret))
    url %= secret if raw else quote(secret, safe="")
    with pytest.raises(Exception) as caught:  # noqa: PT011 (of every kind)
        FsspecStore(url, timeout=0.01)
    error: BaseException | None = caught.value
    assert errno_of(caught.value) > 0
    while error is not None:
        assert not _seen(f"{error} {error!r} {getattr(error, '__notes__', '')}")
        assert not _seen("".join(traceback.format_exception(error)))
        error = error.__context__
