"""After a fork the child's library starts afresh: nothing in the child ever acts on the parent."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import warnings
from typing import Any

import numpy as np
import pytest

import pagemove
from pagemove import (
    PAGE_SIZE,
    Memory,
    PageState,
    lowlevel,
    move,
    move_many,
    mremap,
    page_states,
    remap_anon_pages,
    unshare,
)
from pagemove._native import remap
from support import (
    Area,
    ChildFailed,
    at,
    child,
    fork,
    hole,
    living_child,
    pattern,
    read,
    read_all,
    state,
    states,
    vmas_in,
    write,
    write_all,
)
from support.foreign import foreign as map_foreign
from support.selection import few

from .checks import move_all, refusal

pytestmark = pytest.mark.needs("move", "fork")


def move_own_memory() -> int:
    """Move pages between memory of the child's own, in every way there is."""
    done = 0
    with Memory(4 * PAGE_SIZE) as dst, Memory(4 * PAGE_SIZE) as src:
        contents = write_all(src.address, 4)
        done += remap_anon_pages(dst, src, 4 * PAGE_SIZE)
        done += move(src, dst)
        done += move_many(dst, src, [3, 2, 1, 0], [3, 2, 1, 0])
        assert read_all(dst.address, 4) == contents
    with map_foreign(2) as to, map_foreign(2) as of:
        of.fill()
        move_all(to.address, of.address, of.nbytes)
        done += of.nbytes
    return done // PAGE_SIZE


def descriptors() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return found


class TestChildsOwnMemory:
    """A child works on its own memory."""

    def test_moves(self):
        remap.descriptor()
        assert child(move_own_memory) == 14

    def test_moves_in_a_grandchild(self):
        assert child(lambda: child(move_own_memory)) == 14

    def test_moves_in_a_child_of_a_thread(self):
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(child(move_own_memory)))
        thread.start()
        thread.join(30)
        assert results == [14]

    def test_has_a_userfaultfd_of_its_own(self):
        def count() -> list[int]:
            before = sum("userfaultfd" in name for name in descriptors())
            remap.descriptor()
            return [before, sum("userfaultfd" in name for name in descriptors())]

        remap.descriptor()
        assert child(count) == [0, 1]

    def test_closes_the_inherited_descriptors(self):
        def left() -> list[str]:
            return [n for n in descriptors() if n.endswith(("/pagemap", "/maps", "[userfaultfd]"))]

        remap.descriptor()
        assert child(left) == []

    def test_that_closes_descriptors_leaves_the_parents_open(self):
        before = sorted(descriptors())
        child(lambda: os.close(remap.descriptor()))
        assert sorted(descriptors()) == before
        with Memory(PAGE_SIZE) as dst, Memory(PAGE_SIZE) as src:
            write(src.address, 1)
            move_all(dst.address, src.address, PAGE_SIZE)

    def test_inherited_foreign_memory_is_the_childs_own_copy(self, foreign):
        dst, src = foreign(3), foreign(3)
        contents = src.fill()

        def move_copies() -> bytes:
            # Shared with the parent, who lives: each page has to be copied first.
            with refusal(16):
                remap_anon_pages(dst.address, src.address, 3 * PAGE_SIZE)
            unshare(src.array(), copy=True)
            move_all(dst.address, src.address, 3 * PAGE_SIZE)
            write(dst.address, 999)
            return read_all(dst.address, 3)

        assert child(move_copies)[PAGE_SIZE:] == contents[PAGE_SIZE:]
        assert hole(dst.address, 3)
        assert src.contents() == contents

    def test_a_destination_registered_in_the_parent_is_registered_anew(self, foreign):
        dst = foreign(2)
        with Memory(2 * PAGE_SIZE) as src:
            write_all(src.address, 2)
            remap_anon_pages(dst.address, src.address, PAGE_SIZE)

        def move_in_child() -> None:
            with Memory(PAGE_SIZE) as own:
                write(own.address, 5)
                move_all(dst.page(1), own.address, PAGE_SIZE)

        child(move_in_child)
        assert hole(dst.page(1))


class TestNeverTheParent:
    """Whatever the child does, pages, mappings and descriptors of the parent stay."""

    ACTS = (
        "remap_anon_pages by address",
        "remap_anon_pages",
        "move",
        "move_many",
        "unshare",
        "mremap",
        "asarray",
        "discard",
        "close",
        "with",
        "del",
    )

    @pytest.mark.parametrize("what", ACTS)
    def test_an_inherited_memory(self, what):
        with Memory(4 * PAGE_SIZE) as dst, Memory(4 * PAGE_SIZE) as src:
            contents = write_all(src.address, 4)
            before = vmas_in(src.address, src.nbytes), states(src.address, 4)
            child(_act, what, dst, src)
            assert hole(dst.address, 4)
            assert (vmas_in(src.address, src.nbytes), states(src.address, 4)) == before
            assert read_all(src.address, 4) == contents
            move_all(dst.address, src.address, src.nbytes)

    def test_nothing_is_at_an_inherited_address(self):
        with Memory(PAGE_SIZE) as memory:
            write(memory.address, 1)
            address = memory.address
            with pytest.raises(ChildFailed) as caught:
                child(read, address)
            assert caught.value.signal == 11
            assert [rights for _, _, rights, _ in child(vmas_in, address, PAGE_SIZE)] == ["---p"]

    def test_an_inherited_array_is_not_mapped(self):
        array = pagemove.empty(1000)
        array[:] = 1
        with pytest.raises(ChildFailed) as caught:
            child(lambda: float(array[0]))
        assert caught.value.signal == 11

    def test_what_came_to_the_inherited_address_is_not_unmapped(self):
        # The child maps something of its own just where the parent has its Memory, then drops it.
        with Memory(8 * PAGE_SIZE) as memory:

            def take_its_place(memory: Memory = memory, address: int = memory.address) -> bytes:
                flags = 0x22 | 0x10  # MAP_FIXED, over what reserves it
                lowlevel.mmap(address, 8 * PAGE_SIZE, 3, flags)
                contents = write_all(address, 8)
                memory.close()
                memory.__exit__(None, None, None)
                del memory
                gc.collect()
                assert read_all(address, 8) == contents
                return contents

            child(take_its_place)

    def test_its_finaliser_warns_of_nothing(self):
        memory = Memory(PAGE_SIZE)
        holder = [memory]

        def drop() -> int:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                nonlocal memory
                holder.clear()
                memory = None
                gc.collect()
            return len(caught)

        assert child(drop) == 0
        memory.close()

    def test_a_memory_of_the_grandparent_is_dead_as_well(self):
        with Memory(PAGE_SIZE) as memory:
            child(lambda: child(_expect_dead, memory))

    def test_a_child_that_ends_normally_leaves_the_parent_alone(self):
        # The interpreter's own exit, finalisers and all, not os._exit.
        with Memory(2 * PAGE_SIZE) as src:
            contents = write_all(src.address, 2)
            pid = fork()
            if not pid:
                try:
                    src.close()
                    gc.collect()
                    import sys

                    sys.exit(0)
                except SystemExit:
                    os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            assert read_all(src.address, 2) == contents


def _expect_dead(memory: Memory) -> None:
    for use in (memoryview, bytes, page_states):
        with pytest.raises(ValueError, match="parent"):
            use(memory)
    with pytest.raises(ValueError, match="parent"):
        memory.asarray(np.uint8)
    with pytest.raises(ValueError, match="parent"):
        memory.page_states()
    assert memory.closed
    memory.close()
    memory.close()
    assert memory.closed


def _act(what: str, dst: Memory, src: Memory) -> None:
    """Do to inherited memory what must come to nothing."""
    dead = pytest.raises(ValueError, match="parent")
    match what:
        case "remap_anon_pages by address":
            with pytest.raises(pagemove.RemapError) as caught:
                remap_anon_pages(dst.address, src.address, src.nbytes)
            assert caught.value.errno == 22
        case "remap_anon_pages":
            with dead:
                remap_anon_pages(dst, src, src.nbytes)
        case "move":
            with dead:
                move(dst, src)
        case "move_many":
            with dead:
                move_many(dst, src, [0, 1], [0, 1])
        case "unshare":
            with dead:
                unshare(src)
        case "mremap":
            with dead:
                mremap(dst, src, src.nbytes)
        case "asarray":
            with dead:
                src.asarray(np.uint8)
        case "discard":
            with dead:
                src.discard()
        case "close":
            src.close()
            dst.close()
        case "with":
            with src, dst:
                pass
        case "del":
            del src, dst
            gc.collect()


class TestWhileThreadsMove:
    """A fork may happen at any moment of another thread's move."""

    def test_fork_while_another_thread_moves(self, foreign):
        areas = foreign(64), foreign(64)
        contents = areas[0].fill()
        stop, counts = threading.Event(), [0]

        def bounce() -> None:
            src, dst = areas
            while not stop.is_set():
                done = 0
                while done < src.nbytes:
                    try:
                        done += remap_anon_pages(
                            dst.address + done, src.address + done, src.nbytes - done
                        )
                    except pagemove.PageShared:
                        # A fork came in between: what it shared has to be touched again.
                        unshare(src.array(), copy=True)
                src, dst = dst, src
                counts[0] += 1
            areas[0].array()

        thread = threading.Thread(target=bounce)
        thread.start()
        try:
            for _ in range(few(30, 6)):
                assert child(move_own_memory) == 14
        finally:
            stop.set()
            thread.join(30)
        assert not thread.is_alive()
        assert counts[0] > 0
        full = areas[0] if state(areas[0].address) & PageState.PRESENT else areas[1]
        assert full.contents() == contents

    def test_fork_while_another_thread_moves_memory(self):
        with Memory(64 * PAGE_SIZE) as a, Memory(64 * PAGE_SIZE) as b:
            contents = write_all(a.address, 64)
            stop, rounds = threading.Event(), [0]

            def bounce() -> None:
                while not stop.is_set():
                    order = np.random.default_rng(rounds[0]).permutation(64)
                    move_many(b, a, order, order)
                    move(a, b)
                    rounds[0] += 1

            thread = threading.Thread(target=bounce)
            thread.start()
            try:
                for _ in range(few(30, 6)):
                    assert child(move_own_memory) == 14
            finally:
                stop.set()
                thread.join(30)
            # Nothing is shared with a child, so nothing ever stopped it.
            assert rounds[0] > 0
            assert read_all(a.address, 64) == contents

    def test_parent_and_child_at_once(self, foreign):
        dst, src = foreign(8), foreign(8)
        with living_child() as one:
            for number in range(few(15, 5)):
                contents = src.fill(number)
                assert one.run(move_own_memory) == 14
                move_all(dst.address, src.address, src.nbytes)
                assert dst.contents() == contents
                dst.discard()


def test_moved_pages_take_the_destinations_fork_policy(foreign):
    area: Area = foreign()
    with Memory(PAGE_SIZE) as memory:
        write(memory.address, 8)
        move_all(area.address, memory.address, PAGE_SIZE)
        assert child(read, area.address) == pattern(8)
        at(area.address, PAGE_SIZE)[0] = 1
