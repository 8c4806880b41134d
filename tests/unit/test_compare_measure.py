"""How `pagemove compare` times: medians, interleaving, crossover points, with fake clocks."""

from __future__ import annotations

import math

import pytest

from pagemove.measuring.timing import (
    Crossover,
    Spread,
    Task,
    below,
    crossovers,
    interleave,
    spread,
)


class TestSpread:
    @pytest.mark.parametrize(
        ("samples", "expected"),
        [
            ([7], Spread(7, 7, 7, 1)),
            ([4, 1, 3, 2, 5], Spread(3, 2, 4, 5)),
            ([1, 2, 3, 4], Spread(2.5, 1.75, 3.25, 4)),
            ([5, 5, 5, 5_000_000], Spread(5, 5, 1_250_003.75, 4)),
        ],
    )
    def test_median_and_quartiles(self, samples, expected):
        assert spread(samples) == expected

    def test_of_nothing(self):
        with pytest.raises(ValueError, match="no measurements"):
            spread([])

    @pytest.mark.parametrize(
        ("first", "second", "expected"),
        [
            (Spread(10, 9, 11, 9), Spread(20, 12, 40, 9), True),
            (Spread(20, 19, 21, 9), Spread(10, 9, 11, 9), False),
            (Spread(10, 9, 11, 9), Spread(10.5, 9, 11, 9), False),
            (Spread(10, 5, 30, 9), Spread(20, 12, 40, 9), None),
            (Spread(20, 12, 40, 9), Spread(10, 5, 30, 9), None),
            (Spread(-1, -20, 20, 9), Spread(-1, -20, 20, 9), None),
            (Spread(10, 9, 11, 2), Spread(20, 19, 21, 9), None),
        ],
    )
    def test_below(self, first, second, expected):
        assert below(first, second) is expected


class TestInterleave:
    def test_turns_prepare_run_restore(self):
        log = []

        def task(name):
            return Task(
                name,
                lambda: log.append(name),
                prepare=lambda: log.append(f"prepare {name}"),
                restore=lambda: log.append(f"restore {name}"),
            )

        interleave([task("a"), task("b")], 2, before_group=lambda: log.append("--"))
        turn = {n: [f"prepare {n}", n, f"restore {n}"] for n in "ab"}
        assert log == ["--", *turn["a"], *turn["b"], "--", *turn["b"], *turn["a"]]

    def test_times_only_the_run(self):
        now = [0]

        def passing(ns):
            def pass_time():
                now[0] += ns

            return pass_time

        tasks = [
            Task("slow", passing(800), 4, prepare=passing(10_000), restore=passing(50_000)),
            Task("fast", passing(40), 2),
        ]
        times = interleave(tasks, 3, before_group=passing(7), clock=lambda: now[0])
        assert times == {"slow": [200.0] * 3, "fast": [20.0] * 3}

    def test_disturbed_measurements_are_repeated(self):
        class Doorbell:
            """Rings in the first run of a, and in every run of c."""

            def __init__(self):
                self.calls = []

            def start(self):
                pass

            def disturbed(self, elapsed):
                assert elapsed >= 0
                return self.calls == ["a"] or self.calls[-1] == "c"

        bell = Doorbell()
        tasks = [Task(name, lambda name=name: bell.calls.append(name)) for name in "abc"]
        times = interleave(tasks, 2, watch=bell)
        assert {name: len(samples) for name, samples in times.items()} == dict.fromkeys("abc", 2)
        assert {name: bell.calls.count(name) for name in "abc"} == {"a": 3, "b": 2, "c": 4}

    def test_one_measurement_a_round(self):
        tasks = [Task(name, lambda: None) for name in "abc"]
        times = interleave(tasks, 5)
        assert {name: len(samples) for name, samples in times.items()} == dict.fromkeys("abc", 5)
        assert interleave([], 3) == {}


class TestCrossovers:
    def test_interpolated_on_logarithmic_axes(self):
        (found,) = crossovers([1, 4, 16], [4, 4, 4], [1, 2, 8], ("flat", "rising"))
        assert found.cheaper == "flat"
        assert math.isclose(found.size, 8)

    def test_none(self):
        assert crossovers([1, 2, 4], [1, 2, 3], [2, 3, 4], ("a", "b")) == []

    def test_there_and_back(self):
        found = crossovers([1, 4, 16], [1, 9, 1], [3, 3, 3], ("a", "b"))
        assert [crossing.cheaper for crossing in found] == ["b", "a"]
        assert found == [Crossover(pytest.approx(2), "b"), Crossover(pytest.approx(8), "a")]

    def test_a_tie_is_no_crossing_by_itself(self):
        assert crossovers([1, 2, 4], [1, 3, 1], [2, 3, 2], ("a", "b")) == []
        (found,) = crossovers([1, 2, 4], [1, 3, 4], [2, 3, 2], ("a", "b"))
        assert found.cheaper == "b"
