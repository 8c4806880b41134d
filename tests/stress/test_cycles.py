"""Thousands of memories made and freed: nothing stays behind."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

import pytest

from pagemove import PAGE_SIZE, Memory, empty, move
from pagemove.introspect import count_vmas
from support import child

pytestmark = pytest.mark.needs("move")

_CYCLES = 10_000


def _memory(i: int) -> None:
    with Memory((1 + i % 5) * PAGE_SIZE, name=f"cycle {i % 3}") as memory:
        memoryview(memory)[0] = 1


def _large_memory(i: int) -> None:
    with Memory((2 << 20) + PAGE_SIZE, huge_pages=bool(i % 2)) as memory:
        memory.asarray("u1")[-1] = 1


def _array(i: int) -> None:
    one, other = empty(700 + i % 5), empty(700 + i % 5)
    one[:] = i
    move(other, one)


def _resident() -> int:
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * PAGE_SIZE


def _measure(cycle: Callable[[int], None]) -> tuple[int, int, int]:
    def now() -> tuple[int, int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), count_vmas(), _resident()

    for i in range(_CYCLES // 10):
        cycle(i)
    before = now()
    for i in range(_CYCLES):
        cycle(i)
    descriptors, mappings, resident = (b - a for a, b in zip(before, now(), strict=True))
    return descriptors, mappings, resident


@pytest.mark.parametrize("cycle", [_memory, _large_memory, _array])
def test_nothing_stays_behind(cycle: Callable[[int], None]) -> None:
    descriptors, mappings, resident = child(_measure, cycle, deadline=60)
    assert descriptors == 0
    # The interpreter may map an arena of its own.
    assert mappings <= 2
    assert resident < 1 << 20, "100 bytes a cycle"
