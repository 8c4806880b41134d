"""Short names for what the tests of the model do again and again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from . import PAGE, AddressSpace, CallError, remap_anon_pages

A, B = 1000, 2000  # first pages of two areas far apart
COUNT = 8


def fill(space: AddressSpace, first: int, *tokens: int) -> None:
    """Write tokens into pages one after another; 0 leaves a hole."""
    for page, token in enumerate(tokens, first):
        if token:
            space.touch_write(page, token)


def tokens(space: AddressSpace, first: int, count: int = COUNT) -> list[int | None]:
    return [
        space.pages[page].token if page in space.pages else None
        for page in range(first, first + count)
    ]


def remap(space: AddressSpace, dst: int, src: int, count: int, flags: int = 0) -> int:
    return remap_anon_pages(space, dst * PAGE, src * PAGE, count * PAGE, flags) // PAGE


def refused(number: int, call: Callable[..., object], *arguments: object, **named: object) -> None:
    """Check that a call fails so, and that it moved nothing."""
    with pytest.raises(CallError) as caught:
        call(*arguments, **named)
    assert caught.value.errno == number
    assert caught.value.moved == 0
