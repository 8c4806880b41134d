"""Memory: who owns the mapping, until when, and what is left then."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings

import numpy as np
import pytest

from pagemove import (
    PAGE_SIZE,
    Memory,
    remap_anon_pages,
)
from support import pattern, read, together, vmas_in, write, write_all


class TestClose:
    def test_unmaps(self):
        memory = Memory(PAGE_SIZE)
        address = memory.address
        memory.close()
        assert memory.closed
        assert not vmas_in(address, PAGE_SIZE)

    def test_twice_is_fine(self):
        memory = Memory(PAGE_SIZE)
        address = memory.address
        memory.close()
        with Memory(PAGE_SIZE) as other:
            # Most likely at the same address.
            write(other.address, 1)
            memory.close()
            assert read(other.address) == pattern(1)
            assert address % PAGE_SIZE == 0

    @pytest.mark.parametrize(
        "take", [memoryview, lambda m: m.asarray("u1"), lambda m: np.frombuffer(m)]
    )
    def test_while_views_exist_is_a_buffer_error(self, take):
        memory = Memory(PAGE_SIZE)
        view = take(memory)
        with pytest.raises(BufferError, match="close"):
            memory.close()
        assert not memory.closed
        write(memory.address, 1)
        del view
        memory.close()
        assert memory.closed

    def test_everything_else_is_a_value_error_then(self):
        memory = Memory(PAGE_SIZE)
        memory.close()
        for use in (
            memoryview,
            bytes,
            lambda m: m.address,
            lambda m: m.asarray("u1"),
            lambda m: m.page_states(),
            lambda m: m.discard(),
        ):
            with pytest.raises(ValueError, match="closed"):
                use(memory)
        assert "closed" in repr(memory)

    def test_by_the_end_of_a_with_block(self):
        with Memory(PAGE_SIZE) as memory:
            assert not memory.closed
        assert memory.closed
        with pytest.raises(ZeroDivisionError), Memory(PAGE_SIZE) as memory:
            1 // 0  # noqa: B018
        assert memory.closed

    @pytest.mark.needs("move")
    def test_while_another_thread_moves_is_a_buffer_error_or_waits_its_turn(self):
        pages = 2048
        with Memory(pages * PAGE_SIZE) as dst:
            src = Memory(pages * PAGE_SIZE)
            write_all(src.address, pages)
            refused = [0]

            def move_to_and_fro() -> None:
                for _ in range(20):
                    try:
                        remap_anon_pages(dst, src, dst.nbytes)
                        remap_anon_pages(src, dst, dst.nbytes)
                    except ValueError:
                        return

            def close() -> None:
                while not src.closed:
                    try:
                        src.close()
                    except BufferError:
                        refused[0] += 1

            together(move_to_and_fro, close)
            assert src.closed


class TestForgotten:
    def test_is_a_resource_warning(self):
        memory = Memory(PAGE_SIZE)
        address = memory.address
        with pytest.warns(ResourceWarning, match="never closed"):
            del memory
        assert not vmas_in(address, PAGE_SIZE)

    def test_in_a_cycle(self):
        holder = [Memory(PAGE_SIZE)]
        holder.append(holder)
        address = holder[0].address
        holder = [holder]
        with pytest.warns(ResourceWarning, match="never closed"):
            _forget(holder)
        assert not vmas_in(address, PAGE_SIZE)

    def test_is_no_warning_if_it_was_closed_or_never_made(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            memory = Memory(PAGE_SIZE)
            memory.close()
            del memory
            for wrong in (0, -1, 2**70, "x"):
                with pytest.raises((ValueError, MemoryError, TypeError)):
                    Memory(wrong)
            with pytest.raises(ValueError, match="name"):
                Memory(PAGE_SIZE, name="[")
            bare = Memory.__new__(Memory, 1)
            del bare
            gc.collect()


def _forget(holder: list[object]) -> None:
    holder.clear()
    gc.collect()


class TestOneOwner:
    """One object owns the mapping; nothing makes a second owner of it."""

    @pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
    def test_cannot_be_copied_or_pickled(self, duplicate):
        with Memory(PAGE_SIZE) as memory:
            with pytest.raises(TypeError):
                duplicate(memory)
            write(memory.address, 1)

    def test_cannot_be_initialised_twice(self):
        with Memory(PAGE_SIZE) as memory:
            write(memory.address, 1)
            address = memory.address
            with pytest.raises(ValueError, match="already"):
                memory.__init__(2 * PAGE_SIZE)
            assert (memory.address, memory.nbytes) == (address, PAGE_SIZE)
            assert read(address) == pattern(1)

    def test_its_address_and_length_cannot_be_set(self):
        with Memory(PAGE_SIZE) as memory:
            for name in ("address", "nbytes", "closed"):
                with pytest.raises(AttributeError):
                    setattr(memory, name, 0)

    def test_an_object_without_a_mapping_has_no_buffer(self):
        bare = Memory.__new__(Memory, 1)
        assert bare.closed
        with pytest.raises(ValueError, match="closed"):
            memoryview(bare)
        bare.close()
