"""testing/faulty.py: the schedule, as the store itself keeps it."""

from __future__ import annotations

import errno
import gc
import math
import os
import pickle
import time
import warnings
from pathlib import Path

import pytest

from pagemove import StoreError
from pagemove.testing import Fault, FaultyStore

pytestmark = pytest.mark.usefixtures("no_leak")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "file"
    found.write_bytes(b"0123456789")
    return found


def test_the_name_it_had_before():
    from pagemove.stores import faulty

    assert faulty.FaultyFileStore is FaultyStore
    assert faulty.Fault is Fault


class TestFault:
    @pytest.mark.parametrize(
        ("fault", "injection"),
        [
            (Fault("read", errno=errno.EIO), (0, 0, 1, 0, errno.EIO)),
            (Fault("write", 2, 0, errno=errno.ENOSPC), (1, 2, 0, 0, errno.ENOSPC)),
            (Fault("write", first=7, count=3, short=100), (1, 7, 3, 1, 100)),
            (Fault("flush", delay=0.25), (2, 0, 1, 2, 250_000_000)),
            (Fault("read", delay=1e-12), (0, 0, 1, 2, 1)),
        ],
    )
    def test_as_the_pager_takes_it(self, fault, injection):
        assert fault.injection == injection
        assert all(type(number) is int for number in fault.injection)

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            ({"operation": "sync", "errno": 5}, "operation must be one of read, write, flush"),
            ({"operation": "read"}, "not none"),
            ({"operation": "read", "errno": 5, "delay": 1.0}, "not errno and delay"),
            ({"operation": "read", "errno": 5, "short": 1}, "not errno and short"),
            ({"operation": "read", "errno": 0}, "errno must be"),
            ({"operation": "read", "errno": -5}, "errno must be"),
            ({"operation": "read", "errno": 5000}, "errno must be"),
            ({"operation": "read", "short": 0}, "short must be positive"),
            ({"operation": "flush", "short": 1}, "a flush cannot be short"),
            ({"operation": "read", "delay": 0}, "delay must be"),
            ({"operation": "read", "delay": -1.0}, "delay must be"),
            ({"operation": "read", "delay": math.nan}, "delay must be"),
            ({"operation": "read", "delay": math.inf}, "delay must be"),
            ({"operation": "read", "errno": 5, "first": -1}, "first must not be negative"),
            ({"operation": "read", "errno": 5, "count": -1}, "count must not be negative"),
            ({"operation": "read", "errno": 5, "count": 2**63}, "count must not be negative"),
        ],
    )
    def test_refused(self, arguments, reason):
        with pytest.raises(ValueError, match=reason):
            Fault(**arguments)

    @pytest.mark.parametrize("name", ["first", "count", "errno", "short"])
    def test_numbers_are_whole(self, name):
        wrong = {"errno": 5} if name in ("first", "count") else {}
        with pytest.raises(TypeError):
            Fault("read", **{**wrong, name: 1.5})

    def test_which_calls_it_hits(self):
        def calls(**arguments):
            fault = Fault("read", errno=5, **arguments)
            return [call for call in range(9) if fault.hits("read", call)]

        assert calls() == [0]
        assert calls(first=3) == [3]
        assert calls(first=2, count=3) == [2, 3, 4]
        assert calls(first=6, count=0) == [6, 7, 8]
        assert not Fault("read", errno=5).hits("write", 0)

    def test_frozen(self):
        with pytest.raises(AttributeError):
            Fault("read", errno=5).errno = 6


class TestStore:
    def outcomes(self, store: FaultyStore, count: int) -> list[str]:
        found = []
        for _ in range(count):
            buffer = bytearray(4)
            try:
                store.read_into(3, buffer)
                found.append(buffer.decode())
            except StoreError as error:
                found.append(errno.errorcode[error.errno])
        return found

    def test_reads_fail_on_schedule_and_then_succeed(self, path):
        faults = [Fault("read", first=1, count=2, errno=errno.ETIMEDOUT), Fault("read", 4, short=1)]
        with FaultyStore(path, faults=faults) as store:
            assert store.faults == tuple(faults)
            assert self.outcomes(store, 6) == [
                "3456",
                "ETIMEDOUT",
                "ETIMEDOUT",
                "3456",
                "EIO",
                "3456",
            ]

    def test_a_short_read_gives_what_there_was(self, path):
        with FaultyStore(path, faults=[Fault("read", short=3)]) as store:
            buffer = bytearray(b"....")
            with pytest.raises(StoreError, match="fewer bytes"):
                store.read_into(0, buffer)
            assert buffer == b"0..."

    def test_writes_and_flushes(self, path):
        faults = [
            Fault("write", errno=errno.ENOSPC),
            Fault("write", first=1, short=2),
            Fault("flush", errno=errno.EIO),
        ]
        with FaultyStore(path, writable=True, faults=faults) as store:
            with pytest.raises(StoreError) as caught:
                store.write(2, b"abcd")
            assert (caught.value.errno, caught.value.offset) == (errno.ENOSPC, 2)
            assert path.read_bytes() == b"0123456789"
            with pytest.raises(StoreError, match="fewer bytes"):
                store.write(2, b"abcd")
            assert path.read_bytes() == b"01ab456789"
            store.write(2, b"abcd")
            with pytest.raises(StoreError) as caught:
                store.flush()
            assert (caught.value.errno, caught.value.operation) == (errno.EIO, "flush")
            with pytest.raises(StoreError, match="earlier flush has failed, and bytes 2 to 6"):
                store.flush()
            store.write(2, b"abcd")
            store.flush()
        assert path.read_bytes() == b"01abcd6789"

    def test_delays_add_up_and_an_errno_comes_first(self, path):
        faults = [
            Fault("read", delay=0.02),
            Fault("read", delay=0.03),
            Fault("read", short=1),
            Fault("read", errno=errno.EIO),
        ]
        with FaultyStore(path, faults=faults) as store:
            started = time.monotonic()
            assert self.outcomes(store, 1) == ["EIO"]
            assert time.monotonic() - started >= 0.05

    def test_pickles_with_its_schedule(self, path):
        faults = (Fault("read", errno=errno.EIO),)
        with (
            FaultyStore(path, writable=True, faults=faults) as store,
            pickle.loads(pickle.dumps(store)) as other,
        ):
            assert (other.faults, other.writable) == (faults, True)
            assert self.outcomes(other, 2) == ["EIO", "3456"]
            assert "faults=(Fault(" in repr(other)

    def test_refuses_what_is_no_fault(self, path):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            before = len(os.listdir("/proc/self/fd"))
            with pytest.raises(TypeError, match="not dict"):
                FaultyStore(path, faults=[{}])
            gc.collect()
            assert len(os.listdir("/proc/self/fd")) == before
