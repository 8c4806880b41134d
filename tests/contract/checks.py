"""What every successful and every refused move has in common, asserted in one place."""

from __future__ import annotations

import ctypes
import errno
import inspect
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

import pagemove
from pagemove import PAGE_SIZE, PageState, RemapError, remap_anon_pages
from support import at, hole, read, smaps, states, vmas_in

CLASSES = {
    errno.ENOENT: pagemove.SourceHole,
    errno.EEXIST: pagemove.DestinationMapped,
    errno.EBUSY: pagemove.PageShared,
}

#: With the look before each call that the stale-EAGAIN defect needs, and without (`guarded`).
GUARDS = pytest.mark.parametrize("guard", [True, False], ids=["guarded", "plain"])

_NO_FLAG = PageState(0)

# What moves along with a page, and is to be seen at its new place.
_CARRIED = PageState.PRESENT | PageState.SWAPPED | PageState.ZERO


@dataclass
class Side:
    """One range as it was: page states, and contents of the pages that could be read unchanged."""

    address: int
    length: int
    states: list[PageState] = field(init=False)
    contents: dict[int, bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.states = states(self.address, self.length // PAGE_SIZE)
        self.contents = {
            page: read(self.address + page * PAGE_SIZE)
            for page, state in enumerate(self.states)
            if state & PageState.PRESENT
        }


@dataclass
class Before:
    """Both sides and their mappings, as they were."""

    dst: Side
    src: Side
    mappings: list[tuple[int, int, str, str]]
    rss: int


def _mappings(*ranges: tuple[int, int]) -> list[tuple[int, int, str, str]]:
    # One page more on both ends: a mapping that grew or was split shows there.
    found = {
        vma
        for address, length in ranges
        for vma in vmas_in(address - PAGE_SIZE, length + 2 * PAGE_SIZE)
    }
    return sorted(found)


def _resident(*ranges: tuple[int, int]) -> int:
    # Not that of their neighbours, which may be anybody's.
    starts = {vma[0] for address, length in ranges for vma in vmas_in(address, length)}
    return sum(each["Rss"] for each in smaps(*starts))


def look(dst: int, src: int, length: int) -> Before:
    """Note everything that a move must leave alone, or carry along."""
    ranges = (dst, length), (src, length)
    return Before(Side(dst, length), Side(src, length), _mappings(*ranges), _resident(*ranges))


def check_moved(before: Before) -> None:
    """Assert the row "after success" for ranges that did not overlap."""
    dst, src = before.dst, before.src
    assert hole(src.address, src.length // PAGE_SIZE), "the source is not a hole afterwards"
    now = states(dst.address, dst.length // PAGE_SIZE)
    assert [s & _CARRIED for s in now] == [s & _CARRIED for s in src.states]
    ranges = (dst.address, dst.length), (src.address, src.length)
    assert _mappings(*ranges) == before.mappings, "mappings changed"
    assert _resident(*ranges) == before.rss, "RSS changed"
    for page, contents in src.contents.items():
        assert read(dst.address + page * PAGE_SIZE) == contents
    # Last, because it touches: the source reads as zero, and is writable memory as ever.
    assert not at(src.address, src.length).any()
    for page in range(0, src.length // PAGE_SIZE, 64):
        at(src.address + page * PAGE_SIZE, 8)[0] = 1


def check_unchanged(before: Before, *, ignore: PageState = _NO_FLAG) -> None:
    """Assert that nothing happened; `ignore` page states that the kernel may change meanwhile."""
    for side in (before.dst, before.src):
        now = states(side.address, side.length // PAGE_SIZE)
        assert [s & ~ignore for s in now] == [s & ~ignore for s in side.states]
        for page, contents in side.contents.items():
            assert read(side.address + page * PAGE_SIZE) == contents
    ranges = [(side.address, side.length) for side in (before.dst, before.src)]
    assert _mappings(*ranges) == before.mappings, "mappings changed"
    assert _resident(*ranges) == before.rss, "RSS changed"


def move_all(dst: int, src: int, length: int, flags: int = 0) -> None:
    """Move a range and assert everything that the contract says of a success."""
    before = look(dst, src, length)
    assert remap_anon_pages(dst, src, length, flags) == length
    check_moved(before)


@contextmanager
def refusal(
    code: int, call: str = "remap_anon_pages", *, moved: int = 0
) -> Iterator[Callable[[], RemapError]]:
    """Assert the error of a call: class, errno, progress, and that the message names the call.

    Gives a function for the error itself, to be called after the block.
    """
    with pytest.raises(RemapError) as caught:
        yield lambda: caught.value
    error = caught.value
    assert error.errno == code, error
    assert type(error) is CLASSES.get(code, RemapError)
    assert error.moved == moved
    assert str(error).startswith(f"[Errno {code}] {call}: ")


def refuse(
    code: int,
    dst: int,
    src: int,
    length: int,
    flags: int = 0,
    *,
    address: int | None = None,
    ignore: PageState = _NO_FLAG,
) -> str:
    """Try to move mapped ranges, assert that it is refused and nothing changed; return the message.

    `address` is the first offending address that the error has to name.
    """
    before = look(dst, src, length)
    with refusal(code) as error:
        remap_anon_pages(dst, src, length, flags)
    check_unchanged(before, ignore=ignore)
    if address is not None:
        assert error().address == address
        assert f"{address:#x}" in str(error())
    return str(error())


def nothing() -> None:
    """What a child does whose only purpose is to have inherited something."""


def private_mmap(pages: int) -> mmap.mmap:
    """Map private anonymous memory the standard library's way; its default would be shared."""
    return mmap.mmap(-1, pages * PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def address_of(buffer: Any) -> int:
    """Return the address of the first byte of a writable buffer."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def zeros(pages: int = 1) -> bytes:
    """Return pages of zeros."""
    return bytes(pages * PAGE_SIZE)


def signature(function: Callable[..., Any]) -> str:
    """Return the names, kinds and defaults of the parameters, without their types."""
    found = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
    return str(inspect.Signature(bare))
