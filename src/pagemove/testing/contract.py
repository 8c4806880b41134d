"""What every store promises, as tests: derive a class from `StoreContract` for pytest."""

from __future__ import annotations

import functools
import pickle
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from pagemove.errors import StoreError
from pagemove.paging.region import PagedMemory
from pagemove.probing import features
from pagemove.stores import Store

#: An odd length, so that the last block of a region is never full.
_N = 10_007
_CONTENTS = random.Random(3).randbytes(_N)
#: Time for a slow store to answer a region, in seconds.
_TIMEOUT = 20


class StoreContract:
    """The tests of what `pagemove.stores.Store` promises, for a store of your own.

    Derive a class whose name begins with ``Test`` and define `make_store`. Where the store needs
    fixtures of yours, request them in an autouse fixture of the class and keep them in ``self``.

    Attributes
    ----------
    writable : bool
        Whether the store can be written. False: the tests of writing are left out.
    read_only : bool
        Whether `make_store` can return one that refuses writing.
    reopens : bool
        Whether another store, made from the same pickle, finds what was written and flushed.
    folder : pathlib.Path
        An empty directory for each test.

    Examples
    --------
    In a file of tests:

    >>> from pagemove.stores import FileStore
    >>> from pagemove.testing import StoreContract
    >>> class TestMyStore(StoreContract):
    ...     def make_store(self, contents, *, writable):
    ...         path = self.folder / "store"
    ...         path.write_bytes(contents)
    ...         return FileStore(path, writable=writable)
    """

    writable: bool = True
    read_only: bool = True
    reopens: bool = True
    folder: Path

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        left_out = set()
        if not cls.writable:
            left_out |= {name for name in dir(cls) if name.startswith("test_write")}
        if not cls.read_only:
            left_out.add("test_read_only_unless_asked")
        if not (cls.writable and cls.reopens):
            left_out |= {"test_write_is_kept", "test_write_paged"}
        for name in left_out:
            setattr(cls, name, None)  # which pytest does not collect

    def make_store(self, contents: bytes, *, writable: bool) -> Store:
        """Make a new store.

        Parameters
        ----------
        contents : bytes
            What is in it: 10,007 bytes.
        writable : bool
            Whether it is to be written. False only where `read_only` is set, True only where
            `writable` is set.

        Returns
        -------
        Store
            Each test closes it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define make_store")

    @pytest.fixture(autouse=True)
    def _give_folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def _make(self) -> Store:
        return self.make_store(_CONTENTS, writable=not self.read_only)

    def _make_to_write(self) -> Store:
        return self.make_store(_CONTENTS, writable=True)

    @pytest.mark.parametrize(
        ("offset", "length"), [(0, _N), (0, 1), (_N - 1, 1), (4095, 4098), (17, 0), (_N, 0)]
    )
    def test_read_fills_the_buffer(self, offset: int, length: int) -> None:
        """`read_into` fills the whole buffer with the bytes from `offset` on."""
        with self._make() as store:
            assert store.nbytes == _N
            _check_same(_read(store, offset, length), _CONTENTS[offset : offset + length])

    @pytest.mark.parametrize("dtype", ["u1", "<u4", ">f8", "S10"])
    def test_read_into_any_contiguous_buffer(self, dtype: str) -> None:
        """The items of the buffer may be of any type."""
        with self._make() as store:
            array: Any = np.zeros(100, dtype)
            store.read_into(3, array)
            _check_same(array.tobytes(), _CONTENTS[3 : 3 + array.nbytes])

    def test_read_changes_nothing_beside_the_buffer(self) -> None:
        """Bytes before and after the buffer stay."""
        with self._make() as store:
            around = bytearray(b"x" * 30)
            store.read_into(5, memoryview(around)[10:20])
            assert around == b"x" * 10 + _CONTENTS[5:15] + b"x" * 10

    @pytest.mark.parametrize(("offset", "length"), [(0, _N + 1), (_N, 1), (_N + 1, 0), (-1, 1)])
    def test_read_beyond_the_end_raises(self, offset: int, length: int) -> None:
        """A range that is not in the store is an error, never a short read."""
        with self._make() as store, pytest.raises((ValueError, OSError)):
            store.read_into(offset, bytearray(length))

    def test_read_only_unless_asked(self) -> None:
        """A store that was not opened to be written refuses `write` and keeps its bytes."""
        with self.make_store(_CONTENTS, writable=False) as store:
            assert not store.writable
            with pytest.raises(StoreError) as caught:
                store.write(0, b"x")
            assert (caught.value.operation, caught.value.offset) == ("write", 0)
            store.flush()
            _check_same(_read(store), _CONTENTS)

    @pytest.mark.parametrize(
        ("offset", "data"),
        [(0, b"a"), (_N - 3, b"abc"), (4000, b"y" * 5000), (9, b""), (_N, b"")],
    )
    def test_write_changes_these_bytes_only(self, offset: int, data: bytes) -> None:
        """`write` stores all of the data, and nothing else changes."""
        with self._make_to_write() as store:
            assert store.writable
            store.write(offset, data)
            store.flush()
            _check_same(_read(store), _CONTENTS[:offset] + data + _CONTENTS[offset + len(data) :])
            assert store.nbytes == _N

    def test_write_any_contiguous_buffer(self) -> None:
        """The data may be items of any type, writable or not."""
        with self._make_to_write() as store:
            words: Any = np.arange(50, dtype=">u2")
            store.write(1, words)
            store.write(200, memoryview(words).toreadonly())
            assert _read(store, 1, 100) == _read(store, 200, 100) == words.tobytes()

    @pytest.mark.parametrize(("offset", "length"), [(0, _N + 1), (_N, 1), (_N + 1, 0), (-1, 1)])
    def test_write_beyond_the_end_raises_and_changes_nothing(
        self, offset: int, length: int
    ) -> None:
        """A range that is not in the store is refused whole."""
        with self._make_to_write() as store:
            with pytest.raises((ValueError, OSError)):
                store.write(offset, bytes(length))
            _check_same(_read(store), _CONTENTS)

    def test_write_the_same_bytes_again_and_again(self) -> None:
        """`read_into` returns what the last `write` stored, flushed or not."""
        with self._make_to_write() as store:
            for number in range(20):
                store.write(7, number.to_bytes(4, "little"))
                assert _read(store, 7, 4) == number.to_bytes(4, "little")
                store.flush()

    def test_write_parts_that_do_not_overlap_at_the_same_time(self) -> None:
        """Nothing is lost, also where two parts are in one block of the store's own."""
        with self._make_to_write() as store:

            def write(number: int) -> None:
                for offset in range(number * 50, _N - 50, 400):
                    store.write(offset, bytes([number]) * 50)

            _at_once([functools.partial(write, number) for number in range(8)], store)
            end = len(range(0, _N - 50, 50)) * 50
            expected = b"".join(bytes([n % 8]) * 50 for n in range(end // 50))
            _check_same(_read(store), expected + _CONTENTS[end:])

    def test_write_is_kept(self) -> None:
        """What was flushed is there when the store is made anew from its pickle."""
        with self._make_to_write() as store:
            # First: from then on it must not matter that another may be made from it.
            pickled = pickle.dumps(store)
        with pickle.loads(pickled) as store:
            store.write(1234, b"kept" * 1000)
            store.flush()
        with pickle.loads(pickled) as store:
            _check_same(_read(store), _CONTENTS[:1234] + b"kept" * 1000 + _CONTENTS[5234:])

    def test_close_twice(self) -> None:
        """The second `close` does nothing."""
        store = self._make()
        store.close()
        store.close()

    def test_with_block_closes_whatever_happens(self) -> None:
        """An exception goes through, and the store is closed."""
        with pytest.raises(ZeroDivisionError), self._make() as store:
            1 // 0  # noqa: B018
        store.close()

    def test_is_a_store(self) -> None:
        """It is a `pagemove.stores.Store`."""
        with self._make() as store:
            assert isinstance(store, Store)

    def test_pickles(self) -> None:
        """The pickle makes a store of the same kind with the same bytes."""
        with self._make() as store:
            with pickle.loads(pickle.dumps(store)) as other:
                assert type(other) is type(store)
                assert (other.nbytes, other.writable) == (_N, store.writable)
                for name in ("concurrency", "restartable", "flush_retryable"):
                    assert getattr(other, name) == getattr(store, name)
                _check_same(_read(other, 100, 200), _CONTENTS[100:300])
            assert _read(store, 0, 10) == _CONTENTS[:10]

    def test_statistics_are_numbers(self) -> None:
        """`stats` returns numbers by name."""
        with self._make() as store:
            assert all(isinstance(value, int | float) for value in store.stats().values())

    def test_readers_at_the_same_time(self) -> None:
        """Each gets its own bytes, also where a store has one connection or one open file."""
        wrong: list[tuple[int, int]] = []
        with self._make() as store:

            def look(seed: int) -> None:
                numbers = np.random.default_rng(seed)
                for _ in range(15):
                    offset = int(numbers.integers(_N))
                    length = int(numbers.integers(1, _N - offset + 1))
                    if _read(store, offset, length) != _CONTENTS[offset : offset + length]:
                        wrong.append((offset, length))

            _at_once([functools.partial(look, seed) for seed in range(8)], store)
        assert not wrong

    def test_paged(self) -> None:
        """A region over the store has its bytes."""
        with self._make() as store, _region(store, "r") as region:
            _check_same(bytes(memoryview(region)), _CONTENTS)

    def test_write_paged(self) -> None:
        """What is written into a region reaches the store."""
        with self._make_to_write() as store:
            with _region(store, "r+") as region:
                view = memoryview(region)
                view[5000:5004] = b"page"
                region.flush()
                region.evict()
                _check_same(bytes(view), _CONTENTS[:5000] + b"page" + _CONTENTS[5004:])
                view.release()
            assert _read(store, 4998, 8) == _CONTENTS[4998:5000] + b"page" + _CONTENTS[5004:5006]


def _region(store: Store, mode: Literal["r", "r+"]) -> PagedMemory:
    if not features().paging:
        pytest.skip("this kernel has no paged memory: see pagemove doctor")
    return PagedMemory(store, mode=mode, block_size=4096, store_timeout=_TIMEOUT)


def _check_same(found: bytes, expected: bytes) -> None:
    """Compare. pytest's own comparison of thousands of bytes takes minutes where CI is set."""
    if found == expected:
        return
    both = zip(found, expected, strict=False)
    at = next((i for i, (a, b) in enumerate(both) if a != b), min(len(found), len(expected)))
    raise AssertionError(
        f"{len(found)} bytes for {len(expected)}, which differ from byte {at} on: "
        f"{found[at : at + 16]!r} instead of {expected[at : at + 16]!r}"
    )


def _read(store: Store, offset: int = 0, length: int | None = None) -> bytes:
    buffer = bytearray(store.nbytes - offset if length is None else length)
    store.read_into(offset, buffer)
    return bytes(buffer)


def _at_once(calls: list[Callable[[], None]], store: Store) -> None:
    """Call from as many threads as the store allows; raise what the first of them raises."""
    failed: list[BaseException] = []

    def run(mine: list[Callable[[], None]]) -> None:
        try:
            for call in mine:
                call()
        except BaseException as error:
            failed.append(error)

    count = min(store.concurrency, len(calls))
    threads = [
        threading.Thread(target=run, args=(calls[number::count],)) for number in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
