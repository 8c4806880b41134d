"""Stores under a region: servers that come and go, helpers that die, what is refused at once."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pagemove import PagedMemory, StoreError, open_array, region_of
from pagemove.stores import CallableStore, CompressedStore, FsspecStore, RedisStore
from support import wait_for
from support.helpers import helpers, kill_helper
from support.servers import Redis, Web, free_ports

pytestmark = pytest.mark.needs("move")

Words = npt.NDArray[np.uint64]

K = 1024
N = 512 * K
CONTENTS = np.random.default_rng(1).bytes(N)


@pytest.fixture(autouse=True)
def _helpers_end() -> Iterator[None]:
    yield
    wait_for(lambda: not helpers())


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with Redis(tmp_path / "redis", free_ports(1)[0], *options) as server:
        yield server


def stored(server: Redis, **options: object) -> RedisStore:
    store = RedisStore(server.url, "array", nbytes=N, create=True, block_size=16 * K, **options)
    store.write(0, CONTENTS)
    return store


@pytest.mark.needs("redis")
class TestRedis:
    def test_a_server_that_is_away_for_a_while_is_not_noticed(self, redis):
        """It goes and comes back in the middle of reading and writing: nothing is lost."""
        with stored(redis, timeout=1) as store:
            region = PagedMemory(
                store, mode="r+", resident_limit=128 * K, block_size=16 * K, store_timeout=60
            )
            words = region.asarray(np.uint64)
            expected = np.frombuffer(CONTENTS, np.uint64).copy()
            done = threading.Event()

            def change(words: Words) -> None:
                for turn in range(4):
                    for first in range(0, len(words), 2048):
                        words[first : first + 2048] += turn
                    region.flush()
                done.set()

            thread = threading.Thread(target=change, args=(words,))
            thread.start()
            for _ in range(3):
                time.sleep(0.1)  # so that there is something to interrupt
                redis.kill()
                time.sleep(0.2)
                redis.start()
            thread.join()
            assert done.is_set()
            assert np.array_equal(words, expected + np.uint64(6))
            assert region.stats().errors == 0
            del words
            region.close()
            buffer = bytearray(N)
            store.read_into(0, buffer)
            assert np.array_equal(np.frombuffer(buffer, np.uint64), expected + np.uint64(6))

    def test_one_that_stays_away_is_an_error_in_time(self, redis):
        stored(redis).close()
        store = RedisStore(redis.url, "array", timeout=0.3)
        with store, PagedMemory(store, block_size=16 * K, store_timeout=1) as region:
            region.prefetch(0, 16 * K, wait=True)
            redis.kill()
            before = time.monotonic()
            with pytest.raises(StoreError, match="RedisStore"):
                region.prefetch(64 * K, 16 * K, wait=True)
            assert time.monotonic() - before < 20
            redis.start()
            region.evict()
            region.prefetch(64 * K, 16 * K, wait=True)
            assert bytes(memoryview(region)[64 * K : 80 * K]) == CONTENTS[64 * K : 80 * K]

    def test_a_second_writing_region_is_refused_when_it_is_made(self, redis):
        with stored(redis) as store, PagedMemory(store, mode="r+", block_size=16 * K) as region:
            view = memoryview(region)
            view[0:5] = b"first"
            with pytest.raises(StoreError, match="another store writes it"):
                PagedMemory(store, mode="r+", block_size=16 * K)
            with pytest.raises(StoreError, match="another store writes it"):
                RedisStore(redis.url, "array", writable=True)
            region.flush()
            assert bytes(view[:5]) == b"first"
            view.release()

    def test_a_killed_helper_is_followed_by_one_that_writes_on(self, redis):
        with stored(redis) as store:
            with PagedMemory(store, mode="r+", block_size=16 * K, store_timeout=30) as region:
                view = memoryview(region)
                view[: 16 * K] = b"a" * 16 * K
                region.flush()
                kill_helper()
                view[16 * K : 32 * K] = b"b" * 16 * K
                region.flush()
                region.evict()
                assert bytes(view[: 32 * K]) == b"a" * 16 * K + b"b" * 16 * K
                view.release()
            assert store.writable

    def test_one_process_writes_and_two_read(self, redis):
        """Through regions: a reader's block is all of one value, and the last is seen by both."""
        with RedisStore(
            redis.url, "shared", nbytes=64 * K, create=True, block_size=16 * K
        ) as store:
            store.write(0, b"\1" * 64 * K)
            program = textwrap.dedent(
                f"""
                import numpy as np
                from pagemove import PagedMemory
                from pagemove.stores import RedisStore
                with RedisStore({redis.url!r}, "shared") as store:
                    region = PagedMemory(store, block_size=16 * 1024, store_timeout=30)
                    array = region.asarray(np.uint8, (4, 16 * 1024))
                    print("ready", flush=True)
                    seen = set()
                    while not seen >= {{200}}:
                        region.evict()
                        for block in array:
                            values = set(block.tolist())
                            assert len(values) == 1, values
                            seen |= values
                    del array, block
                    region.close()
                """
            )
            readers = [
                subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
                for _ in range(2)
            ]
            try:
                for reader in readers:
                    assert reader.stdout.readline() == b"ready\n"
                with PagedMemory(store, mode="r+", block_size=16 * K) as region:
                    array = region.asarray(np.uint8, (4, 16 * K))
                    for number in range(2, 201):
                        array[number % 4] = number
                        region.flush()
                    del array
                for reader in readers:
                    reader.communicate(timeout=60)
                    assert reader.returncode == 0
            finally:
                for reader in readers:
                    reader.kill()
                    reader.communicate()


@pytest.mark.needs("zstandard")
class TestCompressed:
    def test_what_a_dead_helper_held_is_an_error_and_not_zeros(self):
        store = CompressedStore(N, block_size=16 * K)
        region = PagedMemory(
            store, mode="r+", resident_limit=128 * K, block_size=16 * K, store_timeout=1
        )
        view = memoryview(region)
        view[:] = CONTENTS
        region.evict()
        assert bytes(view[: 16 * K]) == CONTENTS[: 16 * K]
        kill_helper()
        with pytest.raises(StoreError):
            region.prefetch(64 * K, 16 * K, wait=True)
        # What is in memory is still there.
        assert bytes(view[: 16 * K]) == CONTENTS[: 16 * K]
        view.release()
        try:
            region.close()
        except StoreError:
            region._forgettable = True

    def test_in_a_file_a_dead_helper_is_not_noticed(self, tmp_path):
        with CompressedStore(N, path=tmp_path / "blocks", block_size=16 * K) as store:
            with PagedMemory(
                store, mode="r+", resident_limit=128 * K, block_size=16 * K, store_timeout=30
            ) as region:
                view = memoryview(region)
                view[:] = CONTENTS
                region.evict()
                kill_helper()
                assert bytes(view) == CONTENTS
                view.release()
            buffer = bytearray(N)
            store.read_into(0, buffer)
            assert buffer == CONTENTS


def slow(offset: int, length: int) -> bytes:
    time.sleep(0.005)
    return bytes(length)


def test_threads_wait_for_a_slow_store_at_the_same_time():
    store = CallableStore(slow, 256 * 4 * K)
    with PagedMemory(store, block_size=4 * K, prefetch="off") as region:
        array = region.asarray(np.uint8, (256, 4 * K))
        array[0, 0]  # once the helper has come up
        before = time.monotonic()

        def touch(first: int) -> None:
            # Without the GIL, or one thread would wait for all: numpy gives it up in a large sum.
            for block in range(first, 256, 16):
                region.prefetch(block * 4 * K, 4 * K, wait=True)

        threads = [threading.Thread(target=touch, args=(first,)) for first in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.monotonic() - before
        del array
    # One after another it would be 1.28 s.
    assert took < 0.64


@pytest.mark.needs("fsspec")
def test_an_array_over_http(tmp_path: Path):
    with Web(tmp_path, free_ports(1)[0]) as server:
        np.save(server.root / "x.npy", np.arange(100_000.0).reshape(1000, 100))
        array = open_array(
            f"{server.url}/x.npy", resident_limit="256KiB", block_size="64KiB", store_timeout=20
        )
        assert isinstance(region_of(array).store, FsspecStore)
        assert array.sum() == 99_999 * 50_000
        assert array[999, 99] == 99_999
        del array
