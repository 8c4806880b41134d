"""paging/region.py: a PagedMemory as a buffer, and what each of its methods does and refuses."""

from __future__ import annotations

import errno
import mmap
from pathlib import Path

import numpy as np
import pytest

import pagemove
from pagemove import PagedMemory, UnsupportedError, lowlevel
from pagemove.paging import region as region_module
from pagemove.stores import FileStore
from support import child, vmas_in

from .files import BLOCK, CONTENTS, N, opened

pytestmark = [pytest.mark.needs("move"), pytest.mark.usefixtures("no_leak")]


class TestAsMemory:
    @pytest.mark.parametrize("mode", ["r", "r+", "c"])
    def test_has_the_contents_of_the_store(self, path, mode):
        with opened(path, mode) as region:
            assert region.nbytes == len(memoryview(region)) == N
            assert bytes(memoryview(region)) == CONTENTS
            assert np.frombuffer(region, np.uint8).tobytes() == CONTENTS
            assert region.asarray("u1")[-5:].tobytes() == CONTENTS[-5:]
            assert region.stats().resident_nbytes <= 4 * BLOCK

    def test_ends_where_the_store_does(self, path):
        with opened(path) as region:
            with pytest.raises(IndexError):
                memoryview(region)[N]
            # Up to the end of its block memory is there, and zero.
            array = region.asarray("u1")
            behind = lowlevel.mincore(array.ctypes.data + N // 4096 * 4096, 4096)
            assert len(behind) == 1
            del array

    @pytest.mark.parametrize("mode", ["r", "r+", "c"])
    def test_may_be_written_as_the_mode_says(self, path, mode):
        with opened(path, mode) as region:
            view, array = memoryview(region), region.asarray("<u4")
            assert view.readonly == (mode == "r")
            assert array.flags.writeable == (mode != "r")
            if mode == "r":
                with pytest.raises(ValueError, match="read-only"):
                    array[0] = 1
                with pytest.raises(ValueError, match="WRITEABLE"):
                    array.flags.writeable = True
            else:
                array[0] = 7
                assert bytes(view[:4]) == b"\7\0\0\0"
            del view, array

    def test_arrays_of_any_kind(self, path):
        with opened(path) as region:
            array = region.asarray("<u2", (3, 5), offset=8)
            assert array.shape == (3, 5)
            assert array.tobytes() == CONTENTS[8:38]
            assert region.asarray("S3", 2, 1).tolist() == [CONTENTS[1:4], CONTENTS[4:7]]
            assert region.asarray("<f8").size == N // 8
            assert region.asarray("u1", (0, 3), N).size == 0
            assert region.asarray("u1", (), 5)[()] == CONTENTS[5]
            del array

    @pytest.mark.parametrize(
        ("arguments", "kind", "reason"),
        [
            (("O",), TypeError, "Python objects"),
            (("u1", N + 1), ValueError, f"does not fit into {N}"),
            (("u1", -1), ValueError, "does not fit"),
            (("u1", None, N + 1), ValueError, "offset"),
            (("V0",), ValueError, "pass a shape"),
        ],
    )
    def test_impossible_arrays(self, path, arguments, kind, reason):
        with opened(path) as region, pytest.raises(kind, match=reason):
            region.asarray(*arguments)

    def test_address(self, path):
        with opened(path) as region:
            array = region.asarray("u1")
            assert region.address == array.ctypes.data
            assert region.address % (2 << 20) == 0
            del array

    def test_properties(self, path):
        with FileStore(path) as store:
            region = PagedMemory(store, resident_limit="256KiB", block_size="16KiB")
            with region:
                assert region.store is store
                assert (region.mode, region.resident_limit, region.block_size) == (
                    "r",
                    1 << 18,
                    1 << 14,
                )
        with opened(path, "c", resident_limit=None) as region:
            assert (region.mode, region.resident_limit) == ("c", None)
            assert isinstance(region.kernel_faults, bool)

    def test_name(self, path):
        with opened(path, name="my pages") as region:
            named = "[anon:my pages]" in [vma[3] for vma in vmas_in(region.address, N)]
            assert named or not pagemove.features().vma_names

    def test_repr(self, path):
        with opened(path, "c", resident_limit="1MiB") as region:
            assert repr(region) == (
                f"<PagedMemory of 2.5 MiB over {path}, mode 'c', at most 1 MiB resident>"
            )
        assert repr(region) == f"<closed PagedMemory over {path}>"
        with opened(path, resident_limit=None) as region:
            assert repr(region) == f"<PagedMemory of 2.5 MiB over {path}, mode 'r'>"
        bare = PagedMemory.__new__(PagedMemory)
        assert "never opened" in repr(bare)


class TestPrefetchAndEvict:
    def test_prefetched_blocks_are_there(self, path):
        with opened(path, resident_limit="2MiB", prefetch="off") as region:
            region.prefetch(3 * BLOCK, 2 * BLOCK, wait=True)
            before = region.stats()
            assert (before.prefetched, before.faults) == (2, 0)
            array = region.asarray("u1")
            assert array[3 * BLOCK : 5 * BLOCK].tobytes() == CONTENTS[3 * BLOCK : 5 * BLOCK]
            assert (region.stats() - before).bytes_read == 0
            del array

    def test_at_most_what_there_is_room_for(self, path):
        with opened(path) as region:
            region.prefetch(wait=True)
            assert 0 < region.stats().prefetched <= 4
            assert region.stats().resident_nbytes <= 4 * BLOCK

    def test_evicted_blocks_are_read_again(self, path):
        with opened(path, resident_limit=None, prefetch="off") as region:
            array = region.asarray("u1")
            assert array[7 * BLOCK] == CONTENTS[7 * BLOCK]
            before = region.stats()
            assert before.resident_nbytes >= BLOCK
            region.evict(7 * BLOCK + 5, 1)
            assert region.stats().resident_nbytes < before.resident_nbytes
            assert array[7 * BLOCK] == CONTENTS[7 * BLOCK]
            between = region.stats() - before
            assert (between.evicted, between.faults) == (1, 1)
            assert between.bytes_read == BLOCK
            del array

    def test_evicting_writes_back_first(self, path):
        with opened(path, "r+") as region:
            array = region.asarray("u1")
            array[5 * BLOCK] ^= 255
            region.evict()
            assert path.read_bytes()[5 * BLOCK] == CONTENTS[5 * BLOCK] ^ 255
            assert region.stats().written_back == 1
            assert region.stats().dirty_nbytes == 0
            del array

    @pytest.mark.parametrize("method", ["prefetch", "evict"])
    @pytest.mark.parametrize(
        ("offset", "length"), [(-1, 1), (0, N + 1), (N + 1, 0), (N, 1), (5, -1), (2**64, 1)]
    )
    def test_ranges_outside(self, path, method, offset, length):
        with opened(path) as region, pytest.raises(ValueError, match=f"not within the {N} of"):
            getattr(region, method)(offset, length)

    @pytest.mark.parametrize("method", ["prefetch", "evict"])
    def test_ranges_of_nothing_and_to_the_end(self, path, method):
        with opened(path) as region:
            region.prefetch(0, 1, wait=True)
            before = region.stats()
            getattr(region, method)(5, 0)
            getattr(region, method)(BLOCK, 0)
            after = region.stats()
            assert (after.prefetched, after.evicted) == (before.prefetched, before.evicted)
            getattr(region, method)(N)
            getattr(region, method)(N - 1)
            with pytest.raises(TypeError):
                getattr(region, method)("0")


class TestWriting:
    def test_flush_puts_changes_into_the_file(self, path):
        # With a limit they may have been written to make room.
        with opened(path, "r+", resident_limit=None) as region:
            array = region.asarray("u1")
            array[::BLOCK] = 17
            assert region.stats().dirty_nbytes > 0
            region.flush()
            assert region.stats().dirty_nbytes == 0
            expected = np.frombuffer(CONTENTS, "u1").copy()
            expected[::BLOCK] = 17
            assert path.read_bytes() == expected.tobytes()
            del array

    def test_close_flushes(self, path):
        with opened(path, "r+") as region:
            memoryview(region)[N - 1 :] = b"!"
        assert path.read_bytes() == CONTENTS[:-1] + b"!"

    def test_private_changes_survive_eviction_and_stay_private(self, path):
        with opened(path, "c") as region:
            array = region.asarray("u1")
            array[::BLOCK] = 99
            assert array[:: BLOCK // 2].sum(dtype=int) > 0
            region.evict()
            assert (array[::BLOCK] == 99).all()
            assert array[1::BLOCK].tobytes() == CONTENTS[1::BLOCK]
            region.flush()
            del array
        assert path.read_bytes() == CONTENTS

    def test_read_only_regions_flush_nothing(self, path):
        before = path.stat().st_mtime_ns
        with opened(path) as region:
            region.flush()
        assert path.stat().st_mtime_ns == before

    def test_r_plus_needs_a_writable_store(self, path):
        with FileStore(path) as store, pytest.raises(ValueError, match=r"writable=True.*mode 'c'"):
            PagedMemory(store, mode="r+")


class TestUnsupported:
    def test_says_what_doctor_says(self, path, monkeypatch):
        def refuse(*_, **__):
            raise OSError(errno.EPERM, "cannot set up paged memory: Operation not permitted")

        def features(*, refresh):
            assert refresh
            return Found()

        class Found:
            def require(self, *names):
                raise UnsupportedError(errno.EPERM, f"{names}: the remedy")

        monkeypatch.setattr(region_module.Closing, "__init__", refuse, raising=False)
        monkeypatch.setattr("pagemove.probing.features", features)
        with pytest.raises(UnsupportedError, match=r"paging.*the remedy"):
            opened(path)

    @pytest.mark.needs("seccomp", "fork")
    def test_really_refused(self, path):
        assert child(_refused, path) == "userfaultfd"


def _refused(path: Path) -> str:
    from support import system

    system.refuse_userfaultfd(errno.EPERM)
    if pagemove.features(refresh=True).userfaultfd_device:
        return "userfaultfd"  # by another door it works
    with pytest.raises(UnsupportedError, match="Remedy:") as caught:
        opened(path)
    return "userfaultfd" if "userfaultfd" in str(caught.value) else str(caught.value)


def test_discarding_clean_memory_has_it_read_again(path):
    with opened(path, resident_limit=None, prefetch="off") as region:
        array = region.asarray("u1")
        assert array[3 * BLOCK] == CONTENTS[3 * BLOCK]
        lowlevel.madvise(region.address + 3 * BLOCK, BLOCK, mmap.MADV_DONTNEED)
        assert array[3 * BLOCK : 4 * BLOCK].tobytes() == CONTENTS[3 * BLOCK : 4 * BLOCK]
        del array
