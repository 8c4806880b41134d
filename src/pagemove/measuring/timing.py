"""How to time: interleaved rounds, medians with quartiles, crossover points.

Nothing here knows what is being measured, or touches the machine beyond its clock, which can be
replaced by a counting one.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

Clock = Callable[[], int]


@dataclass(frozen=True, slots=True)
class Spread:
    """What repeated measurements of one thing say.

    Attributes
    ----------
    median : float
        The middle measurement.
    lower, upper : float
        First and third quartile: half of all measurements lie between them.
    samples : int
        How many measurements there were.
    """

    median: float
    lower: float
    upper: float
    samples: int

    def scaled(self, factor: float) -> Spread:
        """Return the same measurements in another unit."""
        return Spread(self.median * factor, self.lower * factor, self.upper * factor, self.samples)


def spread(samples: Sequence[float]) -> Spread:
    """Summarise measurements by their median and quartiles, interpolated linearly.

    Raises
    ------
    ValueError
        There are none.
    """
    if not samples:
        raise ValueError("no measurements to summarise")
    ordered = sorted(samples)

    def quantile(fraction: float) -> float:
        position = fraction * (len(ordered) - 1)
        below = math.floor(position)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (ordered[above] - ordered[below]) * (position - below)

    return Spread(quantile(0.5), quantile(0.25), quantile(0.75), len(ordered))


# Of the median: quartiles nearer to each other than this make a measurement precise.
_PRECISE = 0.5
_FEWEST = 3


def _precise(measured: Spread) -> bool:
    return measured.upper - measured.lower <= _PRECISE * abs(measured.median)


def below(first: Spread, second: Spread) -> bool | None:
    """Return whether `first` is smaller than `second`; None if there is too much noise to tell.

    It is if the middle halves of the measurements do not touch. It is not if they lie the other
    way round, or if they overlap although both measurements are precise. Of fewer than three
    measurements nothing can be said.
    """
    if min(first.samples, second.samples) < _FEWEST:
        return None
    if first.upper < second.lower:
        return True
    if second.upper < first.lower or (_precise(first) and _precise(second)):
        return False
    return None


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to time.

    Attributes
    ----------
    name : str
        Under which its measurements are returned.
    run : callable
        The timed part: `operations` operations of the same kind.
    operations : int
        What the time of one run is divided by.
    prepare, restore : callable
        Directly before and after each run, outside the timed part.
    """

    name: str
    run: Callable[[], object]
    operations: int = 1
    prepare: Callable[[], object] = _nothing
    restore: Callable[[], object] = _nothing


class Watch(Protocol):
    """Notices what spoils a measurement from outside."""

    def start(self) -> None:
        """Take notice from now on."""

    def disturbed(self, elapsed: int) -> bool:
        """Return whether something happened in the `elapsed` nanoseconds since `start`."""


class Unwatched:
    """Notices nothing."""

    def start(self) -> None:
        """Do nothing."""

    def disturbed(self, elapsed: int) -> bool:
        """Deny it."""
        return False


@contextmanager
def _no_collections() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# Rounds are at most so many times as many as asked for, to replace disturbed measurements.
_PATIENCE = 2


def interleave(
    tasks: Sequence[Task],
    rounds: int,
    *,
    before_group: Callable[[], object] = _nothing,
    watch: Watch | None = None,
    clock: Clock = time.perf_counter_ns,
) -> dict[str, list[float]]:
    """Time tasks in turn, round after round, so that a disturbance hits all of them alike.

    Parameters
    ----------
    tasks : sequence of Task
        Each round begins with another of them, so that none always follows the same one.
    rounds : int
        Measurements of each task.
    before_group : callable
        Runs before each round.
    watch : Watch
        A measurement of which it says that it was disturbed is put aside and repeated in a later
        round. What was put aside counts only for a task that was never undisturbed.
    clock : callable
        Nanoseconds as an integer.

    Returns
    -------
    dict of str to list of float
        Nanoseconds for one operation, by the task's name, in the order they were measured.

    Notes
    -----
    The garbage collector is off meanwhile. Time spent reading the clock is part of the
    measurement: some tens of nanoseconds a run.
    """
    watch = watch or Unwatched()
    good: dict[str, list[float]] = {task.name: [] for task in tasks}
    disturbed: dict[str, list[float]] = {task.name: [] for task in tasks}
    with _no_collections():
        for number in range(_PATIENCE * rounds):
            first = number % len(tasks) if tasks else 0
            turn = [
                task for task in (*tasks[first:], *tasks[:first]) if len(good[task.name]) < rounds
            ]
            if not turn:
                break
            before_group()
            for task in turn:
                task.prepare()
                watch.start()
                started = clock()
                task.run()
                elapsed = clock() - started
                kept = disturbed if watch.disturbed(elapsed) else good
                kept[task.name].append(elapsed / task.operations)
                task.restore()
    return {name: times or disturbed[name][:rounds] for name, times in good.items()}


@dataclass(frozen=True, slots=True)
class Crossover:
    """A size from which another of two methods is the cheaper one.

    Attributes
    ----------
    size : float
        Where the curves meet, interpolated between the two measured sizes around it.
    cheaper : str
        The name of the one that is cheaper above `size`.
    """

    size: float
    cheaper: str


def crossovers(
    sizes: Sequence[int],
    first: Sequence[float],
    second: Sequence[float],
    names: tuple[str, str],
) -> list[Crossover]:
    """Find the sizes at which two curves cross.

    Parameters
    ----------
    sizes : sequence of int
        Ascending.
    first, second : sequence of float
        The cost of each at each size; positive.
    names : tuple of str
        What they are called in the answer.

    Returns
    -------
    list of Crossover
        In ascending order. Empty if one of them is cheaper throughout.

    Notes
    -----
    Between two sizes the logarithm of the ratio is taken as linear in the logarithm of the size:
    straight lines in a plot with two logarithmic axes. A tie at a measured size is a crossing only
    if the lead changes there.
    """
    found = []
    previous: tuple[int, float] | None = None
    for size, one, other in zip(sizes, first, second, strict=True):
        gap = math.log(one / other)
        if gap == 0:
            continue
        if previous and (previous[1] > 0) != (gap > 0):
            share = previous[1] / (previous[1] - gap)
            low, high = math.log(previous[0]), math.log(size)
            found.append(
                Crossover(math.exp(low + share * (high - low)), names[0] if gap < 0 else names[1])
            )
        previous = (size, gap)
    return found
