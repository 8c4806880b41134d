"""What users of a region see of a store that fails: StoreError, and where it is raised once."""

from __future__ import annotations

import errno
import gc
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from pagemove import PagedMemory, StoreError
from pagemove.paging.failures import Failure, throw
from pagemove.testing import Fault, FaultyStore
from support import ChildFailed, child, vmas_in

BLOCK = 65536
N = 20 * BLOCK
CONTENTS = np.random.default_rng(9).bytes(N)

FOR_EVER = 0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "file"
    found.write_bytes(CONTENTS)
    return found


def opened(path: Path, *faults: Fault, mode: str = "r+", **options: object) -> PagedMemory:
    with FaultyStore(path, writable=True, faults=faults) as store:
        return PagedMemory(store, mode=mode, prefetch="off", **{"store_timeout": 0.05, **options})


class TestMessages:
    READ = Failure.of((3, 0, 2 * BLOCK, errno.EIO, 7))
    FLUSH = Failure.of((4, 2, 0, errno.ENOSPC, 1))

    def test_say_what_where_how_often_and_what_to_do(self):
        error = self.READ.error("/data/x")
        assert (error.errno, error.operation, error.offset) == (errno.EIO, "read", 2 * BLOCK)
        text = str(error)
        assert "cannot read /data/x at byte 131072 in 7 tries: EIO (Input/output error);" in text
        assert "SIGBUS" in text
        assert "evict()" in text

    def test_of_a_flush(self):
        error = self.FLUSH.error("/data/x")
        assert (error.operation, error.offset) == ("flush", None)
        assert "cannot make durable /data/x: ENOSPC" in str(error)
        assert "then call flush() again" in str(error)

    def test_several_are_one_with_notes(self):
        with pytest.raises(StoreError, match="cannot read") as caught:
            throw([self.READ, self.FLUSH], 5, "read", "/data/x")
        assert len(caught.value.__notes__) == 1
        assert caught.value.__notes__[0].startswith("also: cannot make durable /data/x")

    def test_where_nothing_is_known_but_an_errno(self):
        with pytest.raises(StoreError, match="cannot write /data/x: ENOSPC") as caught:
            throw([], errno.ENOSPC, "write", "/data/x")
        assert caught.value.offset is None


@pytest.mark.needs("move", "poison")
@pytest.mark.usefixtures("no_leak")
class TestReads:
    def test_tried_again_until_they_succeed(self, path):
        with opened(path, Fault("read", count=3, errno=errno.EIO), store_timeout=10) as region:
            array = region.asarray("u1")
            assert array[:9].tobytes() == CONTENTS[:9]
            stats = region.stats()
            assert (stats.retries, stats.errors, stats.failures) == (3, 0, ())
            region.flush()
            del array

    @pytest.mark.parametrize(
        ("fault", "code"),
        [
            (Fault("read", count=FOR_EVER, errno=errno.ETIMEDOUT), errno.ETIMEDOUT),
            (Fault("read", count=FOR_EVER, short=10), errno.EIO),
        ],
    )
    def test_prefetch_with_wait_raises(self, path, fault, code):
        with opened(path, fault) as region:
            with pytest.raises(StoreError) as caught:
                region.prefetch(3 * BLOCK, BLOCK, wait=True)
            error = caught.value
            assert (error.errno, error.operation) == (code, "read")
            assert (error.store, error.offset) == (str(path), 3 * BLOCK)
            stats = region.stats()
            assert stats.errors == 1
            assert [str(each) for each in stats.failures] == [str(error)]

    def test_prefetch_raises_again_until_the_block_was_evicted(self, path):
        with opened(path, store_timeout=0) as region:
            os.truncate(path, BLOCK)
            with pytest.raises(StoreError) as caught:
                region.prefetch(BLOCK, 5, wait=True)
            assert caught.value.offset == BLOCK
            path.write_bytes(CONTENTS)
            with pytest.raises(StoreError) as caught:
                region.prefetch(0, 2 * BLOCK, wait=True)
            assert caught.value.offset == BLOCK
            region.prefetch(0, BLOCK, wait=True)
            region.evict(BLOCK, 1)
            region.prefetch(BLOCK, 5, wait=True)
            array = region.asarray("u1")
            assert array[BLOCK : 2 * BLOCK].tobytes() == CONTENTS[BLOCK : 2 * BLOCK]
            del array

    def test_the_first_of_several_blocks_ends_it(self, path):
        fault = Fault("read", count=FOR_EVER, errno=errno.EIO)
        with opened(path, fault, store_timeout=0) as region:
            with pytest.raises(StoreError) as caught:
                region.prefetch(0, 3 * BLOCK, wait=True)
            assert "at byte 0" in str(caught.value)
            assert len(region.stats().failures) == 1

    def test_without_wait_nobody_is_told_before_it_matters(self, path):
        fault = Fault("read", count=FOR_EVER, errno=errno.EIO)
        with opened(path, fault) as region:
            region.prefetch(0, BLOCK)
            region.flush()

    def test_flush_raises_once(self, path):
        fault = Fault("read", count=FOR_EVER, errno=errno.EIO)
        with opened(path, fault, mode="r", store_timeout=0) as region:
            with pytest.raises(StoreError, match="SIGBUS"):
                region.prefetch(0, 1, wait=True)
            with pytest.raises(StoreError) as caught:
                region.flush()
            assert (caught.value.operation, caught.value.offset) == ("read", 0)
            region.flush()
            assert len(region.stats().failures) == 1

    def test_closing_is_not_stopped_by_what_could_not_be_read(self, path):
        fault = Fault("read", first=1, count=FOR_EVER, errno=errno.EIO)
        with opened(path, fault, store_timeout=0) as region:
            region.asarray("u1")[BLOCK] = 7
            with pytest.raises(StoreError):
                region.prefetch(2 * BLOCK, 1, wait=True)
        assert path.read_bytes()[BLOCK] == 7

    def test_a_touch_is_a_sigbus_and_a_message(self, path, capfd):
        def touch() -> int:
            fault = Fault("read", count=FOR_EVER, errno=errno.EIO)
            return int(opened(path, fault).asarray("u1")[2 * BLOCK])

        with pytest.raises(ChildFailed) as caught:
            child(touch)
        assert caught.value.signal == signal.SIGBUS
        told = capfd.readouterr().err
        assert str(path) in told
        assert str(2 * BLOCK) in told

    def test_a_system_call_is_an_efault(self, path):
        fault = Fault("read", count=FOR_EVER, errno=errno.EIO)
        with opened(path, fault) as region, open("/dev/zero", "rb", buffering=0) as zero:
            if not region.kernel_faults:
                pytest.skip("user mode faults only")
            view = memoryview(region)
            with pytest.raises(OSError, match="Bad address") as caught:
                zero.readinto(view[:10])
            assert caught.value.errno == errno.EFAULT
            del view, caught

    def test_a_file_that_was_cut_short(self, path):
        with opened(path) as region:
            with path.open("r+b") as file:
                file.truncate(5 * BLOCK)
            region.prefetch(4 * BLOCK, BLOCK, wait=True)
            with pytest.raises(StoreError, match="fewer bytes than there should be") as caught:
                region.prefetch(6 * BLOCK, BLOCK, wait=True)
            assert caught.value.offset == 6 * BLOCK


@pytest.mark.needs("move")
@pytest.mark.usefixtures("no_leak")
class TestWrites:
    @pytest.mark.parametrize(
        "fault",
        [
            Fault("write", count=3, errno=errno.ENOSPC),
            Fault("write", count=3, short=BLOCK // 2),
        ],
    )
    def test_tried_again_until_they_succeed(self, path, fault):
        with opened(path, fault, store_timeout=10) as region:
            region.asarray("u1")[5] = CONTENTS[5] ^ 1
            region.flush()
            assert path.read_bytes()[5] == CONTENTS[5] ^ 1
            stats = region.stats()
            assert stats.errors == 0
            assert stats.retries >= 1

    def test_flush_raises_and_nothing_is_lost(self, path):
        with opened(path, Fault("write", count=4, errno=errno.ENOSPC), store_timeout=0) as region:
            array = region.asarray("u1")
            array[3 * BLOCK] = CONTENTS[3 * BLOCK] ^ 1
            with pytest.raises(StoreError) as caught:
                region.flush()
            error = caught.value
            assert (error.errno, error.operation) == (errno.ENOSPC, "write")
            assert (error.store, error.offset) == (str(path), 3 * BLOCK)
            assert path.read_bytes() == CONTENTS
            assert region.stats().dirty_nbytes == BLOCK
            failed = 1
            while region.stats().dirty_nbytes:
                try:
                    region.flush()
                except StoreError:
                    failed += 1
            assert 1 < failed <= 4
            assert path.read_bytes()[3 * BLOCK] == CONTENTS[3 * BLOCK] ^ 1
            region.flush()
            del array

    def test_close_raises_and_the_region_stays_open(self, path):
        region = opened(path, Fault("write", errno=errno.EDQUOT), store_timeout=0)
        array = region.asarray("u1")
        array[0] = CONTENTS[0] ^ 1
        with pytest.raises(StoreError) as caught:
            region.close()
        assert caught.value.errno == errno.EDQUOT
        assert not region.closed
        assert array[0] == CONTENTS[0] ^ 1
        del array
        region.close()
        assert path.read_bytes()[0] == CONTENTS[0] ^ 1

    def test_an_exception_does_not_keep_the_region(self, path, capsys):
        region = opened(path, Fault("write", count=FOR_EVER, errno=errno.EIO), store_timeout=0)
        region.asarray("u1")[0] ^= 1
        with pytest.raises(StoreError):
            region.flush()
        address = region.address
        gc.disable()
        try:
            with pytest.warns(ResourceWarning, match="never closed"):
                del region
        finally:
            gc.enable()
        assert not vmas_in(address, N)
        assert "could not be saved" in capsys.readouterr().err

    def test_evict_raises_and_the_block_stays(self, path):
        with opened(path, Fault("write", errno=errno.EIO), store_timeout=0) as region:
            array = region.asarray("u1")
            array[BLOCK] = CONTENTS[BLOCK] ^ 1
            with pytest.raises(StoreError) as caught:
                region.evict()
            assert (caught.value.errno, caught.value.operation) == (errno.EIO, "write")
            assert array[BLOCK] == CONTENTS[BLOCK] ^ 1
            assert region.stats().dirty_nbytes == BLOCK
            del array

    def test_what_is_not_durable_is_said(self, path):
        with opened(path, Fault("flush", errno=errno.EIO)) as region:
            region.asarray("u1")[0] = CONTENTS[0] ^ 1
            with pytest.raises(StoreError, match="may not be durable") as caught:
                region.flush()
            assert (caught.value.operation, caught.value.offset) == ("flush", None)
            region.flush()
        assert path.read_bytes()[0] == CONTENTS[0] ^ 1

    def test_a_failed_read_is_reported_after_the_writes(self, path):
        faults = (
            Fault("read", first=1, count=FOR_EVER, errno=errno.EIO),
            Fault("write", errno=errno.ENOSPC),
        )
        with opened(path, *faults, store_timeout=0) as region:
            region.asarray("u1")[BLOCK] ^= 1
            with pytest.raises(StoreError):
                region.prefetch(2 * BLOCK, 1, wait=True)
            operations = []
            for _ in range(3):
                try:
                    region.flush()
                except StoreError as error:
                    operations.append(error.operation)
            assert operations == ["write", "read"]
