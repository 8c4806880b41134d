"""Right, wrong and extreme arguments of every public function.

Whatever the arguments: the result of the call or an exception of a documented kind, no crash, and
no page that moved without being asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

import pagemove
from support.children import child

from . import EXAMPLES, values
from .ground import Ground
from .values import Value, describe

_MISUSE = (TypeError, ValueError, BufferError)


@dataclass(frozen=True)
class Call:
    """A public function: values for its parameters, and the exceptions its documentation names."""

    function: Callable[..., Any]
    positional: list[list[Value]]
    named: dict[str, list[Value]] = field(default_factory=dict)
    raises: tuple[type[Exception], ...] = (*_MISUSE, pagemove.RemapError)


def _closing(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(_: Ground, *arguments: Any, **named: Any) -> None:
        function(*arguments, **named).close()

    return call


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(_: Ground, *arguments: Any, **named: Any) -> Any:
        return function(*arguments, **named)

    return call


def _discard(ground: Ground, *arguments: Any) -> None:
    ground.scrap.discard(*arguments)


def _asarray(ground: Ground, *arguments: Any) -> None:
    ground.scrap.asarray(*arguments)


CALLS: dict[str, Call] = {
    "remap_anon_pages": Call(
        _plain(pagemove.remap_anon_pages),
        [values.PLACES, values.PLACES, values.LENGTHS, values.FLAGS],
    ),
    "move": Call(_plain(pagemove.move), [values.BUFFERS, values.BUFFERS], {"holes": values.TRUTHS}),
    "move_many": Call(
        _plain(pagemove.move_many),
        [values.BUFFERS, values.BUFFERS, values.INDICES, values.INDICES],
        {"page_size": values.PAGE_SIZES, "holes": values.TRUTHS},
        raises=(*_MISUSE, IndexError, pagemove.RemapError),
    ),
    "mremap": Call(
        _plain(pagemove.mremap),
        [values.UNUSABLE, values.PLACES, values.LENGTHS],
        {
            "detect": values.TRUTHS,
            "keep_source": values.TRUTHS,
            "no_replace": values.TRUTHS,
        },
    ),
    "unshare": Call(_plain(pagemove.unshare), [values.BUFFERS], {"copy": values.TRUTHS}),
    "page_states": Call(_plain(pagemove.page_states), [values.BUFFERS], raises=_MISUSE),
    "Memory": Call(
        _closing(pagemove.Memory),
        [values.SIZES],
        {"huge_pages": values.TRUTHS, "name": values.NAMES},
        raises=(*_MISUSE, MemoryError),
    ),
    "Memory.discard": Call(_discard, [values.LENGTHS, values.LENGTHS], raises=_MISUSE),
    "Memory.asarray": Call(
        _asarray, [values.DTYPES, values.SHAPES, values.LENGTHS], raises=_MISUSE
    ),
    "empty": Call(
        _plain(pagemove.empty),
        [values.SHAPES, values.DTYPES],
        {"huge_pages": values.TRUTHS},
        raises=(*_MISUSE, MemoryError),
    ),
    "vmas": Call(_plain(pagemove.vmas), [values.ODD]),
    "features": Call(_plain(pagemove.features), [values.ODD]),
}


def _arguments(call: Call, ground: Ground, choose: Callable[[list[Value]], Value]) -> Any:
    positional = [choose(pool)(ground) for pool in call.positional]
    named = {name: choose(pool)(ground) for name, pool in call.named.items()}
    return positional, named


def attempt(name: str, call: Call, ground: Ground, positional: Any, named: Any) -> None:
    moved = 0
    try:
        result = call.function(ground, *positional, **named)
        if name in ("remap_anon_pages", "move", "move_many"):
            assert isinstance(result, int)
            moved = result
    except call.raises as error:
        moved = getattr(error, "moved", 0)
    ground.check(moved)


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    ground = Ground()
    yield ground
    ground.close()


@pytest.mark.parametrize("name", CALLS)
@settings(max_examples=EXAMPLES or 150, deadline=None)
@given(data=st.data())
def test_any_arguments(ground: Ground, name: str, data: st.DataObject) -> None:
    call = CALLS[name]

    def choose(pool: list[Value]) -> Value:
        return pool[data.draw(st.integers(0, len(pool) - 1))]

    positional, named = _arguments(call, ground, choose)
    note(f"{name}(*{describe(positional)}, **{describe(named.values())})")
    attempt(name, call, ground, positional, named)


def _attempt_any(
    ground: Ground, chance: random.Random, choose: Callable[[list[Value]], Value]
) -> None:
    name, call = chance.choice(list(CALLS.items()))
    positional, named = _arguments(call, ground, choose)
    try:
        attempt(name, call, ground, positional, named)
    except BaseException as error:
        error.add_note(f"{name}(*{describe(positional)}, **{describe(named.values())})")
        raise


def _batch(inherited: pagemove.Memory, seed: int, count: int) -> int:
    # The parent's ground cannot be used here: part of it was not inherited.
    ground = Ground()
    chance = random.Random(seed)
    pools: dict[int, list[Value]] = {}

    def choose(pool: list[Value]) -> Value:
        with_dead = pools.setdefault(
            id(pool), [*pool, *(len(pool) // 8 + 1) * [lambda _: inherited]]
        )
        return chance.choice(with_dead)

    for _ in range(count):
        _attempt_any(ground, chance, choose)
    ground.close()
    return count


@pytest.mark.parametrize("seed", range(3))
def test_any_arguments_in_a_forked_child(seed: int) -> None:
    with pagemove.Memory(4 * pagemove.PAGE_SIZE) as memory:
        memory.asarray(np.uint8)[:] = 7
        before = list(memory.page_states())
        assert child(_batch, memory, seed, EXAMPLES or 300, deadline=120) == (EXAMPLES or 300)
        # Nothing that a child does reaches the parent.
        assert list(memory.page_states()) == before
        assert (memory.asarray(np.uint8) == 7).all()
