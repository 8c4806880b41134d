"""remap_anon_pages: its arguments, what it returns, and what a success leaves behind."""

from __future__ import annotations

import ctypes
import inspect
import mmap
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

import pagemove
from pagemove import (
    HUGE_PAGE_SIZE,
    PAGE_SIZE,
    RAP_ALLOW_SRC_HOLES,
    Memory,
    RemapError,
    SourceHole,
    lowlevel,
    remap_anon_pages,
)
from pagemove.introspect import count_vmas
from support import Area, at, hole, pattern, read, write, write_all

from .checks import address_of, check_moved, look, move_all, private_mmap, refuse

pytestmark = pytest.mark.needs("move")

# More than malloc ever takes from a heap: NumPy's memory is then a mapping of its own.
_LARGE = 256 << 20


def _aligned_slice(pages: int) -> np.ndarray:
    """Whole pages inside an array that NumPy has allocated itself."""
    backing = np.empty(_LARGE, np.uint8)
    start = -backing.ctypes.data % PAGE_SIZE + 16 * PAGE_SIZE
    # NumPy asks for huge pages. A kernel thread may put one together again from what was split.
    whole = backing.ctypes.data + start, _LARGE - 32 * PAGE_SIZE
    lowlevel.madvise(*whole, mmap.MADV_NOHUGEPAGE)
    return backing[start : start + pages * PAGE_SIZE]


def _ctypes_array(pages: int) -> Any:
    return (ctypes.c_ubyte * (pages * PAGE_SIZE)).from_buffer(private_mmap(pages))


#: Every kind of buffer: makes the argument for a number of pages.
BUFFERS: dict[str, Callable[[int], Any]] = {
    "Memory": lambda pages: Memory(pages * PAGE_SIZE),
    "empty": lambda pages: pagemove.empty(pages * PAGE_SIZE, np.uint8),
    "empty of float64 in two dimensions": lambda pages: pagemove.empty((pages, PAGE_SIZE // 8)),
    "NumPy's own memory, page aligned": _aligned_slice,
    "private mmap.mmap": private_mmap,
    "memoryview": lambda pages: memoryview(pagemove.empty(pages * PAGE_SIZE, np.uint8)),
    "array of mmap.mmap": lambda pages: np.frombuffer(private_mmap(pages), np.int32),
    "ctypes array": _ctypes_array,
}

#: Every kind of integer: makes the argument for an address.
INTEGERS: dict[str, Callable[[int], Any]] = {
    "int": int,
    "np.int64": np.int64,
    "np.uint64": np.uint64,
    "np.intp": np.intp,
    "np.longlong": np.longlong,
}


@pytest.fixture
def argument(foreign):
    """Make an argument of a kind for so many pages: the argument, and its address."""
    with ExitStack() as stack:

        def make(kind: str, pages: int) -> tuple[Any, int]:
            if kind in INTEGERS:
                area = foreign(pages)
                return INTEGERS[kind](area.address), area.address
            made = BUFFERS[kind](pages)
            if isinstance(made, Memory):
                stack.callback(made.close)
                return made, made.address
            return made, address_of(made)

        yield make


@pytest.mark.parametrize("src_kind", [*INTEGERS, *BUFFERS])
@pytest.mark.parametrize("dst_kind", [*INTEGERS, *BUFFERS])
def test_moves_between_all_kinds_of_arguments(argument, dst_kind, src_kind):
    _move_between(*argument(dst_kind, 2), *argument(src_kind, 2), 2 * PAGE_SIZE)


@pytest.mark.parametrize("kind", [*INTEGERS, *BUFFERS])
def test_moves_many_pages_of_all_kinds_of_arguments(argument, kind):
    _move_between(*argument(kind, 20), *argument(kind, 20), 20 * PAGE_SIZE)


def _move_between(dst: Any, to: int, src: Any, of: int, length: int) -> None:
    lowlevel.madvise(to, length, mmap.MADV_DONTNEED)
    write_all(of, length // PAGE_SIZE)
    before = look(to, of, length)
    assert remap_anon_pages(dst, src, length) == length
    check_moved(before)


@pytest.mark.parametrize(
    "integer", [*INTEGERS.values(), np.int32, np.uint32], ids=lambda i: i.__name__
)
def test_length_and_flags_are_any_integers(foreign, integer):
    dst, src = foreign(3), foreign(3)
    src.fill()
    moved = remap_anon_pages(dst.address, src.address, integer(3 * PAGE_SIZE), integer(0))
    assert moved == 3 * PAGE_SIZE
    assert type(moved) is int


@pytest.mark.parametrize("owned", [False, True], ids=["foreign", "Memory"])
@pytest.mark.parametrize("pages", [1, 2, 16, 17, 64, 512, 4095, 4096, 4097, 9000])
def test_moves_any_number_of_pages(foreign, pages, owned):
    length = pages * PAGE_SIZE
    with Memory(length) as a, Memory(length) as b:
        dst, src = (a.address, b.address) if owned else (foreign(pages).address,) * 2
        if not owned:
            src = foreign(pages).address
        write_all(src, pages)
        move_all(dst, src, length)


@pytest.mark.needs("thp")
@pytest.mark.parametrize("aligned", [True, False], ids=["2 MiB aligned", "not 2 MiB aligned"])
@pytest.mark.parametrize("huge", [True, False], ids=["huge page", "small pages"])
def test_moves_two_mebibytes(foreign, huge, aligned):
    pages = HUGE_PAGE_SIZE // PAGE_SIZE
    dst = foreign(pages, align=HUGE_PAGE_SIZE)
    src = foreign(pages + 1, align=HUGE_PAGE_SIZE)
    if huge:
        src.advise(mmap.MADV_HUGEPAGE)
    of = src.address if aligned else src.page(1)
    src.fill()
    assert bool(src.states()[0] & pagemove.PageState.HUGE) == huge
    move_all(dst.address, of, HUGE_PAGE_SIZE)


def test_arguments_may_be_named(foreign):
    dst, src = foreign(), foreign()
    contents = src.fill()
    assert remap_anon_pages(dst=dst.address, src=src.address, length=PAGE_SIZE) == PAGE_SIZE
    assert remap_anon_pages(src.address, dst.address, length=PAGE_SIZE, flags=0) == PAGE_SIZE
    assert src.contents() == contents


def test_its_signature_is_the_one_of_the_contract():
    assert str(inspect.signature(remap_anon_pages)) == "(dst, src, length, flags=0)"
    assert RAP_ALLOW_SRC_HOLES == 1


def test_the_same_physical_page_is_at_the_destination(foreign):
    # Root sees page frame numbers; others see zeros, and this then proves nothing.
    dst, src = foreign(3), foreign(3)
    src.fill()
    frames = _frames(src)
    remap_anon_pages(dst.address, src.address, src.nbytes)
    assert _frames(dst) == frames


def _frames(area: Area) -> list[int]:
    with open("/proc/self/pagemap", "rb") as pagemap:
        pagemap.seek(area.address // PAGE_SIZE * 8)
        words = np.frombuffer(pagemap.read(area.pages * 8), np.uint64)
    return [int(word) & (1 << 55) - 1 for word in words]


def test_the_source_gets_fresh_zero_pages(foreign):
    dst, src = foreign(), foreign()
    src.fill()
    remap_anon_pages(dst.address, src.address, PAGE_SIZE)
    assert hole(src.address)
    at(src.address, PAGE_SIZE)[7] = 9
    assert at(src.address, PAGE_SIZE).sum() == 9
    assert dst.contents() == pattern(0)


def test_pages_outside_the_ranges_stay_as_they_are(foreign):
    dst, src = foreign(5), foreign(5)
    contents = src.fill()
    at(dst.address, PAGE_SIZE)[0] = 1
    remap_anon_pages(dst.page(1), src.page(2), 2 * PAGE_SIZE)
    assert [bool(s) for s in dst.states()] == [True, True, True, False, False]
    assert [bool(s) for s in src.states()] == [True, True, False, False, True]
    assert read(src.page(4)) == contents[4 * PAGE_SIZE :]


def test_many_moves_add_no_mapping(foreign):
    dst, src = foreign(1000), foreign(1000)
    src.fill()
    remap_anon_pages(dst.address, src.address, PAGE_SIZE)
    order = np.random.default_rng(1).permutation(np.arange(1, 1000)).tolist()
    before = count_vmas()
    for page in order:
        assert remap_anon_pages(dst.page(page), src.page(page), PAGE_SIZE) == PAGE_SIZE
    # The interpreter may map memory for itself meanwhile; scattered mremap would add thousands.
    assert count_vmas() - before < 10


@pytest.mark.parametrize("pages", [1, 3, 40])
@pytest.mark.parametrize("distance", [1, 2, 30])
def test_backward_overlap_behaves_as_memmove_by_pages(foreign, pages, distance):
    area = foreign(pages + distance)
    contents = write_all(area.page(distance), pages)
    moved = remap_anon_pages(area.address, area.page(distance), pages * PAGE_SIZE)
    assert moved == pages * PAGE_SIZE
    assert hole(area.page(pages), distance)
    assert read(area.address, pages * PAGE_SIZE) == contents


def test_backward_overlap_with_an_occupied_destination_moves_nothing(foreign):
    area = foreign(4)
    area.fill()
    refuse(17, area.address, area.page(1), 3 * PAGE_SIZE, address=area.address)


def test_both_sides_may_be_in_one_mapping(foreign):
    area = foreign(8)
    contents = write_all(area.address, 4)
    move_all(area.page(4), area.address, 4 * PAGE_SIZE)
    assert read(area.page(4), 4 * PAGE_SIZE) == contents


class TestBuffers:
    """An object with a writable C-contiguous buffer stands for the address of its first byte."""

    @pytest.mark.parametrize("side", ["dst", "src"])
    @pytest.mark.parametrize("pages", [1, 20])
    def test_length_may_not_exceed_the_buffer(self, foreign, side, pages):
        other = foreign(pages + 1)
        with Memory(pages * PAGE_SIZE) as memory:
            write_all(memory.address, pages)
            arguments = {"dst": other.address, "src": other.address, side: memory}
            length = (pages + 1) * PAGE_SIZE
            with pytest.raises(ValueError, match=f"{length} exceeds the {memory.nbytes} bytes"):
                remap_anon_pages(**arguments, length=length)
            with pytest.raises(ValueError, match="exceeds"):
                remap_anon_pages(arguments["dst"], arguments["src"], length)
            assert read(memory.address) == pattern(0)

    def test_length_may_be_less_than_the_buffer(self):
        with Memory(4 * PAGE_SIZE) as dst, Memory(4 * PAGE_SIZE) as src:
            write_all(src.address, 4)
            assert remap_anon_pages(dst, src, PAGE_SIZE) == PAGE_SIZE
            assert [bool(s) for s in src.page_states()] == [False, True, True, True]

    @pytest.mark.parametrize("side", ["dst", "src"])
    @pytest.mark.parametrize(
        "make",
        [
            lambda m: memoryview(m).toreadonly(),
            lambda m: bytes(PAGE_SIZE),
            lambda m: np.frombuffer(memoryview(m).toreadonly(), np.uint8),
        ],
        ids=["read-only memoryview", "bytes", "read-only array"],
    )
    def test_a_read_only_buffer_is_a_buffer_error(self, foreign, side, make):
        with Memory(PAGE_SIZE) as memory:
            write(memory.address, 1)
            buffer = make(memory)
            arguments = {"dst": foreign().address, "src": foreign().address, side: buffer}
            with pytest.raises(BufferError, match="read-only"):
                remap_anon_pages(arguments["dst"], arguments["src"], PAGE_SIZE)
            del buffer, arguments
            assert read(memory.address) == pattern(1)

    @pytest.mark.parametrize("side", ["dst", "src"])
    @pytest.mark.parametrize(
        "wrong",
        [None, 1.0, "text", np.float64(4096), [4096], ..., (1,), np.bool_(True), 1j],
        ids=repr,
    )
    def test_anything_else_is_a_type_error(self, foreign, side, wrong):
        arguments = {"dst": foreign().address, "src": foreign().address, side: wrong}
        with pytest.raises(TypeError):
            remap_anon_pages(arguments["dst"], arguments["src"], PAGE_SIZE)

    @pytest.mark.parametrize("side", ["dst", "src"])
    def test_a_buffer_with_gaps_is_a_type_error(self, foreign, side):
        array = pagemove.empty((4, PAGE_SIZE), np.uint8)
        for gapped in (array[::2], array[:, ::2], array.T):
            arguments = {"dst": foreign().address, "src": foreign().address, side: gapped}
            with pytest.raises(TypeError, match="contiguous"):
                remap_anon_pages(arguments["dst"], arguments["src"], PAGE_SIZE)

    def test_a_buffer_is_released(self):
        with Memory(PAGE_SIZE) as dst, Memory(PAGE_SIZE) as src:
            write(src.address, 1)
            remap_anon_pages(dst, src, PAGE_SIZE)
            with pytest.raises(RemapError):
                remap_anon_pages(dst, src, PAGE_SIZE)
            with pytest.raises(ValueError, match="exceeds"):
                remap_anon_pages(dst, src, 2 * PAGE_SIZE)
            with pytest.raises(BufferError):
                remap_anon_pages(dst, b"read-only", 4)
            # Closing them, as `with` does, is a BufferError if anybody still holds them.

    @pytest.mark.parametrize("side", ["dst", "src"])
    def test_a_closed_memory_is_a_value_error(self, foreign, side):
        memory = Memory(PAGE_SIZE)
        memory.close()
        arguments = {"dst": foreign().address, "src": foreign().address, side: memory}
        with pytest.raises(ValueError, match="closed"):
            remap_anon_pages(arguments["dst"], arguments["src"], PAGE_SIZE)

    def test_an_unaligned_buffer_is_einval(self):
        with Memory(2 * PAGE_SIZE) as dst, Memory(2 * PAGE_SIZE) as src:
            with pytest.raises(RemapError) as caught:
                remap_anon_pages(dst, memoryview(src)[8:], PAGE_SIZE)
            assert caught.value.errno == 22
            assert caught.value.address == src.address + 8
            del caught

    @pytest.mark.parametrize(
        "wrong", [None, 4096.0, "4096", b"4096", np.float32(4096), [1]], ids=repr
    )
    @pytest.mark.parametrize("name", ["length", "flags"])
    def test_length_and_flags_have_to_be_integers(self, foreign, name, wrong):
        arguments = {"dst": foreign().address, "src": foreign().address, "length": PAGE_SIZE}
        with pytest.raises(TypeError, match=name):
            remap_anon_pages(**(arguments | {name: wrong}))

    @pytest.mark.parametrize("count", [0, 1, 2, 5])
    def test_too_few_or_too_many_arguments_are_a_type_error(self, foreign, count):
        with pytest.raises(TypeError):
            remap_anon_pages(*[foreign().address] * count)

    def test_an_unknown_name_is_a_type_error(self, foreign):
        with pytest.raises(TypeError, match="hole"):
            remap_anon_pages(foreign().address, foreign().address, PAGE_SIZE, holes=True)


class TestErrors:
    """`RemapError` is an `OSError`; its classes are those of the contract."""

    def test_classes(self):
        for kind in (
            pagemove.SourceHole,
            pagemove.DestinationMapped,
            pagemove.PageShared,
            pagemove.UnsupportedError,
        ):
            assert issubclass(kind, RemapError)
        assert issubclass(RemapError, OSError)

    def test_the_message_names_call_address_trouble_and_remedy(self, foreign):
        dst, src = foreign(), foreign()
        with pytest.raises(SourceHole) as caught:
            remap_anon_pages(dst.address, src.address, PAGE_SIZE)
        error = caught.value
        assert (error.errno, error.moved, error.index) == (2, 0, None)
        assert error.address == src.address
        text = str(error)
        assert "remap_anon_pages" in text
        assert f"{src.address:#x}" in text
        assert "hole" in text
        assert "RAP_ALLOW_SRC_HOLES" in text
