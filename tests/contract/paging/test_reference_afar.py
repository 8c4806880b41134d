"""References to arrays on servers: what was replaced there is an error, and never other data."""

from __future__ import annotations

import errno
import os
import pickle

import numpy as np
import pytest

from pagemove import StoreError, open_array, reference
from pagemove.stores import RedisStore
from support.children import newborn
from support.servers import Moto, Redis, WebServer, free_ports

pytestmark = pytest.mark.needs("paging")

NUMBERS = np.arange(40_000)
#: Of what is opened, and of what refers to it: servers and helpers are started for each test.
PATIENCE = 100.0


def is_stale(load):
    with pytest.raises(StoreError, match="has changed since the reference was made") as error:
        load()
    return error.value.errno == errno.ESTALE


@pytest.mark.needs("redis")
def test_an_array_in_redis(tmp_path):
    (port,) = free_ports(1)
    with Redis(tmp_path / "redis", port) as server:
        newborn(_in_redis, server.url)


def _written(url, key, numbers, **how):
    with RedisStore(url, key, **how) as store:
        store.write(0, numbers)
        store.flush()


def _in_redis(url):
    _written(url, "table", NUMBERS, nbytes=NUMBERS.nbytes, create=True)
    options = {"dtype": NUMBERS.dtype, "resident_limit": "1MiB", "store_timeout": PATIENCE}
    array = open_array(f"{url}#table", **options)
    refers, sent = reference(array), pickle.dumps(array[::-2])
    assert len(sent) < 1024
    assert (pickle.loads(sent) == NUMBERS[::-2]).all()

    # Another of the same name and length, which has had one writer too.
    with RedisStore(url, "table", writable=True) as store:
        store.remove()
    with pytest.raises(FileNotFoundError, match="no such array"):
        pickle.loads(sent)
    _written(url, "table", NUMBERS + 1, nbytes=NUMBERS.nbytes, create=True)
    assert is_stale(lambda: pickle.loads(sent))
    assert is_stale(refers.open)
    del array

    # A writer that was there meanwhile, whether or not it has changed what is looked at.
    array = open_array(f"{url}#table", **options)
    sent = pickle.dumps(array)
    _written(url, "table", NUMBERS[:10], writable=True)
    assert is_stale(lambda: pickle.loads(sent))
    del array

    # A writer may go on after it was referred to: its helper counts as another writer.
    written = open_array(f"{url}#table", mode="r+", **options)
    refers = reference(written)
    written[5] = -5
    written.flush()
    assert refers.open(resident_limit="512KiB")[5] == -5
    with pytest.raises(StoreError, match="another store writes it") as error:
        refers.open(mode="r+")
    assert error.value.errno == errno.EBUSY
    del written, error
    changed = refers.open(mode="r+")
    changed[5] = 5
    changed.flush()
    assert refers.open()[5] == 5


@pytest.mark.needs("s3", "obstore")
def test_an_object_on_s3(tmp_path):
    (port,) = free_ports(1)
    with Moto(tmp_path, port) as server:
        newborn(_on_s3, server.url)


def _on_s3(url):
    import s3fs

    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    there = s3fs.S3FileSystem(endpoint_url=url)
    there.mkdir("bucket")
    there.pipe("bucket/numbers", NUMBERS.tobytes())
    array = open_array(
        "s3://bucket/numbers",
        dtype=NUMBERS.dtype,
        store_timeout=PATIENCE,
        storage_options={"endpoint_url": url},
    )
    sent = pickle.dumps(array[10:])
    assert len(sent) < 1024
    assert (pickle.loads(sent) == NUMBERS[10:]).all()
    there.pipe("bucket/numbers", (NUMBERS + 1).tobytes())
    assert is_stale(lambda: pickle.loads(sent))


@pytest.mark.needs("web", "fsspec")
def test_a_file_on_a_web_server(tmp_path):
    NUMBERS.tofile(tmp_path / "numbers")
    with WebServer(tmp_path).running() as server:
        server.version = '"first"'
        sent = newborn(_on_a_web_server, server.url)
        server.version = '"second"'
        newborn(_changed_on_a_web_server, sent)


def _on_a_web_server(url):
    sent = pickle.dumps(
        open_array(f"{url}/numbers", dtype=NUMBERS.dtype, store_timeout=PATIENCE)[10:]
    )
    assert (pickle.loads(sent) == NUMBERS[10:]).all()
    return sent


def _changed_on_a_web_server(sent):
    assert is_stale(lambda: pickle.loads(sent))
