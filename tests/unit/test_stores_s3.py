"""stores/s3.py: what s3fs has opened obstore reads, and where it does not s3fs does."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pagemove import StoreError
from pagemove.stores import FsspecStore, objects, s3
from pagemove.stores.http import Resource
from support.servers import Moto, WebServer, free_ports

# Libraries are imported where they are used: each is as large as the tests of everything else.
pytestmark = pytest.mark.needs("obstore")

CONTENTS = np.random.default_rng(5).bytes(200_000)

#: What asks a server of its own, where others ask what plays one in this process.
served = pytest.mark.needs("s3")


def filesystem(server: Moto) -> Any:
    """Return what s3fs makes of a server."""
    from s3fs import S3FileSystem

    return S3FileSystem(**server.options)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    with Moto(tmp_path_factory.mktemp("s3"), free_ports(1)[0]) as running:
        filesystem(running).mkdir("bucket")
        yield running


@pytest.fixture
def url(server: Moto, request: pytest.FixtureRequest) -> str:
    name = request.node.name.replace("[", "-").replace("]", "")
    put(server, f"s3://bucket/{name}", CONTENTS)
    return f"s3://bucket/{name}"


def put(server: Moto, url: str, contents: bytes) -> None:
    filesystem(server).pipe(url, contents)


def opened(server: Moto, url: str, **options: object) -> FsspecStore:
    return FsspecStore(url, timeout=30, **{**server.options, **options})


def read(store: FsspecStore, offset: int = 5, length: int = 1000) -> bytes:
    buffer = bytearray(length)
    store.read_into(offset, buffer)
    return bytes(buffer)


def reads_by_obstore(store: FsspecStore) -> bool:
    """Tell, of a store that has been read, what read it."""
    reader = store._opened._s3
    return reader is not None and reader._proven


@served
@pytest.mark.parametrize(
    "options", [{}, {"client_kwargs": {"region_name": "eu-west-1"}}, {"token": "t"}, {"anon": True}]
)
def test_obstore_reads(server, url, options):
    if "anon" in options:
        options |= {"key": None, "secret": None}
        filesystem(server).chmod(url, acl="public-read")
    with opened(server, url, **options) as store:
        for copy in (store, pickle.loads(pickle.dumps(store))):
            assert read(copy) == CONTENTS[5:1005]
            assert read(copy, len(CONTENTS) - 7, 7) == CONTENTS[-7:]
            assert reads_by_obstore(copy)
            copy.close()
            assert read(copy) == CONTENTS[5:1005]


@served
@pytest.mark.parametrize("where", ["environment", "profile"])
def test_credentials_that_botocore_finds(server, url, tmp_path, monkeypatch, where):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    options: dict[str, object] = {}
    if where == "environment":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "found")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    else:
        path = tmp_path / "credentials"
        path.write_text("[mine]\naws_access_key_id = found\naws_secret_access_key = hidden\n")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
        options["profile"] = "mine"
    with FsspecStore(url, timeout=30, endpoint_url=server.url, **options) as store:
        found = s3._found(store._opened._filesystem, 30)
        assert (found["access_key_id"], found["secret_access_key"]) == ("found", "hidden")
        assert read(store) == CONTENTS[5:1005]
        assert reads_by_obstore(store)


@served
def test_what_only_s3fs_can_do(server, url):
    for options in (
        {"default_fill_cache": False},
        {"requester_pays": True},
        {"client_kwargs": {"region_name": "eu-west-1", "verify": False}},
    ):
        with opened(server, url, **options) as store:
            assert read(store) == CONTENTS[5:1005]
            assert not reads_by_obstore(store)


@served
def test_without_obstore(server, url, monkeypatch):
    monkeypatch.setattr(objects, "find_spec", lambda _: None)
    with opened(server, url) as store:
        assert read(store) == CONTENTS[5:1005]
        assert not reads_by_obstore(store)


@served
def test_an_object_that_has_changed(server, url):
    with opened(server, url) as store:
        assert read(store) == CONTENTS[5:1005]
        put(server, url, CONTENTS[::-1])
        with pytest.raises(StoreError, match=r"has changed .*validate='size'") as caught:
            read(store)
        assert caught.value.errno == errno.ESTALE


@served
def test_a_weak_etag_is_compared_here(server, url, monkeypatch):
    """If-Match never matches one, and the server would refuse each read."""
    import obstore

    real, asked = obstore.get, []

    def get(store: object, key: str, *, options: dict[str, object]) -> object:
        asked.append("if_match" in options)
        answer = real(store, key, options=options)
        return SimpleNamespace(
            range=answer.range,
            stream=answer.stream,
            attributes=answer.attributes,
            meta={**answer.meta, "e_tag": found[0]},
        )

    found = ['W/"one"']
    with opened(server, url) as store:
        store._known = store._known._replace(version='W/"one"')
        store.close()
        monkeypatch.setattr(obstore, "get", get)
        assert read(store) == CONTENTS[5:1005]
        assert reads_by_obstore(store)
        found[0] = 'W/"two"'
        with pytest.raises(StoreError, match="validate='size'"):
            read(store)
        assert not any(asked)


@served
def test_s3fs_reads_what_obstore_never_could(server, url):
    from obstore.store import S3Store

    store = opened(server, url)
    nowhere = S3Store(
        "bucket",
        endpoint="http://127.0.0.1:1",
        region="eu",
        skip_signature=True,
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    opener = store._opened
    opener._s3, opener._s3_tried = objects.Reader(nowhere, "x", Resource(1, "etag")), True
    for _ in range(5):
        assert read(store) == CONTENTS[5:1005]
    assert opener._s3.hopeless
    assert opener._s3._doubts == 3
    # But what could is not given up for a failure of the server.
    opener._s3._proven, opener._s3._doubts = True, 0
    for _ in range(5):
        assert read(store) == CONTENTS[5:1005]
    assert not opener._s3.hopeless
    store.close()


@served
def test_an_object_that_is_gone(server, url):
    with opened(server, url) as store:
        assert read(store) == CONTENTS[5:1005]
        filesystem(server).rm(url)
        with pytest.raises(StoreError, match="does not exist"):
            read(store)


@served
def test_names_of_all_kinds(server):
    for name in ("a b", "100%", "é/ü", "a+b", "a//b", "x#y"):
        url = f"s3://bucket/{name}"
        put(server, url, CONTENTS)
        with opened(server, url) as store:
            assert read(store) == CONTENTS[5:1005], name


@pytest.mark.parametrize(
    "lie", ["shifted", "unsaid", "total", "whole", "longer", "encoded", "parts"]
)
def test_obstore_gets_another_answer(tmp_path, lie):
    """It is never taken for data, and whoever looks at it does so later too."""
    from obstore.store import S3Store

    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "x").write_bytes(CONTENTS)
    with WebServer(tmp_path).running() as web:
        store = S3Store(
            "bucket",
            endpoint=web.url,
            region="eu",
            skip_signature=True,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True, "timeout": "5s"},
            retry_config={"max_retries": 0},
        )
        reader = objects.Reader(store, "x", Resource(len(CONTENTS), '"first"'))
        buffer = bytearray(1000)
        assert reader.read(5, memoryview(buffer))
        assert buffer == CONTENTS[5:1005]
        web.lie = lie
        for _ in range(4):
            assert not reader.read(5000, memoryview(buffer))
        assert not reader.hopeless
        web.lie = ""
        assert reader.read(5000, memoryview(buffer))
        assert buffer == CONTENTS[5000:6000]


class _Body:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.taken = 0

    async def read(self, most: int) -> bytes:
        part = self._data[self.taken :][:most]
        self.taken += len(part)
        return part

    def close(self) -> None:
        pass


class _Answering:
    """As much of s3fs as answers one request."""

    def __init__(self, **answer: object) -> None:
        self._answer = answer

    def split_path(self, path: str) -> tuple[str, str, None]:
        return ("bucket", "x", None)

    async def _call_s3(self, *_: object, **__: object) -> dict[str, object]:
        return self._answer


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ContentRange": "bytes 6-15/100"}, "asked for bytes 5 to 14"),
        ({"ContentRange": "bytes 5-13/100"}, "asked for bytes 5 to 14"),
        ({"ContentRange": None}, "asked for bytes 5 to 14"),
        ({"ContentRange": "bytes 5-14/101"}, "has changed"),
        ({"ETag": "another"}, r"has changed .*validate='size'"),
    ],
)
def test_s3fs_gets_another_answer(change, says):
    import asyncio

    answer = {"ContentRange": "bytes 5-14/100", "ETag": "e", "Body": _Body(CONTENTS)}
    known = Resource(100, "e")
    request = s3.fetch(_Answering(**answer), "bucket/x", 5, 10, known, "etag")
    assert len(asyncio.run(request)) == 11  # one more than asked for: whoever asked sees that
    request = s3.fetch(_Answering(**{**answer, **change}), "bucket/x", 5, 10, known, "etag")
    with pytest.raises(OSError, match=says):
        asyncio.run(request)
