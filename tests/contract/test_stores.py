"""What every store promises, one suite for all of them: `support/store_kinds.py` lists them.

Stores that need a server have a real one.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pagemove import PagedMemory, StoreError
from pagemove.stores import Store
from support.store_kinds import CONTENTS, Make, N, Servers, params


@pytest.fixture
def no_leak() -> Iterator[None]:
    """Fail a test after which descriptors are left; those of connections may take a moment.

    Their other ends may be in this process, and libraries close them when they come to it: also
    those of an earlier test, so that there may be fewer than before.
    """
    before = _descriptors()
    yield
    limit = time.monotonic() + 5
    while _descriptors() - before and time.monotonic() < limit:
        gc.collect()
        time.sleep(0.01)
    assert not _descriptors() - before


def _descriptors() -> Counter[str]:
    """Count open descriptors by what they are, sockets without their names."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[os.readlink(f"/proc/self/fd/{name}").partition(":")[0]] += 1
    return found


@pytest.fixture(scope="module", autouse=True)
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with contextlib.suppress(ImportError):
        from fsspec.asyn import get_loop

        get_loop()  # which has descriptors of its own, and stays
    with contextlib.suppress(ImportError):
        from obstore.store import MemoryStore

        MemoryStore().put("x", b"")  # likewise
    with contextlib.ExitStack() as stack:
        yield Servers(tmp_path_factory.mktemp("servers"), stack)


@pytest.fixture(params=params())
def make(request: pytest.FixtureRequest, tmp_path: Path, servers: Servers) -> Make:
    """Make a store of any kind, writable or not."""
    made: Make = request.param.maker(tmp_path, servers)
    return functools.partial(made, writable=request.param.modes[0])


@pytest.fixture(params=params(False))
def make_to_read(request: pytest.FixtureRequest, tmp_path: Path, servers: Servers) -> Make:
    made: Make = request.param.maker(tmp_path, servers)
    return made


@pytest.fixture(params=params(True))
def make_to_write(request: pytest.FixtureRequest, tmp_path: Path, servers: Servers) -> Make:
    made: Make = request.param.maker(tmp_path, servers)
    return functools.partial(made, writable=True)


@pytest.fixture(params=params(True, reopens=True))
def make_to_keep(request: pytest.FixtureRequest, tmp_path: Path, servers: Servers) -> Make:
    made: Make = request.param.maker(tmp_path, servers)
    return functools.partial(made, writable=True)


def read(store: Store, offset: int = 0, length: int | None = None) -> bytes:
    buffer = bytearray(store.nbytes - offset if length is None else length)
    store.read_into(offset, buffer)
    return bytes(buffer)


class TestReading:
    @pytest.mark.parametrize(
        ("offset", "length"), [(0, N), (0, 1), (N - 1, 1), (4095, 4098), (17, 0), (N, 0)]
    )
    def test_fills_the_buffer_whole(self, make, offset, length):
        with make() as store:
            assert store.nbytes == N
            assert read(store, offset, length) == CONTENTS[offset : offset + length]

    @pytest.mark.parametrize("dtype", ["u1", "<u4", ">f8", "S10"])
    def test_any_contiguous_buffer(self, make, dtype):
        with make() as store:
            array = np.zeros(100, dtype)
            store.read_into(3, array)
            assert array.tobytes() == CONTENTS[3 : 3 + array.nbytes]

    def test_nothing_beside_the_buffer(self, make):
        with make() as store:
            around = bytearray(b"x" * 30)
            store.read_into(5, memoryview(around)[10:20])
            assert around == b"x" * 10 + CONTENTS[5:15] + b"x" * 10

    @pytest.mark.parametrize(("offset", "length"), [(0, N + 1), (N, 1), (N + 1, 0), (-1, 1)])
    def test_beyond_the_end_raises(self, make, offset, length):
        with make() as store, pytest.raises((ValueError, OSError)):
            store.read_into(offset, bytearray(length))

    def test_is_read_only_unless_asked(self, make_to_read):
        with make_to_read() as store:
            assert not store.writable
            with pytest.raises(StoreError) as caught:
                store.write(0, b"x")
            assert (caught.value.operation, caught.value.offset) == ("write", 0)
            store.flush()
            assert read(store) == CONTENTS


class TestWriting:
    @pytest.mark.parametrize(
        ("offset", "data"), [(0, b"a"), (N - 3, b"abc"), (4000, b"y" * 5000), (9, b""), (N, b"")]
    )
    def test_changes_these_bytes_only(self, make_to_write, offset, data):
        with make_to_write() as store:
            assert store.writable
            store.write(offset, data)
            store.flush()
            assert read(store) == CONTENTS[:offset] + data + CONTENTS[offset + len(data) :]
            assert store.nbytes == N

    def test_any_contiguous_buffer(self, make_to_write):
        with make_to_write() as store:
            words = np.arange(50, dtype=">u2")
            store.write(1, words)
            store.write(200, memoryview(words).toreadonly())
            assert read(store, 1, 100) == read(store, 200, 100) == words.tobytes()

    @pytest.mark.parametrize(("offset", "length"), [(0, N + 1), (N, 1), (N + 1, 0), (-1, 1)])
    def test_beyond_the_end_raises_and_changes_nothing(self, make_to_write, offset, length):
        with make_to_write() as store:
            with pytest.raises((ValueError, OSError)):
                store.write(offset, bytes(length))
            assert read(store) == CONTENTS

    def test_the_same_bytes_again_and_again(self, make_to_write):
        with make_to_write() as store:
            for number in range(20):
                store.write(7, number.to_bytes(4, "little"))
                assert read(store, 7, 4) == number.to_bytes(4, "little")
                store.flush()


class TestEnds:
    def test_close_twice(self, make):
        store = make()
        store.close()
        store.close()

    def test_with_block_closes_whatever_happens(self, make):
        with pytest.raises(ZeroDivisionError), make() as store:
            1 // 0  # noqa: B018
        store.close()

    def test_is_a_store(self, make):
        with make() as store:
            assert isinstance(store, Store)

    def test_pickles(self, make):
        with make() as store:
            with pickle.loads(pickle.dumps(store)) as other:
                assert type(other) is type(store)
                assert (other.nbytes, other.writable) == (N, store.writable)
                for name in ("concurrency", "restartable", "flush_retryable"):
                    assert getattr(other, name) == getattr(store, name)
                assert read(other, 100, 200) == CONTENTS[100:300]
            assert read(store, 0, 10) == CONTENTS[:10]

    def test_statistics_are_numbers(self, make):
        with make() as store:
            assert all(isinstance(value, int | float) for value in store.stats().values())


class TestTogether:
    def test_readers_at_the_same_time(self, make):
        """Each gets its own bytes, also where a store has one connection or one open file."""
        wrong: list[tuple[int, int]] = []
        with make() as store:

            def look(seed: int) -> None:
                numbers = np.random.default_rng(seed)
                for _ in range(15):
                    offset = int(numbers.integers(N))
                    length = int(numbers.integers(1, N - offset + 1))
                    if read(store, offset, length) != CONTENTS[offset : offset + length]:
                        wrong.append((offset, length))

            _at_once([functools.partial(look, seed) for seed in range(store.concurrency // 2)])
        assert not wrong

    def test_writers_of_parts_that_do_not_overlap(self, make_to_write):
        """Nothing is lost, also where two parts are in one block of the store's own."""
        with make_to_write() as store:

            def write(number: int) -> None:
                for offset in range(number * 50, N - 50, 400):
                    store.write(offset, bytes([number]) * 50)

            _at_once([functools.partial(write, number) for number in range(8)])
            end = len(range(0, N - 50, 50)) * 50
            expected = b"".join(bytes([n % 8]) * 50 for n in range(end // 50))
            assert read(store) == expected + CONTENTS[end:]

    def test_what_was_flushed_is_there_when_it_is_opened_anew(self, make_to_keep):
        with make_to_keep() as store:
            # First: then it must not matter that it may be handed over by this.
            pickled = pickle.dumps(store)
        with pickle.loads(pickled) as store:
            store.write(1234, b"kept" * 1000)
            store.flush()
        with pickle.loads(pickled) as store:
            assert read(store) == CONTENTS[:1234] + b"kept" * 1000 + CONTENTS[5234:]


def _at_once(calls: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.needs("move")
class TestPaged:
    def test_reading(self, make):
        with make() as store, PagedMemory(store, block_size=4096, store_timeout=20) as region:
            assert bytes(memoryview(region)) == CONTENTS

    def test_writing(self, make_to_keep):
        with make_to_keep() as store:
            with PagedMemory(store, mode="r+", block_size=4096, store_timeout=20) as region:
                view = memoryview(region)
                view[5000:5004] = b"page"
                region.flush()
                region.evict()
                assert bytes(view) == CONTENTS[:5000] + b"page" + CONTENTS[5004:]
                view.release()
            assert read(store, 4998, 8) == CONTENTS[4998:5000] + b"page" + CONTENTS[5004:5006]
