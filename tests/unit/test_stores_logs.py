"""What libraries log of a store's URL and options is without secrets, in both processes."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pagemove import PagedMemory
from pagemove.stores import FsspecStore, logs
from pagemove.stores.urls import Secrets
from support.servers import WebServer

pytestmark = pytest.mark.needs("fsspec")

CONTENTS = np.random.default_rng(5).bytes(200_000)
SECRET = "Q7Zx-secret"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    (tmp_path / "file").write_bytes(CONTENTS)
    with zipfile.ZipFile(tmp_path / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("file", CONTENTS)
    with WebServer(tmp_path).running() as server:
        yield server


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """Everything that this process logs, at level DEBUG."""
    text = io.StringIO()
    handler, root = logging.StreamHandler(text), logging.getLogger()
    handler.setFormatter(logging.Formatter("%(process)d %(name)s %(message)s"))
    level, make = root.level, logging.getLogRecordFactory()
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield text
    root.removeHandler(handler)
    root.setLevel(level)
    logging.setLogRecordFactory(make)


@pytest.mark.parametrize("before", ["filecache::", "simplecache::", "zip://file::"])
def test_chains_over_http(web, logged, before):
    name = "archive.zip" if before.startswith("zip") else "file"
    host = web.url.removeprefix("http://")
    url = f"{before}http://me:{SECRET}@{host}/{name}?signature={SECRET}"
    store = FsspecStore(url, timeout=20, headers={"X-Api-Key": SECRET})
    with store, PagedMemory(store, block_size=4096, store_timeout=20) as region:
        region.prefetch(wait=True)  # the server is a thread that needs the GIL
        assert bytes(region.asarray(np.uint8)) == CONTENTS
    text = logged.getvalue()
    assert f"http://me:...@{host}/{name}?..." in text
    assert SECRET not in text


def test_records_of_the_helper_process(web, logged):
    url = f"zip://file::{web.url}/archive.zip?signature={SECRET}"
    store = FsspecStore(url, timeout=20)
    logged.truncate(0)
    with store, PagedMemory(store, store_timeout=20) as region:
        region.prefetch(wait=True)
    lines = [line for line in logged.getvalue().splitlines() if " fsspec.http " in line]
    assert any("archive.zip?..." in line for line in lines)
    assert SECRET not in logged.getvalue()


def record(name: str, text: str, *args: object) -> logging.LogRecord:
    return logging.getLogRecordFactory()(name, logging.DEBUG, "file.py", 1, text, args, None)


def test_options_that_are_not_in_urls(logged):
    secrets = Secrets("s3://bucket/x", {"token": SECRET})
    logs.hide_in_logs(secrets)
    assert record("botocore.auth", "token:%s", SECRET).getMessage() == "token:..."
    assert record("botocoretto", "token:%s", SECRET).getMessage() == f"token:{SECRET}"
    assert record("fsspec", "%d", SECRET).args == (SECRET,)


def test_exceptions(logged):
    secrets = Secrets("s3://bucket/x", {"token": SECRET})
    logs.hide_in_logs(secrets)
    try:
        raise ValueError(f"{SECRET} is refused")
    except ValueError:
        logging.getLogger("aiohttp.client").exception("failed")
    assert "ValueError: ... is refused" in logged.getvalue()
    assert SECRET not in logged.getvalue()


def test_a_factory_of_the_program_is_kept(logged):
    def made(*args, **options):
        made.count += 1
        return logging.LogRecord(*args, **options)

    made.count = 0
    logging.setLogRecordFactory(made)
    secrets = Secrets("s3://bucket/x", {"token": SECRET})
    logs.hide_in_logs(secrets)
    logs.hide_in_logs(secrets)
    assert record("s3fs", SECRET).getMessage() == "..."
    assert made.count == 1
