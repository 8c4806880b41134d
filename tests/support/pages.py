"""Memory by its address. Reading a hole populates it with the zero page: ask for states first."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pagemove import PAGE_SIZE, PageState
from pagemove.introspect import states_at

#: The state of a page of which nothing is there.
HOLE = PageState(0)


def at(address: int, nbytes: int) -> npt.NDArray[np.uint8]:
    """View raw memory as writable bytes. Nothing keeps the memory alive."""
    return np.frombuffer(memoryview((ctypes.c_ubyte * nbytes).from_address(address)), np.uint8)


def pattern(tag: int, nbytes: int = PAGE_SIZE) -> bytes:
    """Make contents that no other tag has, different in every 8 bytes, never zero."""
    words = np.arange(1, nbytes // 8 + 1, dtype=np.uint64)
    words *= np.uint64(0x9E37_79B9_7F4A_7C15)
    return bytes((words ^ np.uint64((tag + 1) << 20)).view(np.uint8))


def write(address: int, tag: int) -> bytes:
    """Fill the page at `address` with the pattern of `tag`; return the pattern."""
    contents = pattern(tag)
    ctypes.memmove(address, contents, len(contents))
    return contents


def write_all(address: int, pages: int, tag: int = 0) -> bytes:
    """Fill `pages` pages with the patterns of `tag`, ``tag + 1`` ...; return all of it."""
    return b"".join(write(address + i * PAGE_SIZE, tag + i) for i in range(pages))


def read(address: int, nbytes: int = PAGE_SIZE) -> bytes:
    """Copy the bytes at `address`."""
    return ctypes.string_at(address, nbytes)


def read_all(address: int, pages: int) -> bytes:
    """Copy `pages` pages."""
    return read(address, pages * PAGE_SIZE)


def states(address: int, pages: int) -> list[PageState]:
    """List the states of `pages` pages."""
    return [PageState(int(word)) for word in states_at(address, pages)]


def state(address: int) -> PageState:
    """Return the state of one page."""
    return states(address, 1)[0]


def hole(address: int, pages: int = 1) -> bool:
    """Return whether all of `pages` pages are holes."""
    return states(address, pages) == [HOLE] * pages


def vmas_in(address: int, nbytes: int) -> list[tuple[int, int, str, str]]:
    """List (start, end, permissions, name) of the mappings that have a byte of the range.

    Read from /proc/self/maps, so without the flags, which registering a mapping changes.
    """
    found = []
    for line in Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines():
        bounds, permissions, _, _, _, *name = line.split(maxsplit=5)
        start, end = (int(word, 16) for word in bounds.split("-"))
        if start < address + nbytes and address < end:
            found.append((start, end, permissions, "".join(name)))
    return found


def smaps(*starts: int) -> list[dict[str, int]]:
    """Return the numbers of /proc/self/smaps (bytes) for the mappings that start there."""
    text = Path("/proc/self/smaps").read_text(errors="surrogateescape")
    found = []
    for start in starts:
        record = re.search(rf"(?m)^0*{start:x}-.*\n((?:\w+:.*\n)*)", text)
        if not record:
            raise LookupError(f"no mapping starts at {start:#x}")
        numbers = re.findall(r"(?m)^(\w+): +(\d+) kB$", record[1])
        found.append({name: int(number) << 10 for name, number in numbers})
    return found


def rss(*addresses: int) -> int:
    """Return the resident bytes of all mappings that contain one of the addresses."""
    starts = {vmas_in(address, 1)[0][0] for address in addresses}
    return sum(mapping["Rss"] for mapping in smaps(*starts))
