"""paging/closing.py: how a PagedMemory ends: closed, forgotten, with views of it; who owns it."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import warnings

import numpy as np
import pytest

from pagemove import Memory, PagedMemory
from pagemove.stores import FileStore
from support import vmas_in

from .files import CONTENTS, N, opened

pytestmark = [pytest.mark.needs("move"), pytest.mark.usefixtures("no_leak")]


class TestEnds:
    def test_everything_is_a_value_error_once_closed(self, path):
        region = opened(path, "r+")
        address = region.address
        region.close()
        region.close()
        assert region.closed
        assert not vmas_in(address, N)
        for use in (
            memoryview,
            bytes,
            lambda r: r.address,
            lambda r: r.asarray("u1"),
            lambda r: r.prefetch(),
            lambda r: r.prefetch(0, 1, wait=True),
            lambda r: r.evict(),
            lambda r: r.flush(),
            lambda r: r.stats(),
            lambda r: r.kernel_faults,
        ):
            with pytest.raises(ValueError, match="closed"):
                use(region)

    @pytest.mark.parametrize(
        "take", [memoryview, lambda r: r.asarray("u1"), lambda r: np.frombuffer(r, "u1")[3:]]
    )
    @pytest.mark.parametrize("mode", ["r", "r+"])
    def test_views_keep_it_open(self, path, take, mode):
        region = opened(path, mode, block_size=4096)
        view = take(region)
        with pytest.raises(BufferError, match="close"):
            region.close()
        assert not region.closed
        assert bytes(memoryview(region)[:9]) == CONTENTS[:9]
        del view
        region.close()

    def test_views_keep_it_alive(self, path):
        region = opened(path)
        array = region.asarray("u1")
        address = region.address
        del region
        assert array[:3].tobytes() == CONTENTS[:3]
        with pytest.warns(ResourceWarning, match="never closed"):
            del array
        assert not vmas_in(address, N)

    def test_an_exception_is_not_hidden_by_the_arrays_in_its_traceback(self, path):
        def fail(region):
            array = region.asarray("u1")
            array[0] = CONTENTS[0] ^ 1
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError) as caught, opened(path, "r+") as region:
            fail(region)
        address = region.address
        assert path.read_bytes()[0] == CONTENTS[0] ^ 1
        del region, caught
        gc.collect()
        assert not vmas_in(address, N)

    def test_closed_with_changes_under_a_view_they_are_safe_already(self, path):
        region = opened(path, "r+")
        array = region.asarray("u1")
        array[0] = CONTENTS[0] ^ 1
        with pytest.raises(BufferError):
            region.close()
        assert path.read_bytes()[0] == CONTENTS[0] ^ 1
        array[1] = CONTENTS[1] ^ 1
        del array
        region.close()
        assert path.read_bytes()[1] == CONTENTS[1] ^ 1

    def test_forgotten(self, path):
        region = opened(path, "r+")
        memoryview(region)[0:1] = b"!"
        with pytest.warns(ResourceWarning, match=r"PagedMemory of .* was never closed"):
            del region
        assert path.read_bytes() == b"!" + CONTENTS[1:]

    def test_the_store_may_be_closed_and_the_file_removed_before(self, path):
        with opened(path, "r+") as region:
            path.unlink()
            assert region.store.closed
            view = memoryview(region)
            view[5:6] = b"?"
            assert bytes(view[:7]) == CONTENTS[:5] + b"?" + CONTENTS[6:7]
            view.release()

    def test_nothing_is_left_of_one_that_could_not_be_made(self, path):
        with warnings.catch_warnings(), FileStore(path) as store:
            warnings.simplefilter("error")
            before = os.listdir("/proc/self/fd")
            for wrong in ({"block_size": 5}, {"resident_limit": 1}, {"mode": "w"}):
                with pytest.raises(ValueError, match=r".+"):
                    PagedMemory(store, **wrong)
            with pytest.raises(TypeError, match="unexpected keyword"):
                PagedMemory(store, limit=1)
            gc.collect()
            assert os.listdir("/proc/self/fd") == before

    @pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
    def test_has_one_owner(self, path, duplicate):
        with opened(path) as region:
            with pytest.raises(TypeError):
                duplicate(region)
            with pytest.raises(ValueError, match="already"), FileStore(path) as store:
                region.__init__(store)
            for name in ("address", "nbytes", "closed", "mode", "store"):
                with pytest.raises(AttributeError):
                    setattr(region, name, 0)
            assert bytes(memoryview(region)[:9]) == CONTENTS[:9]

    def test_a_closed_store(self, path):
        with FileStore(path) as store:
            pass
        with pytest.raises(ValueError, match="closed FileStore"):
            PagedMemory(store)

    def test_its_own_memory_is_no_store(self, path):
        with opened(path) as region, Memory(4096) as memory:
            for wrong in (region, memory, region.asarray("u1"), memoryview(region)):
                with pytest.raises(TypeError, match="in memory already"):
                    PagedMemory(wrong)
            del wrong
