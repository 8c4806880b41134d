"""Every public call, made many times, successfully and not: nothing grows."""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import pagemove
from pagemove import PAGE_SIZE, Memory, lowlevel
from support import child

from . import leak_calls_paging  # noqa: F401 (registers calls)
from .leak_calls import CALLS, calls, fails
from .leaks import growth

pytestmark = pytest.mark.needs("move")

_PAGES = 8
_BLOCK = 65536
_RDWR = 3
_PRIVATE = 0x22
_NORESERVE = 0x4000
_POPULATE = 0x8000


@calls("RemapError", "SourceHole", "DestinationMapped", "PageShared", "UnsupportedError")
def _exceptions() -> Iterator[Callable[[], object]]:
    kinds = [pagemove.RemapError, pagemove.SourceHole, pagemove.DestinationMapped]
    kinds += [pagemove.PageShared, pagemove.UnsupportedError]

    def function() -> None:
        for kind in kinds:
            error = kind(1, "text", moved=4096, index=1, address=2)
            assert pickle.loads(pickle.dumps(error)).moved == 4096

    yield function


@calls("KernelFeatures", "features")
def _features() -> Iterator[Callable[[], object]]:
    def function() -> None:
        found = dataclasses.replace(pagemove.features(refresh=True))
        found.require("remap_anon_pages")
        fails(found.require, "no such thing")

    yield function


@calls("PageState")
def _page_state() -> Iterator[Callable[[], object]]:
    yield lambda: [str(pagemove.PageState(word)) for word in range(128)]


@calls("Vma", "vmas")
def _vmas() -> Iterator[Callable[[], object]]:
    yield lambda: [dataclasses.replace(vma).anonymous for vma in pagemove.vmas()]


@calls("Memory")
def _memory() -> Iterator[Callable[[], object]]:
    def function() -> None:
        for huge_pages in (False, True):
            with Memory(PAGE_SIZE + 1, huge_pages=huge_pages, name="leak") as memory:
                view = memoryview(memory)
                view[0] = 1
                fails(memory.close)
                view.release()
                memory.asarray(np.uint8)[-1] = 2
                memory.discard(0, PAGE_SIZE)
                memory.page_states()
                repr(memory)
                fails(memory.asarray, "O")
                fails(memory.asarray, "u1", 2**62)
                fails(memory.discard, 1)
            memory.close()
        fails(Memory, 0)
        fails(Memory, 1, name="[")
        with pytest.raises(MemoryError):
            Memory(2**62)

    yield function


@calls("empty")
def _empty() -> Iterator[Callable[[], object]]:
    def function() -> None:
        array = pagemove.empty((3, 1000))
        array[:] = 1
        array[1:].reshape(-1)[::2].sum()
        pagemove.empty(0)
        fails(pagemove.empty, -1)
        fails(pagemove.empty, 1, "O")

    yield function


@contextlib.contextmanager
def _two() -> Iterator[tuple[Memory, Memory]]:
    with Memory(_PAGES * PAGE_SIZE) as one, Memory(_PAGES * PAGE_SIZE) as other:
        yield one, other


@calls("remap_anon_pages")
def _remap_anon_pages() -> Iterator[Callable[[], object]]:
    remap = pagemove.remap_anon_pages

    def function() -> None:
        with _two() as (a, b):
            memoryview(a)[0] = 1
            assert remap(b.address, a.address, PAGE_SIZE) == PAGE_SIZE
            assert remap(a, b, PAGE_SIZE, flags=0) == PAGE_SIZE
            assert remap(b, a.address, a.nbytes, pagemove.RAP_ALLOW_SRC_HOLES) == a.nbytes
            fails(remap, b, a, PAGE_SIZE)
            memoryview(a)[0] = 1
            fails(remap, b, a, PAGE_SIZE)
            fails(remap, b.address + 1, a.address, PAGE_SIZE)
            fails(remap, 0, a.address, PAGE_SIZE)
            fails(remap, b, bytes(PAGE_SIZE), PAGE_SIZE)
            fails(remap, b, object(), PAGE_SIZE)
            fails(remap, b, a, 2**70)
            fails(remap, b, a, PAGE_SIZE, 2)

    yield function


@calls("move")
def _move() -> Iterator[Callable[[], object]]:
    def function() -> None:
        with _two() as (a, b):
            memoryview(a)[:] = b"x" * a.nbytes
            assert pagemove.move(b, a) == a.nbytes
            assert pagemove.move(a, b, holes=True) == a.nbytes
            fails(pagemove.move, a, b)
            fails(pagemove.move, a, memoryview(b)[:1])
            fails(pagemove.move, a, b"x" * a.nbytes)
            fails(pagemove.move, a.address, b)

    yield function


@calls("move_many")
def _move_many() -> Iterator[Callable[[], object]]:
    shuffled = np.random.default_rng(1).permutation(_PAGES)

    def function() -> None:
        with _two() as (a, b):
            memoryview(a)[:] = b"x" * a.nbytes
            assert pagemove.move_many(b, a, shuffled, np.arange(_PAGES)) == a.nbytes
            assert pagemove.move_many(a, b, list(range(_PAGES)), shuffled.astype("i2"))
            fails(pagemove.move_many, b, a, [0, 1, 1], [0, 1, 2])
            fails(pagemove.move_many, b, a, [_PAGES], [0])
            fails(pagemove.move_many, b, a, [0], [0, 1])
            fails(pagemove.move_many, b, a, [0.0], [0])
            fails(pagemove.move_many, b, a, [0], [0], page_size=1)

    yield function


@contextlib.contextmanager
def _reserved(nbytes: int) -> Iterator[int]:
    address = lowlevel.mmap(0, nbytes, 0, _PRIVATE | _NORESERVE)
    try:
        yield address
    finally:
        lowlevel.munmap(address, nbytes)


@calls("mremap")
def _mremap() -> Iterator[Callable[[], object]]:
    def function() -> None:
        with _reserved(4 * PAGE_SIZE) as dst, _two() as (a, b):
            src = lowlevel.mmap(0, 2 * PAGE_SIZE, _RDWR, _PRIVATE)
            fails(pagemove.mremap, dst, src, PAGE_SIZE, no_replace=True)
            assert pagemove.mremap(dst, src, 2 * PAGE_SIZE) == "mapping"
            memoryview(a)[0] = 1
            assert pagemove.mremap(b, a, PAGE_SIZE, detect=True) == "pages"
            assert pagemove.mremap(a, b, PAGE_SIZE, keep_source=True) == "mapping"
            fails(pagemove.mremap, b, a, PAGE_SIZE)
            fails(pagemove.mremap, dst, 1, PAGE_SIZE)

    yield function


@calls("page_states")
def _page_states() -> Iterator[Callable[[], object]]:
    def function() -> None:
        with _two() as (a, _):
            memoryview(a)[0] = 1
            assert pagemove.page_states(a)[0]
            pagemove.page_states(b"")
            fails(pagemove.page_states, object())
            fails(pagemove.page_states, np.zeros((4, 4))[:, 1])

    yield function


@calls("unshare")
def _unshare() -> Iterator[Callable[[], object]]:
    def function() -> None:
        with _two() as (a, _):
            memoryview(a)[0] = 1
            pagemove.unshare(a)
            pagemove.unshare(a, copy=True)
            fails(pagemove.unshare, b"read-only")
            fails(pagemove.unshare, object())

    yield function


def _grown(name: str) -> dict[str, int]:
    with CALLS[name]() as function:
        return growth(function)


# Names that share a function are tried by the first of them.
@pytest.mark.parametrize("name", {makes: name for name, makes in reversed(CALLS.items())}.values())
def test_nothing_grows(name: str) -> None:
    assert child(_grown, name, deadline=240) == {}


#: Those of classes that nobody makes, and of what is once for the process.
_NO_CALLS = {"KernelFaultsWarning", "PagedArray", "save_on_sigterm"}


def test_every_public_call_is_tested() -> None:
    public = {name for name in pagemove.__all__ if callable(getattr(pagemove, name))} - _NO_CALLS
    assert set(CALLS) == public


# Each leaks far more than the limit of `growth`, and nothing that could come out of what the heap
# has to spare, or be one mapping with its neighbour.


def _leak_resident() -> int:
    return lowlevel.mmap(0, 16 * PAGE_SIZE, _RDWR, _PRIVATE | _POPULATE)


def _leak_mappings() -> int:
    address = lowlevel.mmap(0, 3 * PAGE_SIZE, 0, _PRIVATE)
    lowlevel.mprotect(address + PAGE_SIZE, PAGE_SIZE, _RDWR)
    return address


def _leaky() -> dict[str, dict[str, int]]:
    kept: list[object] = []
    leaks: dict[str, Callable[[], object]] = {
        "resident pages": _leak_resident,
        "objects": lambda: [object() for _ in range(16)],
        "descriptors": lambda: lowlevel.userfaultfd(lowlevel.UFFD_USER_MODE_ONLY),
        "mappings": _leak_mappings,
        "bytes of malloc": lambda: bytes(16 * PAGE_SIZE),
    }

    def grown(leak: Callable[[], object]) -> dict[str, int]:
        return growth(lambda: kept.append(leak()))

    return {kind: grown(leak) for kind, leak in leaks.items()}


def test_a_leak_of_each_kind_is_seen() -> None:
    for kind, grown in child(_leaky, deadline=240).items():
        assert kind in grown
