"""What every store promises, one suite for all of them: add a maker to `MAKERS` for a new one."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pagemove import StoreError
from pagemove.stores import FileStore, Store
from pagemove.stores.faulty import Fault, FaultyFileStore
from support.stores import BytesStore

CONTENTS = np.random.default_rng(3).bytes(10_007)
N = len(CONTENTS)

Make = Callable[..., Store]


def _file(folder: Path, kind: type[FileStore], **options: object) -> Make:
    def make(contents: bytes = CONTENTS, *, writable: bool = False) -> Store:
        path = folder / "store"
        path.write_bytes(contents)
        return kind(path, writable=writable, **options)

    return make


#: By name: takes a folder, gives a function of contents and `writable`.
MAKERS: dict[str, Callable[[Path], Make]] = {
    "FileStore": lambda folder: _file(folder, FileStore),
    "FaultyFileStore": lambda folder: _file(folder, FaultyFileStore),
    "FaultyFileStore, delayed": lambda folder: _file(
        folder, FaultyFileStore, faults=[Fault("read", count=0, delay=1e-6)]
    ),
    "a store of twenty lines": lambda folder: functools.partial(BytesStore, CONTENTS),
}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    return MAKERS[request.param](tmp_path)


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

    def test_is_read_only_unless_asked(self, make):
        with make() as store:
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
    def test_changes_these_bytes_only(self, make, offset, data):
        with make(writable=True) as store:
            assert store.writable
            store.write(offset, data)
            store.flush()
            assert read(store) == CONTENTS[:offset] + data + CONTENTS[offset + len(data) :]
            assert store.nbytes == N

    def test_any_contiguous_buffer(self, make):
        with make(writable=True) as store:
            words = np.arange(50, dtype=">u2")
            store.write(1, words)
            store.write(200, memoryview(words).toreadonly())
            assert read(store, 1, 100) == read(store, 200, 100) == words.tobytes()

    @pytest.mark.parametrize(("offset", "length"), [(0, N + 1), (N, 1), (N + 1, 0), (-1, 1)])
    def test_beyond_the_end_raises_and_changes_nothing(self, make, offset, length):
        with make(writable=True) as store:
            with pytest.raises((ValueError, OSError)):
                store.write(offset, bytes(length))
            assert read(store) == CONTENTS

    def test_the_same_bytes_again_and_again(self, make):
        with make(writable=True) as store:
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

    @pytest.mark.parametrize("writable", [False, True])
    def test_pickles(self, make, writable):
        with make(writable=writable) as store:
            with pickle.loads(pickle.dumps(store)) as other:
                assert type(other) is type(store)
                assert (other.nbytes, other.writable) == (N, writable)
                assert read(other, 100, 200) == CONTENTS[100:300]
            assert read(store, 0, 10) == CONTENTS[:10]
