"""stores/patience.py: how often, how long, and when not."""

from __future__ import annotations

import threading

import pytest

from pagemove.stores import patience
from pagemove.stores.patience import RunningTime, patiently


class Clock:
    """Time that passes by pauses only."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def failing(times: int, lefts: list[float]):
    def call(left: float) -> int:
        lefts.append(left)
        if len(lefts) <= times:
            raise OSError(f"number {len(lefts)}")
        return len(lefts)

    return call


def always(_error: Exception) -> bool:
    return True


def test_until_it_succeeds(clock):
    lefts: list[float] = []
    assert patiently(failing(5, lefts), 60, always, pause=clock.pause, clock=clock) == 6
    assert lefts[0] == 60
    assert lefts == sorted(lefts, reverse=True)
    assert len(clock.pauses) == 5


def test_pauses_grow_up_to_a_limit_and_vary(clock):
    with pytest.raises(OSError, match="number"):
        patiently(failing(1000, []), 100, always, pause=clock.pause, clock=clock)
    limits = [min(0.05 * 2**n, 2.0) for n in range(len(clock.pauses))]
    assert all(0 <= pause <= limit for pause, limit in zip(clock.pauses, limits, strict=True))
    assert max(clock.pauses) > 1
    assert len(set(clock.pauses)) == len(clock.pauses)
    assert clock.now <= 200


def test_what_trying_again_does_not_help(clock):
    with pytest.raises(OSError, match="number 1") as caught:
        patiently(failing(1, []), 60, lambda error: False, pause=clock.pause, clock=clock)
    assert clock.pauses == []
    assert not hasattr(caught.value, "__notes__")


def test_the_last_error_says_how_many_tries_there_were(clock):
    with pytest.raises(OSError, match="number") as caught:
        patiently(failing(1000, []), 1, always, pause=clock.pause, clock=clock)
    assert caught.value.__notes__ == [f"after {len(clock.pauses) + 1} tries"]


def test_one_try_without_any_time(clock):
    assert patiently(failing(0, []), 0, always, pause=clock.pause, clock=clock) == 1
    with pytest.raises(OSError, match="number 1"):
        patiently(failing(1, []), 0, always, pause=clock.pause, clock=clock)


def test_time_in_which_nothing_ran_does_not_count(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(RunningTime, "_tick", lambda _: None)
    with RunningTime() as clock:
        assert clock() == 100
        for _ in range(10):
            now[0] += 0.2
            clock()
        assert clock() == pytest.approx(102)
        now[0] += 50
        assert clock() == pytest.approx(102.1)
        assert clock() == pytest.approx(102.1)


def test_it_ticks_by_itself(monkeypatch):
    ticked = threading.Event()
    real = RunningTime.__call__
    monkeypatch.setattr(RunningTime, "__call__", lambda self: (ticked.set(), real(self))[1])
    with RunningTime():
        assert ticked.wait(60)
