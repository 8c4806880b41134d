"""Each block of an array that is handed over crosses once, and what is touched does not wait."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import pagemove
from pagemove.paging import given as giving
from pagemove.stores import pace
from pagemove.stores.handed import HandedStore
from pagemove.stores.pace import Pace
from support.handing import HERE, all_of

NBYTES = 32 << 20
UNIT = 65536
MS = 1e-3


def given(tmp_path: Path) -> np.ndarray:
    array = pagemove.create_array(tmp_path / "it", NBYTES // 8, np.int64, resident_limit="8MiB")
    array[:] = np.arange(1, NBYTES // 8 + 1)
    return array


@pytest.mark.parametrize("where", ["tcp", "unix"])
def test_reading_on_beside_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    # However busy the machine is, nothing is overdue.
    monkeypatch.setattr(pace, "_LATE_SECONDS", 100.0)
    numbers = given(tmp_path)
    with (
        pagemove.serve(numbers, HERE if where == "tcp" else tmp_path / "socket") as served,
        HandedStore(served.url, store_timeout=100) as store,
    ):

        def read_part(part: int) -> np.ndarray:
            found = np.empty(NBYTES // 4 // 8, np.int64)
            view = memoryview(found).cast("B")
            for at in range(0, len(view), 3 * UNIT // 2):
                store.read_into(part * len(view) + at, view[at : at + 3 * UNIT // 2])
            return found

        with ThreadPoolExecutor(4) as pool:
            found = np.concatenate(list(pool.map(read_part, range(4))))
        served.wait(100)
        assert served.stats()["sent_bytes"] == NBYTES
    assert np.array_equal(found, np.arange(1, NBYTES // 8 + 1))


def test_what_is_overdue_is_asked_for_again(tmp_path: Path) -> None:
    numbers = given(tmp_path)
    with pagemove.serve(numbers, HERE) as served, HandedStore(served.url) as store:
        # Nothing in the background: what is asked for does not come.
        pull = store._taken("read", 0)
        pull._thread = threading.current_thread()
        assert pull.arrivals.ask(3, 9, 4) == (3, 7)
        found = np.empty(UNIT // 8, np.int64)
        begin = time.monotonic()
        store.read_into(5 * UNIT, found)
        assert time.monotonic() - begin >= pull._pace.late
        assert found[0] == 5 * UNIT // 8 + 1
        # Of the rest of it a part is written over, and one comes to nothing.
        store.write(3 * UNIT, np.zeros(UNIT // 8, np.int64))
        pull.arrivals.put(3, 7, memoryview(b"late" * UNIT))
        assert pull.arrivals.ask(0, 9, 4) == (0, 3)
        pull.arrivals.unask(0, 7)
        assert pull.arrivals.ask(0, 1, 4) == (0, 1)
        pull.arrivals.unask(0, 1)
        store.read_into(3 * UNIT, found)
        assert not found.any()
        store.read_into(5 * UNIT, found)
        assert found[0] == 5 * UNIT // 8 + 1
        store.read_into(4 * UNIT, found)
        assert found.tobytes() == b"late" * (UNIT // 4)
        pull._thread = None
        store.read_into(0, found)
        assert np.array_equal(found, np.arange(1, UNIT // 8 + 1))


def test_what_was_asked_for_on_a_connection_that_broke_comes(tmp_path: Path) -> None:
    numbers = given(tmp_path)
    with pagemove.serve(numbers, HERE) as served, HandedStore(served.url) as store:
        store.read_into(0, bytearray(8))
        pull = store._pull
        assert pull is not None
        for _ in range(5):
            for line in list(pull._all):
                line.end()
            time.sleep(0.01)
        # Nobody touches it.
        served.wait(100)
        assert np.array_equal(all_of(store), np.arange(1, NBYTES // 8 + 1))
        assert served.stats()["sent_bytes"] < 2 * NBYTES


def test_what_is_in_use_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Last read first, then what is in memory, then the rest; however many pages are looked at."""
    numbers = given(tmp_path)
    region = pagemove.region_of(numbers)
    with pagemove.serve(numbers, HERE) as served:
        region.evict()
        numbers[40 * UNIT // 8], numbers[300 * UNIT // 8], numbers[7 * UNIT // 8]
        orders = []
        for size in (1 << 30, 1 << 20):
            monkeypatch.setattr(giving, "_LOOKED_AT", size)
            orders.append(served._given._order())
        assert np.array_equal(*orders)
        units = [
            unit for first, count in orders[0].tolist() for unit in range(first, first + count)
        ]
    assert sorted(units) == list(range(NBYTES // UNIT))
    # A block of a file is several units.
    together = region.block_size // UNIT or 1
    assert [unit // together for unit in units[: 3 * together : together]] == [
        unit // together for unit in (7, 300, 40)
    ]


class TestPace:
    def test_at_first_little_is_asked_for(self) -> None:
        assert (Pace(UNIT).ahead, Pace(UNIT).piece) == (4 * UNIT, 1)

    @pytest.mark.parametrize("round_trip", [0.1 * MS, 10 * MS, 100 * MS])
    @pytest.mark.parametrize("rate", [5e6, 100e6, 20e6])
    def test_it_grows_to_what_the_connection_carries(self, round_trip: float, rate: float) -> None:
        """And no more waits in the connection than comes in some milliseconds, or four units."""
        pace = Pace(UNIT)
        pace.heard(round_trip)
        for _ in range(200):
            # As much as is under way comes within a round trip, or as fast as it can.
            pace.came(pace.ahead, max(round_trip, pace.ahead / rate))
        carried = rate * round_trip
        most = max(1.25 * carried + 0.006 * rate, 4 * UNIT)
        assert min(carried, 4 << 20) * 0.9 <= pace.ahead <= most
        assert pace.piece == max(min(pace.ahead // 4, 1 << 20) // UNIT, 1)

    def test_no_more_than_some_mebibytes(self) -> None:
        pace = Pace(UNIT)
        pace.heard(1.0)
        pace.came(1 << 30, 0.0)
        assert (pace.ahead, pace.piece) == (4 << 20, 16)

    def test_the_shortest_round_trip_counts(self) -> None:
        pace = Pace(UNIT)
        for seconds in (0.3, 0.1, 0.2):
            pace.heard(seconds)
        assert pace.round_trip == 0.1
        assert pace.late == pytest.approx(0.25)
