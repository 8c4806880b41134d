"""Memory(nbytes, *, huge_pages=False, name=None): owns a private anonymous mapping."""

from __future__ import annotations

import gc
import os

import numpy as np
import pytest

from pagemove import (
    HUGE_PAGE_SIZE,
    PAGE_SIZE,
    Memory,
    PageState,
    RemapError,
    features,
    remap_anon_pages,
    vmas,
)
from support import at, hole, pattern, read, state, vmas_in, write, write_all

from .checks import signature, zeros

_LARGE = HUGE_PAGE_SIZE or 1 << 21


def flags_of(address: int) -> set[str]:
    return set(next(vma.flags for vma in vmas() if vma.start <= address < vma.end))


def test_its_signature_is_the_one_of_the_contract():
    assert signature(Memory) == "(nbytes, *, huge_pages=False, name=None)"
    assert signature(Memory.asarray) == "(self, dtype, shape=None, offset=0)"


class TestMapping:
    @pytest.mark.parametrize(
        ("nbytes", "rounded"),
        [
            (1, PAGE_SIZE),
            (PAGE_SIZE - 1, PAGE_SIZE),
            (PAGE_SIZE, PAGE_SIZE),
            (PAGE_SIZE + 1, 2 * PAGE_SIZE),
            (100_000, -(-100_000 // PAGE_SIZE) * PAGE_SIZE),
            (_LARGE - 1, _LARGE),
            (_LARGE + 1, _LARGE + PAGE_SIZE),
        ],
    )
    def test_length_is_rounded_up_to_whole_pages(self, nbytes, rounded):
        with Memory(nbytes) as memory:
            assert memory.nbytes == rounded
            assert memory.address % PAGE_SIZE == 0
            assert len(memoryview(memory)) == rounded
            mapped = vmas_in(memory.address, rounded)
            assert mapped[0][0] <= memory.address
            assert mapped[-1][1] >= memory.address + rounded

    @pytest.mark.parametrize("nbytes", [_LARGE, _LARGE + 1, 3 * _LARGE, 5 * _LARGE + 77])
    @pytest.mark.parametrize("huge_pages", [False, True])
    def test_two_mebibytes_and_more_are_aligned_so(self, nbytes, huge_pages):
        with Memory(nbytes, huge_pages=huge_pages) as memory:
            assert memory.address % _LARGE == 0

    def test_alignment_costs_no_address_space(self):
        before = _address_space()
        with Memory(3 * _LARGE) as memory:
            assert _address_space() - before <= memory.nbytes + 64 * PAGE_SIZE

    def test_is_private_writable_and_zero(self):
        with Memory(5 * PAGE_SIZE) as memory:
            assert {permissions for _, _, permissions, _ in vmas_in(memory.address, 1)} == {"rw-p"}
            assert hole(memory.address, 5)
            assert bytes(memory) == zeros(5)

    @pytest.mark.needs("fork")
    def test_is_left_out_by_a_fork(self):
        with Memory(PAGE_SIZE) as memory:
            assert "dc" in flags_of(memory.address)

    @pytest.mark.needs("move")
    def test_is_registered(self):
        with Memory(PAGE_SIZE) as memory:
            assert "uw" in flags_of(memory.address)

    @pytest.mark.needs("thp", "pagemap_scan")
    def test_has_huge_pages_only_where_asked_for(self):
        with Memory(2 * _LARGE, huge_pages=True) as huge, Memory(2 * _LARGE) as small:
            for memory in (huge, small):
                at(memory.address, memory.nbytes)[:] = 1
            assert (huge.page_states() & PageState.HUGE).all()
            assert not (small.page_states() & PageState.HUGE).any()
            assert "nh" in flags_of(small.address)

    def test_neighbours_do_not_disturb_each_other(self):
        many = [Memory(PAGE_SIZE) for _ in range(50)]
        for number, memory in enumerate(many):
            write(memory.address, number)
        for memory in many[::2]:
            memory.close()
        for number, memory in enumerate(many[1::2]):
            assert read(memory.address) == pattern(2 * number + 1)
            memory.close()


def _address_space() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * PAGE_SIZE


class TestName:
    @pytest.mark.parametrize("name", [None, "rows of the table", "x", "a" * 79, ""])
    def test_is_shown_in_maps_where_the_kernel_can(self, name):
        with Memory(PAGE_SIZE, name=name) as memory:
            if not features().vma_names:
                assert vmas_in(memory.address, 1)[0][3] == ""
                return
            assert (
                vmas_in(memory.address, 1)[0][3] == f"[anon:{'pagemove' if name is None else name}]"
            )

    @pytest.mark.parametrize(
        "name", ["a" * 80, "a[b", "a]", "$x", "`", "back\\slash", "ü", "a\n", "\0"]
    )
    def test_the_kernel_would_refuse_is_a_value_error(self, name):
        with pytest.raises(ValueError, match="name"):
            Memory(PAGE_SIZE, name=name)

    @pytest.mark.parametrize("name", [b"bytes", 7, ["x"]])
    def test_that_is_no_string_is_a_type_error(self, name):
        with pytest.raises(TypeError, match="name"):
            Memory(PAGE_SIZE, name=name)


class TestLength:
    @pytest.mark.parametrize("nbytes", [0, -1, -PAGE_SIZE, -(2**63), -(2**80)])
    def test_of_0_or_less_is_a_value_error(self, nbytes):
        with pytest.raises(ValueError, match="positive"):
            Memory(nbytes)

    @pytest.mark.parametrize(
        "nbytes", [2**46, 2**47, 2**62, 2**63 - 1, 2**63, 2**64, 2**64 + 1, 2**90]
    )
    def test_beyond_the_address_space_is_a_memory_error(self, nbytes):
        # 2**46 is within it, but no machine commits that much on first request.
        if nbytes == 2**46 and _overcommits_all():
            pytest.skip("vm.overcommit_memory is 1")
        with pytest.raises(MemoryError, match="cannot map"):
            Memory(nbytes)

    @pytest.mark.parametrize("nbytes", [None, 1.0, "4096", [1], 4096j], ids=repr)
    def test_that_is_no_integer_is_a_type_error(self, nbytes):
        with pytest.raises(TypeError):
            Memory(nbytes)

    @pytest.mark.parametrize("kind", [np.int8, np.uint64, np.int32])
    def test_may_be_any_integer(self, kind):
        with Memory(kind(100)) as memory:
            assert memory.nbytes == PAGE_SIZE

    def test_options_are_by_keyword_only(self):
        with pytest.raises(TypeError):
            Memory(PAGE_SIZE, True)


def _overcommits_all() -> bool:
    with open("/proc/sys/vm/overcommit_memory") as sysctl:
        return sysctl.read().strip() == "1"


class TestBuffer:
    def test_is_writable_contiguous_bytes(self):
        with Memory(2 * PAGE_SIZE) as memory, memoryview(memory) as view:
            assert (view.format, view.itemsize, view.nbytes) == ("B", 1, 2 * PAGE_SIZE)
            assert not view.readonly
            assert view.c_contiguous
            view[:4] = b"page"
            assert read(memory.address, 4) == b"page"

    def test_serves_numpy_and_system_calls(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(pattern(3))
        with Memory(PAGE_SIZE) as memory:
            with path.open("rb", buffering=0) as file:
                assert file.readinto(memory) == PAGE_SIZE
            array = np.frombuffer(memory, np.uint8)
            assert array.ctypes.data == memory.address
            assert array.tobytes() == pattern(3)
            del array


class TestAsarray:
    def test_views_the_memory(self):
        with Memory(PAGE_SIZE) as memory:
            array = memory.asarray(np.float64)
            assert array.shape == (PAGE_SIZE // 8,)
            assert array.ctypes.data == memory.address
            assert array.flags.writeable
            assert array.flags.c_contiguous
            array[3] = 2.5
            assert memoryview(memory).cast("d")[3] == 2.5
            del array

    @pytest.mark.parametrize(
        ("dtype", "shape", "offset", "expected"),
        [
            ("u1", None, 0, (PAGE_SIZE,)),
            ("u1", None, 1, (PAGE_SIZE - 1,)),
            ("f8", None, 8, (PAGE_SIZE // 8 - 1,)),
            ("f8", None, 3, ((PAGE_SIZE - 3) // 8,)),
            ("u2", (3, 4), 10, (3, 4)),
            ("u2", 5, 0, (5,)),
            ("u1", (), 9, ()),
            ("u1", None, PAGE_SIZE, (0,)),
            ("f4", (0, 7), 0, (0, 7)),
            ([("a", "i4"), ("b", "f8")], None, 0, (PAGE_SIZE // 12,)),
            ("S16", None, 0, (PAGE_SIZE // 16,)),
            ("u1", (np.int64(2), np.int32(2)), np.int64(1), (2, 2)),
        ],
        ids=repr,
    )
    def test_shapes_and_offsets(self, dtype, shape, offset, expected):
        with Memory(PAGE_SIZE) as memory:
            array = memory.asarray(dtype, shape, offset)
            assert array.shape == expected
            assert array.dtype == np.dtype(dtype)
            if array.size:
                assert array.ctypes.data == memory.address + offset
            del array

    @pytest.mark.parametrize(
        ("dtype", "shape", "offset"),
        [
            ("u1", PAGE_SIZE + 1, 0),
            ("u1", PAGE_SIZE, 1),
            ("f8", (PAGE_SIZE // 8, 2), 0),
            ("u1", (2**40, 2**40), 0),
            ("u1", 2**64, 0),
            ("u1", -1, 0),
            ("u1", (-1, -1), 0),
            ("u1", (-1, 0), 0),
            ("u1", None, -1),
            ("u1", None, PAGE_SIZE + 1),
            ("u1", None, 2**64),
            ("V0", None, 0),
        ],
        ids=repr,
    )
    def test_that_do_not_fit_are_a_value_error(self, dtype, shape, offset):
        with Memory(PAGE_SIZE) as memory, pytest.raises(ValueError):  # noqa: PT011
            memory.asarray(dtype, shape, offset)

    @pytest.mark.parametrize("dtype", [object, [("a", "i4"), ("b", "O")], "no dtype"], ids=repr)
    def test_dtypes_that_memory_cannot_hold_are_a_type_error(self, dtype):
        with Memory(PAGE_SIZE) as memory, pytest.raises(TypeError):
            memory.asarray(dtype)

    @pytest.mark.parametrize(("shape", "offset"), [("4", 0), (1.5, 0), (None, 0.5), ((1, None), 0)])
    def test_shapes_that_are_no_integers_are_a_type_error(self, shape, offset):
        with Memory(PAGE_SIZE) as memory, pytest.raises(TypeError):
            memory.asarray("u1", shape, offset)

    def test_keeps_the_memory_alive(self):
        memory = Memory(PAGE_SIZE)
        address = memory.address
        array = memory.asarray(np.uint8)
        array[:] = 7
        del memory
        gc.collect()
        part = array[100:200]
        del array
        gc.collect()
        assert (part == 7).all()
        assert vmas_in(address, PAGE_SIZE)
        with pytest.warns(ResourceWarning, match="never closed"):
            del part
        assert not vmas_in(address, PAGE_SIZE)


class TestDiscard:
    @pytest.mark.parametrize(
        ("arguments", "left"),
        [
            ((), []),
            ((PAGE_SIZE,), [0]),
            ((0, 2 * PAGE_SIZE), [2, 3]),
            ((PAGE_SIZE, PAGE_SIZE), [0, 2, 3]),
            ((4 * PAGE_SIZE,), [0, 1, 2, 3]),
            ((0, 0), [0, 1, 2, 3]),
        ],
    )
    def test_makes_holes(self, arguments, left):
        with Memory(4 * PAGE_SIZE) as memory:
            write_all(memory.address, 4)
            memory.discard(*arguments)
            assert [bool(s) for s in memory.page_states()] == [page in left for page in range(4)]
            assert all(read(memory.address + page * PAGE_SIZE) == pattern(page) for page in left)

    @pytest.mark.parametrize(
        "arguments",
        [
            (1,),
            (0, 1),
            (8, PAGE_SIZE),
            (-PAGE_SIZE,),
            (0, -PAGE_SIZE),
            (0, 5 * PAGE_SIZE),
            (4 * PAGE_SIZE, PAGE_SIZE),
            (5 * PAGE_SIZE,),
            (2**64, PAGE_SIZE),
            (0, 2**64),
            (-(2**64), 2**65),
        ],
    )
    def test_of_other_than_whole_pages_of_its_own_is_a_value_error(self, arguments):
        with Memory(4 * PAGE_SIZE) as memory:
            write_all(memory.address, 4)
            with pytest.raises(ValueError):  # noqa: PT011
                memory.discard(*arguments)
            assert all(memory.page_states() & PageState.PRESENT)

    def test_while_views_exist(self):
        with Memory(PAGE_SIZE) as memory:
            array = memory.asarray(np.uint8)
            array[:] = 1
            memory.discard()
            assert not array.any()
            del array


@pytest.mark.needs("move")
def test_page_states_are_its_own():
    with Memory(3 * PAGE_SIZE) as memory:
        write(memory.address + PAGE_SIZE, 1)
        assert [bool(s) for s in memory.page_states()] == [False, True, False]
        assert state(memory.address + PAGE_SIZE) & PageState.EXCLUSIVE
        with pytest.raises(RemapError):
            remap_anon_pages(memory, memory, PAGE_SIZE)


def test_the_message_names_the_limit_on_mappings(monkeypatch):
    # The kernel's ENOMEM, as any process meets it under a limit on its address space.
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + (64 << 20), hard))
    try:
        with pytest.raises(MemoryError, match="ulimit"):
            Memory(1 << 40)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert os.getpid()
