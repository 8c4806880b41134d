"""An object of an arena that grows, where it is or elsewhere, against malloc with a copy of it."""

from __future__ import annotations

import ctypes
import time

from benchmarks._measure import Effort, Finding, free
from benchmarks._paging import Way, cost, in_turn
from benchmarks._report import run_alone
from pagemove._native.arena import Arena
from pagemove.paging.arenas import new_arena

_LEAST = 1 << 20
_TARGET = 0.1
_libc = ctypes.CDLL(None, use_errno=True)
_libc.malloc.restype = ctypes.c_void_p
_libc.malloc.argtypes = [ctypes.c_size_t]
_libc.free.argtypes = [ctypes.c_void_p]
_ENDS = (0, -1)


def _bytes(address: int, nbytes: int) -> list[int]:
    return [ctypes.string_at(address + place % nbytes, 1)[0] for place in _ENDS]


def _copied(nbytes: int, larger: int) -> float:
    """Return the nanoseconds of malloc, memcpy, and free."""
    before = _libc.malloc(nbytes)
    ctypes.memset(before, 7, nbytes)
    began = time.perf_counter_ns()
    after = _libc.malloc(larger)
    ctypes.memmove(after, before, nbytes)
    _libc.free(before)
    took = time.perf_counter_ns() - began
    assert _bytes(after, nbytes) == [7, 7]
    _libc.free(after)
    return took


def _grown(limit: int, nbytes: int, larger: int, room: bool) -> float:
    """Return the nanoseconds of growing, in an arena with such a limit."""
    arena, memory = new_arena(limit, _LEAST, None)
    with memory:
        before = arena.allocate(nbytes)
        behind = 0 if room else _fill_behind(arena, before, nbytes)
        ctypes.memset(before, 7, nbytes)
        began = time.perf_counter_ns()
        after = arena.resize(before, larger)
        took = time.perf_counter_ns() - began
        assert _bytes(after, nbytes) == [7, 7]
        assert arena.counters()["moved"] == 0
        assert (after == before) is room
        arena.release(after)
        if behind:
            arena.release(behind)
    return took


def _fill_behind(arena: Arena, address: int, nbytes: int) -> int:
    """Allocate what is directly behind the room that the object has to grow; return where."""
    behind = arena.allocate(_LEAST)
    assert behind > address
    assert behind - address <= 2 * nbytes
    return behind


def measure(effort: Effort) -> list[Finding]:
    found = []
    cases = (
        (effort.long_file, 2.25, 5 / 4, True, "within"),
        (effort.file, 0.25, 5 / 4, True, "beyond"),
        (effort.long_file, 3, 9 / 4, False, "within"),
        (effort.file, 0.25, 9 / 4, False, "beyond"),
    )
    for nbytes, part, times, room, what in cases:
        larger, limit = int(nbytes * times), int(nbytes * part)
        where = "" if room else " elsewhere"
        copy, ours = "malloc, memcpy, free", f"growing {what} the limit{where}"
        ways = [
            Way(
                ours,
                lambda n=nbytes, m=larger, most=limit, room=room: _grown(most, n, m, room),
            ),
            Way(copy, lambda n=nbytes, m=larger: _copied(n, m)),
        ]
        with free():
            samples = in_turn(ways, effort.passes)
        note = f"{nbytes >> 20} MiB to {larger >> 20} MiB, limit {limit >> 20} MiB"
        found.append(cost(samples, ours, copy, _TARGET, note))
    return found


if __name__ == "__main__":
    run_alone(measure)
