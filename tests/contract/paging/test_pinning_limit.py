"""What can be pinned, how much of it, and that it stays."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os

import numpy as np
import pytest

from pagemove import PAGE_SIZE, PageState, StoreError, lowlevel, pinned
from pagemove.introspect import states_at
from support import wait_for
from support.paging import (
    MIB,
    MODES,
    Fault,
    Peak,
    Struck,
    contents_of,
    expected,
    load,
    store,
    words,
)
from support.pinning import (
    BLOCK,
    BLOCKS,
    LIMIT,
    MOST,
    NBYTES,
    answers,
    blocks_pinned,
    is_there,
    ordinary,  # noqa: F401 (a fixture)
    refusal,
    region,
)

pytestmark = pytest.mark.needs("paging")


class TestViews:
    @pytest.mark.parametrize(
        ("of", "blocks"),
        [
            (lambda a: a[5:6], [0]),
            (lambda a: a[2047:2049], [0, 1]),
            (lambda a: a[::-1][-3000:], [0, 1]),
            (lambda a: a[:: 4 * 2048], [0, 4, 8, 12, 16, 20, 24, 28]),
            (lambda a: a[:: -4 * 2048], [3, 7, 11, 15, 19, 23, 27, 31]),
            (lambda a: a[:: 2 * 2048 - 1][:5], [0, 1, 3, 5, 7]),
            (lambda a: a.reshape(4, 8, 2048)[1::2, ::3, 5], [8, 11, 14, 24, 27, 30]),
            (lambda a: a.reshape(4, 8, 2048)[1::2, ::3, 5].T, [8, 11, 14, 24, 27, 30]),
            (lambda a: np.broadcast_to(a[9:10], (1 << 30, 1 << 20)), [0]),
            (lambda a: np.lib.stride_tricks.sliding_window_view(a[:6000], 3000)[::2], [0, 1, 2]),
            (lambda a: a[:0], []),
            (lambda a: a[2048:].view("u1")[1:].data, [*range(1, 32)]),
            (lambda a: a[2048:4096].data[::-1], [1]),
        ],
    )
    def test_only_the_blocks_of_its_items(self, file, of, blocks):
        with region(file(NBYTES), blocks=64) as memory:
            view = of(words(memory))
            with pinned(view):
                there = [n for n in range(BLOCKS) if is_there(memory, n, 1)]
                assert there == blocks
                assert blocks_pinned(memory) == len(blocks)
            assert blocks_pinned(memory) == 0
            del view

    def test_a_region_itself(self, file, out):
        with region(file(NBYTES - 100), blocks=BLOCKS) as memory:
            with pinned(memory):
                assert blocks_pinned(memory) == BLOCKS
                assert os.pwrite(out, memory, 0) == memory.nbytes
            assert os.pread(out, NBYTES, 0) == contents_of(NBYTES - 100)

    def test_of_several_regions(self, file, out):
        with region(file(NBYTES)) as one, region(file(NBYTES, 1), "c") as other:
            from_one, to_other = words(one)[:4096], words(other)[-4096:]
            with pinned(from_one), pinned(to_other):
                assert (blocks_pinned(one), blocks_pinned(other)) == (2, 2)
                assert os.pwrite(out, from_one, 0) == os.preadv(out, [to_other], 0) == 32768
                assert (from_one == to_other).all()
            assert (blocks_pinned(one), blocks_pinned(other)) == (0, 0)
            del from_one, to_other

    @pytest.mark.parametrize("of", [np.zeros, bytearray, lambda n: [np.zeros(n)] and b"x" * n])
    def test_what_is_not_paged_needs_nothing(self, of):
        thing = of(1000)
        with pinned(thing) as same:
            assert same is thing

    def test_a_copy_needs_nothing(self, file):
        with region(file(NBYTES)) as memory, pinned(words(memory)[:100].copy()):
            assert blocks_pinned(memory) == 0

    @pytest.mark.parametrize("thing", [[1, 2], "text", 5, None])
    def test_what_has_no_memory_is_refused(self, thing):
        with pytest.raises(TypeError, match="it has no buffer; pin an array"), pinned(thing):
            pass


class TestLimit:
    @pytest.mark.parametrize("mode", MODES)
    def test_all_but_four_blocks_and_the_rest_is_paged(self, file, out, mode):
        with region(file(NBYTES), mode) as memory, memoryview(memory) as view:
            with pinned(view[: MOST * BLOCK]) as part, Peak() as peak:
                for start in [*range(0, NBYTES, 1000), *range(NBYTES - 8, 0, -3001)]:
                    assert load(memory.address + start) == contents_of(NBYTES)[start : start + 8]
                if mode != "r":
                    store(memory.address + MOST * BLOCK, bytes(NBYTES - MOST * BLOCK))
                memory.evict()
                assert is_there(memory, 0, MOST)
                assert memory.stats().resident_nbytes <= LIMIT
                assert os.pwrite(out, part, 0) == len(part)
                part.release()
            assert peak.last <= MIB
            assert os.pread(out, MOST * BLOCK, 0) == contents_of(MOST * BLOCK)

    @pytest.mark.parametrize("mode", MODES)
    def test_more_is_refused_by_sizes_and_nothing_is_pinned(self, file, mode):
        with region(file(NBYTES), mode) as memory:
            array = words(memory)
            refused = refusal(array[: (MOST + 1) * BLOCK // 8])
            assert refused.startswith("cannot pin 208 KiB of ")
            assert "of its limit of 256 KiB at most 192 KiB can be pinned at a time;" in refused
            assert "raise resident_limit by 16 KiB" in refused
            assert (memory.stats().pinned_nbytes, memory.stats().bytes_read) == (0, 0)
            with pinned(array[: 10 * 2048]):
                assert ", 160 KiB are pinned already;" in refusal(array[8 * 2048 : 13 * 2048])
                assert blocks_pinned(memory) == 10
                with pinned(array[: 12 * 2048]):
                    assert blocks_pinned(memory) == 12
            del array

    @pytest.mark.parametrize(
        ("mode", "blocks", "limit", "most"),
        [("r", 8, 8, 8), ("r+", 8, 8, 4), ("c", 8, 9, 8), ("r", 8, 7, 3), ("r+", 6, 8, 6)],
    )
    def test_a_region_as_large_as_its_limit(self, file, out, mode, blocks, limit, most):
        with region(file(blocks * BLOCK), mode, limit) as memory:
            assert memory.pinnable == most * BLOCK
            with pinned(words(memory)[: most * 2048]) as part:
                assert memory.stats().resident_nbytes <= limit * BLOCK
                assert os.pwrite(out, part, 0) == most * BLOCK
                if mode != "r":
                    os.pwrite(out, contents_of(most * BLOCK, 1), 0)
                    assert os.preadv(out, [part], 0) == most * BLOCK
                    memory.flush()
            assert (part == expected(most * BLOCK, int(mode != "r"))).all()
            del part

    def test_huge_writable_blocks_leave_eight(self, file):
        block = 2 * MIB
        with region(file(40 * MIB), "r+", block_size=block, resident_limit=34 * block) as memory:
            assert memory.pinnable == 20 * block
        with region(file(80 * MIB), "r+", block_size=block, resident_limit=36 * block) as memory:
            assert memory.pinnable == 28 * block

    def test_no_limit(self, file):
        with region(file(NBYTES), "r+", resident_limit=None) as memory, pinned(memory):
            assert blocks_pinned(memory) == BLOCKS


class TestStays:
    def test_as_long_as_the_last_of_those_that_overlap(self, file):
        with region(file(NBYTES)) as memory:
            array = words(memory)
            with pinned(array[: 6 * 2048]), contextlib.ExitStack() as second:
                second.enter_context(pinned(array[4 * 2048 : 8 * 2048]))
                with pinned(array[: 2 * 2048]):
                    assert blocks_pinned(memory) == 8
                second.close()
                assert blocks_pinned(memory) == 6
                memory.evict()
                assert is_there(memory, 0, 6)
                assert not is_there(memory, 7, 1)
            memory.evict()
            assert not (states_at(memory.address, NBYTES // PAGE_SIZE) & PageState.PRESENT).any()
            del array

    def test_an_exception_releases_it(self, file):
        with region(file(NBYTES)) as memory:
            with contextlib.suppress(KeyError), pinned(words(memory)[:4096]):
                assert blocks_pinned(memory) == 2
                raise KeyError
            assert blocks_pinned(memory) == 0

    @pytest.mark.parametrize("mode", MODES)
    def test_whatever_was_under_way_with_its_blocks(self, file, out, mode):
        """They come from standby, from read-ahead, from being written, and partly discarded."""
        with region(file(NBYTES), mode, prefetch="auto") as memory, memoryview(memory) as view:
            rng = np.random.default_rng(1)
            for turn in range(60):
                first = int(rng.integers(0, BLOCKS - 8))
                for block in rng.integers(0, BLOCKS, 10).tolist():
                    load(memory.address + block * BLOCK)
                if mode != "r":
                    at = int(rng.integers(0, BLOCKS))
                    store(
                        memory.address + at * BLOCK,
                        bytes(contents_of(NBYTES)[at * BLOCK :][:64]),
                    )
                elif turn % 3 == 0:
                    page = memory.address + first * BLOCK + PAGE_SIZE
                    lowlevel.madvise(page, PAGE_SIZE, mmap.MADV_DONTNEED)
                memory.prefetch(first * BLOCK, 4 * BLOCK)
                with pinned(view[first * BLOCK : (first + 8) * BLOCK]) as part:
                    assert os.pwrite(out, part, 0) == len(part)
                    part.release()
                found = os.pread(out, 8 * BLOCK, 0)
                assert found == contents_of(NBYTES)[first * BLOCK : (first + 8) * BLOCK]
            assert memory.stats().pinned_nbytes == 0

    def test_a_store_that_is_refused_takes_it_away_for_a_moment_only(self, file, out):
        with (
            region(file(NBYTES)) as memory,
            memoryview(memory) as view,
            pinned(view[:32768]) as part,
        ):
            with pytest.raises(Struck):
                store(memory.address, b"x")
            # Nobody touches it, and looking brings nothing back.
            wait_for(lambda: is_there(memory, 0, 2))
            wait_for(lambda: answers(out, part))
            assert os.pread(out, 32768, 0) == contents_of(32768)
            part.release()

    def test_a_block_that_cannot_be_read(self, file):
        path = file(NBYTES)
        faults = [Fault("read", first=2, count=1 << 30, errno=errno.EIO)]
        with region(path, faults=faults, store_timeout=0.05) as memory:
            part = memory.asarray(np.uint8)[: 8 * BLOCK]
            with pytest.raises(StoreError, match="cannot read"), pinned(part):
                pass
            del part
            assert memory.stats().pinned_nbytes == 0

    @pytest.mark.parametrize("mode", MODES)
    def test_a_page_that_cannot_be_read_again(self, file, mode):
        """The rest of its block is in memory, and where the page was there is a mark of poison."""
        faults = [Fault("read", first=1, count=1 << 30, errno=errno.EIO)]
        how = {"prefetch": "off", "store_timeout": 0.05}
        with region(file(NBYTES), mode, faults=faults, **how) as memory:
            load(memory.address)
            lowlevel.madvise(memory.address + PAGE_SIZE, PAGE_SIZE, mmap.MADV_DONTNEED)
            part = memory.asarray(np.uint8)[:BLOCK]
            with pytest.raises(StoreError, match="cannot read"), pinned(part):
                pass
            del part
            assert memory.stats().pinned_nbytes == 0
