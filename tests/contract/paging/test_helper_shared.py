"""One helper process for many regions: who shares it, and what becomes of the others."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pagemove import PagedMemory, StoreError
from pagemove.stores import CompressedStore, Store
from support import child, fork, together, wait_for
from support.helpers import has_ended, helpers, numbered, reined, reined_region, stored, touch

pytestmark = pytest.mark.needs("paging", "fork")

K = 1024
N = 16
MANY = 20


class Moody(Store):
    """Does what it is told to, in its next read or write."""

    nbytes = N * 4 * K

    def __init__(self, path: Path, mood: str = "", *, writes: bool = False) -> None:
        self.path, self.mood, self.writes = path, mood, writes

    @property
    def writable(self) -> bool:
        return self.writes

    def read_into(self, offset: int, buffer: Any) -> None:
        if self.mood and offset:
            self._misbehave()
        memoryview(buffer)[:] = b"x" * len(buffer)

    def write(self, offset: int, data: Any) -> None:
        self._misbehave()

    def _misbehave(self) -> None:
        self.path.touch()
        if self.mood == "dies":
            os._exit(1)
        if self.mood == "keeps the GIL":
            ctypes.PyDLL(None).sleep(600)
        else:
            time.sleep(600)


def moody(folder: Path, mood: str, **how: Any) -> PagedMemory:
    store = Moody(folder / mood.replace(" ", "-"), mood, writes=how.get("mode") == "r+")
    return PagedMemory(store, block_size=4 * K, prefetch="off", **{"store_timeout": 1} | how)


class TestSharing:
    def test_many_regions_have_one(self, tmp_path):
        child(_many, tmp_path, deadline=60)

    def test_stores_that_lose_what_they_have_share_one_of_their_own(self, tmp_path):
        pytest.importorskip("zstandard")
        child(_volatile, tmp_path, deadline=60)

    def test_isolated_it_has_one_of_its_own(self, tmp_path):
        child(_isolated, tmp_path, deadline=60)

    def test_what_would_be_started_otherwise_is_another(self, tmp_path):
        """Another folder, another environment, another child of a fork: not the same process."""
        child(_otherwise, tmp_path, deadline=60)

    def test_each_has_a_store_of_its_own(self, tmp_path):
        child(_copies, tmp_path, deadline=60)

    def test_they_can_be_opened_at_once(self, tmp_path):
        child(_at_once, tmp_path, deadline=60)

    def test_one_that_cannot_be_unpickled_leaves_the_others_alone(self, tmp_path):
        child(_not_unpickled, tmp_path, deadline=60)


def _many(folder: Path) -> None:
    regions = [reined_region(folder) for _ in range(MANY)]
    (pid,) = helpers()
    words = numbered(N * 4 * K)
    for number, (_, region) in enumerate(regions):
        assert touch(region.address + 4 * K * (number % N)) == words[512 * (number % N)].tobytes()
    *others, (_, last) = regions[::2] + regions[1::2]
    for _, region in others:
        region.close()
        assert helpers() == [pid]
    assert touch(last.address + 8) == words[1].tobytes()
    last.close()
    assert helpers() == []


def _volatile(folder: Path) -> None:
    first, second = (PagedMemory(CompressedStore(1 << 20), mode="r+") for _ in range(2))
    assert len(helpers()) == 1
    _, third = reined_region(folder)
    assert len(helpers()) == 2
    for number, region in enumerate((first, second)):
        array = region.asarray(np.uint64)
        array[:] = number + 1
        region.evict()
        assert (array == number + 1).all()
        del array
    for region in (third, first, second):
        region.close()
    assert helpers() == []


def _isolated(folder: Path) -> None:
    _, first = reined_region(folder)
    _, alone = reined_region(folder, isolated=True)
    assert len(helpers()) == 2
    _, second = reined_region(folder)
    assert len(helpers()) == 2
    alone.close()
    (pid,) = helpers()
    for region in (first, second):
        touch(region.address)
        region.close()
    assert has_ended(pid)


def _otherwise(folder: Path) -> None:
    with reined_region(folder)[1]:
        (first,) = helpers()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PAGEMOVE_ANYTHING", "1")
            with reined_region(folder)[1]:
                assert len(helpers()) == 2
        with contextlib.chdir(folder), reined_region(folder)[1]:
            assert len(helpers()) == 2
        pid = fork()
        if not pid:
            with reined_region(folder)[1] as region:
                right = len(helpers()) == 1 and touch(region.address)
            os._exit(0 if right and not helpers() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        with reined_region(folder)[1] as region:
            touch(region.address)
            assert helpers() == [first]
    assert helpers() == []


class Remembering(Store):
    """Each read says how many there were."""

    nbytes = N * 4 * K
    reads = 0

    def read_into(self, offset: int, buffer: Any) -> None:
        self.reads += 1
        memoryview(buffer)[:] = bytes([self.reads]) * len(buffer)


def _copies(_: Path) -> None:
    store = Remembering()
    how: dict[str, Any] = {"block_size": 4 * K, "prefetch": "off", "store_timeout": 20}
    with PagedMemory(store, **how) as one, PagedMemory(store, **how) as other:
        assert len(helpers()) == 1
        for number in range(3):
            assert touch(one.address + 4 * K * number, 1) == bytes([number + 1])
        assert touch(other.address, 1) == b"\1"


def _at_once(folder: Path) -> None:
    found: list[PagedMemory] = []
    stores = [reined(folder, numbered(N * 4 * K)) for _ in range(4)]

    def open_one(number: int) -> None:
        found.append(PagedMemory(stores[number], block_size=4 * K, store_timeout=20))

    together(*(lambda number=number: open_one(number) for number in range(4)), deadline=50)
    # On a machine that takes long to start one, others do not wait for it.
    assert 1 <= len(helpers()) <= 4
    for region in found:
        assert touch(region.address) == numbered(8).tobytes()
        region.close()
    wait_for(lambda: not helpers())


class Broken(Moody):
    def __setstate__(self, state: object) -> None:
        raise RuntimeError("no such place")


def _not_unpickled(folder: Path) -> None:
    with reined_region(folder)[1] as region:
        (pid,) = helpers()
        before = len(os.listdir(f"/proc/{pid}/fd"))
        for _ in range(3):
            with pytest.raises(OSError, match="no such place"):
                PagedMemory(Broken(folder / "broken"))
        assert helpers() == [pid]
        wait_for(lambda: len(os.listdir(f"/proc/{pid}/fd")) == before)
        touch(region.address)
        assert region.counters()["restarts"] == 0


class TestBesideOthers:
    # One that dies is started again and again until its time is over.
    @pytest.mark.parametrize(
        "mood", [pytest.param("dies", marks=pytest.mark.slow), "keeps the GIL"]
    )
    def test_one_that_ends_the_process_is_a_restart_for_the_others(self, tmp_path, mood):
        """Nothing that was changed is lost; and from then on all are alone."""
        child(_ended, tmp_path, mood, deadline=90)

    def test_one_whose_read_hangs_can_be_closed(self, tmp_path):
        child(_hung_read, tmp_path, deadline=60)

    def test_one_whose_write_hangs_ends_the_process_when_it_is_closed(self, tmp_path):
        """Else it could land in the store after what a later region writes."""
        child(_hung_write, tmp_path, deadline=60)


def _ended(folder: Path, mood: str) -> None:
    regions = [reined_region(folder, mode="r+", resident_limit=32 * K) for _ in range(2)]
    bad = moody(folder, mood, store_timeout=20 if mood == "dies" else 1)
    (shared,) = helpers()
    words = numbered(N * 4 * K)
    arrays = [region.asarray(np.uint64) for _, region in regions]
    for array in arrays:
        array[::512] += np.uint64(1)  # more than the limit: half is written, half is not
    with contextlib.suppress(OSError):
        touch(bad.address + 4 * K)
    wait_for(lambda: has_ended(shared), 30)
    words[::512] += np.uint64(1)
    for (store, region), array in zip(regions, arrays, strict=True):
        assert np.array_equal(array, words)
        region.flush()
        assert np.array_equal(stored(store), words)
        assert region.counters()["restarts"] == 1
    own = set(helpers())
    assert len(own) >= 2
    # That was not their fault: they are started anew once more.
    if mood == "dies":
        with pytest.raises(StoreError):
            bad.flush()
        assert bad.counters()["restarts"] == 2
    bad.close()
    for pid in helpers():
        os.kill(pid, signal.SIGKILL)
    for (_, region), array in zip(regions, arrays, strict=True):
        region.evict()
        assert np.array_equal(array, words)
        assert region.counters()["restarts"] == 2
    del array, arrays
    for _, region in regions:
        region.close()
    assert not helpers()


def _hung_read(folder: Path) -> None:
    _, region = reined_region(folder)
    bad = moody(folder, "hangs")
    (shared,) = helpers()
    with pytest.raises(OSError, match="Bad address"):
        touch(bad.address + 4 * K)
    words = numbered(N * 4 * K)
    for number in range(4):
        assert touch(region.address + 4 * K * number) == words[512 * number].tobytes()
    bad.close()
    assert helpers() == [shared]
    assert touch(region.address + 8 * 4 * K) == words[8 * 512].tobytes()
    assert region.counters()["restarts"] == 0
    region.close()
    assert not helpers()


def _hung_write(folder: Path) -> None:
    store, region = reined_region(folder, mode="r+")
    bad = moody(folder, "hangs", mode="r+")
    (shared,) = helpers()
    array, changed = region.asarray(np.uint64), bad.asarray(np.uint64)
    array[0] = changed[0] = 5
    with pytest.raises(StoreError):
        bad.flush()
    del changed
    bad._unsaved = bad._forgettable = True
    del bad
    assert has_ended(shared)
    region.flush()
    assert stored(store)[0] == array[0] == 5
    assert region.counters()["restarts"] == 1
    del array
    region.close()
