"""introspect.py, what is in page tables: page_states, and states_at below it."""

import ctypes
import errno
import random

import numpy as np
import pytest

from pagemove import introspect, lowlevel
from pagemove._native import calls
from pagemove.introspect import (
    HUGE_PAGE_SIZE,
    PAGE_SIZE,
    PageState,
    page_states,
    states_at,
)
from support import fresh_interpreter

MADV_DONTNEED, MADV_HUGEPAGE = 4, 14

P = PAGE_SIZE
PRESENT, SWAPPED, ZERO, HUGE, EXCLUSIVE, WRITE_PROTECTED, GUARD = PageState


def write(address, value=1):
    ctypes.memset(address, value, 1)


def read(address):
    return ctypes.string_at(address, 1)


def flags(states):
    return [PageState(word) for word in states]


class TestStates:
    def test_hole_present_zero(self, area):
        address = area(4 * P)
        write(address + P)
        read(address + 2 * P)
        assert flags(states_at(address, 4)) == [
            PageState(0),
            PRESENT | EXCLUSIVE,
            PRESENT | ZERO,
            PageState(0),
        ]
        calls.madvise(address + P, P, MADV_DONTNEED)
        assert not states_at(address, 2).any()

    def test_guard_page_is_not_swapped(self, area):
        address = area(3 * P)
        write(address + P)
        try:
            calls.madvise(address + P, P, lowlevel.MADV_GUARD_INSTALL)
        except OSError as error:
            pytest.skip(f"no guard regions in this kernel: {error}")
        assert flags(states_at(address, 3)) == [PageState(0), GUARD, PageState(0)]
        calls.madvise(address + P, P, lowlevel.MADV_GUARD_REMOVE)
        assert not states_at(address, 3).any()

    def test_write_protected(self, area, uffd):
        address = area(2 * P)
        calls.register(uffd, address, 2 * P, lowlevel.UFFDIO_REGISTER_MODE_WP)
        write(address)
        write(address + P)
        calls.writeprotect(uffd, address, P, lowlevel.UFFDIO_WRITEPROTECT_MODE_WP)
        assert flags(states_at(address, 2)) == [
            PRESENT | EXCLUSIVE | WRITE_PROTECTED,
            PRESENT | EXCLUSIVE,
        ]
        calls.writeprotect(uffd, address, P, 0)
        assert flags(states_at(address, 1)) == [PRESENT | EXCLUSIVE]

    def test_poison_marker_shows_as_swapped(self, area, uffd):
        address = area(P)
        calls.register(uffd, address, P, lowlevel.UFFDIO_REGISTER_MODE_MISSING)
        calls.poison(uffd, address, P)
        assert flags(states_at(address, 1)) == [SWAPPED]

    @pytest.mark.skipif(not HUGE_PAGE_SIZE, reason="no transparent huge pages in this kernel")
    def test_huge_page_and_huge_zero_page(self, area):
        address = area(4 * HUGE_PAGE_SIZE, HUGE_PAGE_SIZE)
        calls.madvise(address, 4 * HUGE_PAGE_SIZE, MADV_HUGEPAGE)
        write(address)
        read(address + 2 * HUGE_PAGE_SIZE)
        each = HUGE_PAGE_SIZE // P
        states = states_at(address, 4 * each)
        if not states[0] & HUGE:
            pytest.skip("the kernel gave no huge page")
        assert set(states[:each]) == {PRESENT | HUGE | EXCLUSIVE}
        assert not states[each : 2 * each].any()
        assert set(states[2 * each : 3 * each]) <= {PRESENT | ZERO | HUGE, PRESENT | ZERO, 0}
        assert states[2 * each] & ZERO
        assert not states[3 * each :].any()
        # Half a huge page discarded: the rest is ordinary pages again.
        calls.madvise(address, HUGE_PAGE_SIZE // 2, MADV_DONTNEED)
        states = states_at(address, each)
        assert not states[: each // 2].any()
        assert set(states[each // 2 :]) == {PRESENT | EXCLUSIVE}

    def test_fork_takes_exclusive_away_while_the_child_lives(self):
        output = fresh_interpreter(
            """
            import ctypes, mmap, os
            from pagemove._native import calls
            from pagemove.introspect import PAGE_SIZE, states_at

            address = calls.mmap(0, 2 * PAGE_SIZE, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            ctypes.memset(address, 1, 1)
            before = states_at(address, 2).tolist()
            ready, go = os.pipe(), os.pipe()
            child = os.fork()
            if not child:
                ctypes.memset(address + PAGE_SIZE, 2, 1)
                os.write(ready[1], str(states_at(address, 2).tolist()).encode())
                os.read(go[0], 1)
                os._exit(0)
            in_child = os.read(ready[0], 100).decode()
            during = states_at(address, 2).tolist()
            os.write(go[1], b"x")
            os.waitpid(child, 0)
            ctypes.memset(address, 3, 1)
            print(before, in_child, during, states_at(address, 2).tolist(), sep="|")
            """
        )
        alone, shared = int(PRESENT | EXCLUSIVE), int(PRESENT)
        # The child's answer is of its own memory: it wrote the second page, the parent did not.
        assert output.split("|") == [
            str([alone, 0]),
            str([shared, alone]),
            str([shared, 0]),
            str([alone, 0]),
        ]

    def test_swapped_page(self, area):
        with open("/proc/swaps") as swaps:
            if len(swaps.readlines()) < 2:
                pytest.skip("no swap space here")
        address = area(64 * P)
        for page in range(64):
            write(address + page * P)
        calls.madvise(address, 64 * P, lowlevel.MADV_PAGEOUT)
        states = states_at(address, 64)
        assert (states & SWAPPED).any()
        assert not (states & SWAPPED & PRESENT).any()
        assert not (states[(states & SWAPPED) != 0] & EXCLUSIVE).any()
        read(address)
        assert states_at(address, 1)[0] & PRESENT

    def test_without_pagemap_scan_the_rest_remains(self, area, monkeypatch):
        def unknown(*_arguments):
            raise OSError(errno.ENOTTY, "PAGEMAP_SCAN")

        address = area(2 * P)
        write(address)
        read(address + P)
        monkeypatch.setattr(calls, "pagemap_scan", unknown)
        assert flags(states_at(address, 2)) == [PRESENT | EXCLUSIVE, PRESENT]

    def test_random_pages_in_many_chunks(self, area, monkeypatch):
        pages = 1000
        address = area(pages * P)
        expected = np.zeros(pages, np.uint16)
        for page in random.Random(1).sample(range(pages), 600):
            if page % 3:
                write(address + page * P)
                expected[page] = PRESENT | EXCLUSIVE
            else:
                read(address + page * P)
                expected[page] = PRESENT | ZERO
        assert (states_at(address, pages) == expected).all()
        for chunk in (1, 7, 999):
            monkeypatch.setattr(introspect, "_CHUNK_PAGES", chunk)
            assert (states_at(address, pages) == expected).all()

    def test_range_longer_than_a_chunk(self, area):
        pages = introspect._CHUNK_PAGES + 10
        address = area(pages * P)
        touched = [0, 1, introspect._CHUNK_PAGES - 1, introspect._CHUNK_PAGES, pages - 1]
        for page in touched:
            write(address + page * P)
        assert np.flatnonzero(states_at(address, pages)).tolist() == touched

    def test_no_pages(self):
        assert len(states_at(P, 0)) == 0

    @pytest.mark.parametrize("address", [0, 1 << 40, (1 << 47) - P, 1 << 60])
    def test_nothing_is_mapped_there(self, address):
        assert not states_at(address, 3).any()


class TestPageStates:
    def test_one_word_for_each_page_that_the_buffer_touches(self, area):
        address = area(4 * P)
        write(address + P)
        write(address + 3 * P)
        everything = np.frombuffer((ctypes.c_char * (4 * P)).from_address(address), np.uint8)
        states = page_states(everything)
        assert states.dtype == np.uint16
        assert states.tolist() == states_at(address, 4).tolist()
        assert page_states(everything[P - 1 : P + 1]).tolist() == states[:2].tolist()
        assert page_states(everything[P : 2 * P]).tolist() == states[1:2].tolist()
        assert page_states(everything[P + 5 : P + 6]).tolist() == states[1:2].tolist()
        assert page_states(everything[P - 1 : 3 * P + 1]).tolist() == states.tolist()

    def test_a_word_is_a_page_state(self):
        assert PageState(np.uint16(17)) == PRESENT | EXCLUSIVE
        assert PageState(np.uint16(17)) is PageState(17)
        assert np.uint16(17) & PRESENT
        with pytest.raises(ValueError, match="not a valid"):
            PageState("17")

    def test_looking_touches_nothing(self, area):
        address = area(16 * P)
        buffer = (ctypes.c_char * (16 * P)).from_address(address)
        assert not page_states(buffer).any()
        assert not page_states(buffer).any()

    @pytest.mark.parametrize("empty", [b"", bytearray(), np.zeros(0)])
    def test_empty_buffer(self, empty):
        states = page_states(empty)
        assert states.shape == (0,)
        assert states.dtype == np.uint16

    def test_read_only_and_multidimensional_buffers(self):
        assert page_states(b"x" * P)[0] & PRESENT
        array = np.ones((3, P))
        array.flags.writeable = False
        assert (page_states(array) & PRESENT).all()
        assert 3 * 8 <= len(page_states(array)) <= 3 * 8 + 1

    @pytest.mark.parametrize("wrong", [None, 7, "text", [1], object()])
    def test_no_buffer(self, wrong):
        with pytest.raises(TypeError):
            page_states(wrong)

    def test_not_contiguous(self):
        with pytest.raises((TypeError, BufferError)):
            page_states(np.zeros((4, P))[:, ::2])

    def test_buffer_is_released(self):
        data = bytearray(P)
        page_states(data)
        data.append(1)
