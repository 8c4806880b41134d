"""Arguments of the raw calls, on descriptors of nothing: an exception, or no effect."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from model import PAGE
from pagemove import lowlevel

from . import EXAMPLES
from .ground import Ground
from .values import ODD, SMALL, UNMAPPED, Value, describe, same

NULL = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
# Closed, not a number a descriptor can have, and /dev/null, which answers ENOTTY to every ioctl.
FDS: list[Value] = [
    *same(-1, 999_999, 2**31 - 1, 2**31, 2**64, -(2**31) - 1),
    *same(NULL, NULL, NULL),
    *ODD,
]
#: Any integer at all: the descriptor makes it harmless.
WORDS: list[Value] = [
    *same(0, 1, 2, PAGE, -1, 2**31 - 1, 2**31, 2**32, 2**63, 2**64 - 1, 2**64, 2**200),
    lambda ground: ground.foreign,
    *ODD,
]
# An advice that changes something would change whatever a mistake in the address led to.
ADVICES: list[Value] = [*same(0, 20, -1, 99, 2**31, 2**64), *ODD]
PROTECTIONS: list[Value] = [*same(0, 1, 3, 2**31, -(2**40)), *ODD]
# Never MAP_FIXED (0x10), so that an address is a wish only.
MAPS: list[Value] = [
    *same(0, 1, 2, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 2**31, 2**64),
    *ODD,
]
REMAPS: list[Value] = [*same(0, 1, 4, 5, 8, -1, 2**31, 2**64), *ODD]
NAMES: list[Value] = [*same(b"", b"x", b"[", b"\0", b"x" * 99, "x"), *ODD]
SCANNED: list[Value] = [*same(0, PAGE, 1, 2**47, 2**64), *ODD]

CALLS: dict[str, list[list[Value]]] = {
    "userfaultfd": [WORDS],
    "userfaultfd_new": [FDS, WORDS],
    "api": [FDS, WORDS],
    "register": [FDS, WORDS, WORDS, WORDS],
    "unregister": [FDS, WORDS, WORDS],
    "wake": [FDS, WORDS, WORDS],
    "copy": [FDS, WORDS, WORDS, WORDS, WORDS],
    "zeropage": [FDS, WORDS, WORDS, WORDS],
    "move": [FDS, WORDS, WORDS, WORDS, WORDS],
    "writeprotect": [FDS, WORDS, WORDS, WORDS],
    "continue_": [FDS, WORDS, WORDS, WORDS],
    "poison": [FDS, WORDS, WORDS, WORDS],
    "read_events": [FDS, WORDS],
    "mmap": [UNMAPPED, SMALL, PROTECTIONS, MAPS, FDS, WORDS],
    "munmap": [UNMAPPED, SMALL],
    "mremap": [UNMAPPED, SMALL, SMALL, REMAPS, UNMAPPED],
    "madvise": [UNMAPPED, SMALL, ADVICES],
    "mprotect": [UNMAPPED, SMALL, PROTECTIONS],
    "mincore": [UNMAPPED, SMALL],
    "populate_write": [UNMAPPED, SMALL],
    "set_vma_name": [UNMAPPED, SMALL, NAMES],
    "pagemap_scan": [FDS, SCANNED, SCANNED, WORDS, WORDS, WORDS],
}

#: What has to be undone where a call succeeds.
UNDO: dict[str, Callable[[Any, Any], object]] = {
    "userfaultfd": lambda fd, _: os.close(fd),
    "mmap": lambda address, arguments: lowlevel.munmap(address, arguments[1]),
}


def test_every_raw_call_is_tried() -> None:
    public = {name for name in lowlevel.__all__ if callable(getattr(lowlevel, name))}
    assert public <= set(CALLS)


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    ground = Ground()
    yield ground
    ground.close()


@pytest.mark.parametrize("name", [name for name in CALLS if hasattr(lowlevel, name)])
@settings(max_examples=EXAMPLES or 60, deadline=None)
@given(data=st.data())
def test_any_arguments(ground: Ground, name: str, data: st.DataObject) -> None:
    def choose(pool: list[Value]) -> Any:
        return pool[data.draw(st.integers(0, len(pool) - 1))](ground)

    arguments = [choose(pool) for pool in CALLS[name]]
    note(f"{name}(*{describe(arguments)})")
    try:
        result = getattr(lowlevel, name)(*arguments)
    except (OSError, TypeError, OverflowError, ValueError, MemoryError) as error:
        note(repr(error))
    else:
        if name in UNDO:
            UNDO[name](result, arguments)
    ground.check(0)


@pytest.mark.parametrize("value", [1.5, 1.0, np.float64(1), np.complex64(1), np.str_("1"), "1"])
@pytest.mark.parametrize("name", [name for name in CALLS if hasattr(lowlevel, name)])
def test_integers_only(ground: Ground, name: str, value: object) -> None:
    first = [pool[0](ground) for pool in CALLS[name]]
    for at in range(len(first)):
        with pytest.raises(TypeError):
            getattr(lowlevel, name)(*first[:at], value, *first[at + 1 :])
