"""stores/callable.py: what the functions are asked for, and what is made of their answers."""

from __future__ import annotations

import functools
import pickle

import pytest

from pagemove import StoreError
from pagemove.stores import CallableStore

ASKED: list[tuple[int, int]] = []


def count(offset: int, length: int, *, extra: int = 0) -> bytes:
    ASKED.append((offset, length))
    return bytes((offset + i) % 251 for i in range(length + extra))


def test_asks_for_exactly_the_range():
    store = CallableStore(count, 1000)
    ASKED.clear()
    buffer = bytearray(7)
    store.read_into(990, buffer)
    assert ASKED == [(990, 7)]
    assert bytes(buffer) == bytes(n % 251 for n in range(990, 997))


def test_an_empty_range_asks_for_nothing():
    ASKED.clear()
    CallableStore(count, 10).read_into(10, bytearray())
    assert ASKED == []


@pytest.mark.parametrize("extra", [-1, 1, -5])
def test_another_length_than_asked_for_names_both(extra):
    store = CallableStore(functools.partial(count, extra=extra), 1000)
    with pytest.raises(
        StoreError, match=rf"asked for 5 bytes, the function returned {5 + extra}\b"
    ):
        store.read_into(20, bytearray(5))


def test_what_the_function_raises_comes_through():
    def fail(offset, length):
        raise ZeroDivisionError(offset)

    with pytest.raises(ZeroDivisionError, match="3"):
        CallableStore(fail, 10).read_into(3, bytearray(1))


def test_any_bytes_like_answer():
    for kind in (bytes, bytearray, memoryview):
        buffer = bytearray(3)
        CallableStore(lambda offset, length, kind=kind: kind(b"abc"), 3).read_into(0, buffer)
        assert buffer == b"abc"


def test_writing():
    written = []
    store = CallableStore(count, 100, lambda offset, data: written.append((offset, bytes(data))))
    assert store.writable
    store.write(50, bytearray(b"abc"))
    store.write(50, b"")
    store.flush()
    assert written == [(50, b"abc")]


def test_pickles_with_its_functions():
    store = CallableStore(functools.partial(count, extra=0), 100, count, concurrency=3)
    other = pickle.loads(pickle.dumps(store))
    assert (other.nbytes, other.writable, other.concurrency) == (100, True, 3)
    buffer = bytearray(2)
    other.read_into(1, buffer)
    assert buffer == b"\1\2"


def test_refuses():
    with pytest.raises(TypeError, match="read must be a function, not int"):
        CallableStore(3, 10)
    with pytest.raises(TypeError, match="write must be a function, not str"):
        CallableStore(count, 10, "no")
    with pytest.raises(ValueError, match="nbytes must be positive, not 0"):
        CallableStore(count, 0)
    with pytest.raises(ValueError, match="concurrency must be at least 1"):
        CallableStore(count, 10, concurrency=0)
    with pytest.raises(BufferError):
        CallableStore(count, 10).read_into(0, b"read-only")
