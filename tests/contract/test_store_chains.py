"""Chains of fsspec's wrappers: threads read the right bytes, and the origin is asked once."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pagemove import PagedMemory, StoreError
from pagemove.stores import FsspecStore, Store
from support.chains import CHAINS
from support.descriptors import no_leak  # noqa: F401 (a fixture)
from support.servers import WebServer
from support.store_kinds import Servers, chained, load_libraries

pytestmark = [
    pytest.mark.needs("fsspec"),
    # fsspec's cache of blocks leaves closing its file to the collector.
    pytest.mark.filterwarnings("ignore:unclosed file <_io.BufferedRandom:ResourceWarning"),
]

CONTENTS = np.random.default_rng(4).bytes(300_007)
N = len(CONTENTS)


@pytest.fixture(scope="module", autouse=True)
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    load_libraries()
    with contextlib.ExitStack() as stack:
        yield Servers(tmp_path_factory.mktemp("servers"), stack)


def read(store: Store, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    store.read_into(offset, buffer)
    return bytes(buffer)


def read_by_threads(store: Store) -> list[tuple[int, int]]:
    """Read everything, by several threads at once; return what was wrong."""
    wrong: list[tuple[int, int]] = []
    barrier = threading.Barrier(6)

    def look(seed: int) -> None:
        numbers = np.random.default_rng(seed)
        barrier.wait()
        for start in numbers.permutation(range(0, N, 20_000)):
            offset, length = int(start), min(20_000, N - int(start))
            try:
                right = read(store, offset, length) == CONTENTS[offset : offset + length]
            except StoreError:
                right = False
            if not right:
                wrong.append((offset, length))

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


@pytest.mark.parametrize(
    "origin", ["file", "http", pytest.param("s3", marks=pytest.mark.needs("s3"))]
)
@pytest.mark.parametrize("name", CHAINS)
def test_every_chain(servers, tmp_path, name, origin):
    with chained(origin, CHAINS[name], tmp_path, servers)(CONTENTS) as store:
        assert store.nbytes == N
        assert not read_by_threads(store)
        with pickle.loads(pickle.dumps(store)) as copy:
            assert read(copy, 123, 456) == CONTENTS[123:579]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    with WebServer(tmp_path).running() as server:
        yield server


def placed(web: WebServer, name: str, data: bytes) -> str:
    (web.folder / name).write_bytes(data)
    return f"{web.url}/{name}"


@pytest.mark.parametrize("name", ["filecache", "simplecache", "blockcache", "zip in a filecache"])
def test_a_cache_fetches_every_byte_once(web, tmp_path, name):
    url = CHAINS[name](functools.partial(placed, web), tmp_path, CONTENTS)
    with FsspecStore(url, timeout=30) as store:
        for _ in range(3):
            assert not read_by_threads(store)
    assert N <= web.sent <= 1.1 * N


def test_a_cache_does_not_keep_what_has_not_arrived(web, tmp_path):
    """A block that could not be fetched is fetched again, and does not read as zeros."""
    url = "blockcache::" + placed(web, "file", CONTENTS)
    options = {"cache_storage": str(tmp_path / "cache"), "block_size": 50_000}
    for _ in range(2):
        with FsspecStore(url, timeout=30, **options) as store:
            web.faults[:] = [500]
            # What went wrong, and not that it cannot be put into a cache.
            with pytest.raises(StoreError, match="at byte 100000: 500, message="):
                read(store, 100_000, 1000)
            assert read(store, 100_000, 1000) == CONTENTS[100_000:101_000]
            (tmp_path / "cache").joinpath("cache").unlink(missing_ok=True)
            url = url.replace("/file", "/copy")
            placed(web, "copy", CONTENTS)


@pytest.mark.parametrize("name", ["filecache", "simplecache"])
def test_a_part_of_a_file_is_not_taken_for_the_whole(web, tmp_path, name):
    url = f"{name}::" + placed(web, "file", CONTENTS)
    options = {"cache_storage": str(tmp_path / "cache")}
    FsspecStore(url, timeout=30, **options).close()
    for copy in (tmp_path / "cache").iterdir():
        if copy.stat().st_size == N:
            copy.write_bytes(CONTENTS[: N // 2])
    with FsspecStore(url, timeout=30, **options) as store:
        assert store.nbytes == N
        assert not read_by_threads(store)


@pytest.mark.parametrize("name", ["zip", "tar", "dir", "filecache"])
def test_files_of_this_machine_are_served_without_a_helper(servers, tmp_path, name):
    with chained("file", CHAINS[name], tmp_path, servers)(CONTENTS) as store:
        descriptor, offset = store.in_file()
        assert os.pread(descriptor, 1000, offset + 500) == CONTENTS[500:1500]
        with PagedMemory(store, block_size=4096) as region:
            assert bytes(memoryview(region)) == CONTENTS


def test_a_range_of_an_archive_that_is_another_one(web, tmp_path):
    """Also where fsspec itself asks, for the index of an archive or the blocks of a cache."""
    broken = r"answers with bytes|not a zip file|'OSError'"
    for name in ("zip", "zip, deflated", "blockcache"):
        web.lie = ""
        url = CHAINS[name](functools.partial(placed, web), tmp_path, CONTENTS)
        web.lie = "shifted"
        with (
            pytest.raises((OSError, ValueError), match=broken),
            FsspecStore(url, timeout=0.5) as store,
        ):
            read(store, 1000, 1000)
