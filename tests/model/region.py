"""A paged region in plain Python: what it must read as, and what its file may hold by now.

Two rows of words, the region's and the store's, and for each block that was written since it was
last made durable all that it has been: of these the pager may have stored any, byte by byte (a
write may end anywhere, and go on later), at any moment it liked. What the kernel or the pager is
free to choose is not guessed; it is checked that what was seen is one of what may be.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]


class Region:
    """A region over a store of so many words, in one of the modes ``r``, ``r+`` and ``c``."""

    def __init__(self, store: Words, mode: str, block: int) -> None:
        self.store = store.copy()
        self.contents = store.copy()
        self.mode = mode
        self.block = block  # words
        #: By block: what it has been since it was made durable.
        self.versions: dict[int, list[Words]] = {}
        #: Blocks that may be poisoned: touched, or read ahead, while the store failed.
        self.doubtful: set[int] = set()

    @property
    def blocks(self) -> int:
        """How many blocks there are; the last may have less than its share of words."""
        return -(-len(self.store) // self.block)

    def span(self, block: int) -> slice:
        """Say which words are a block's."""
        return slice(block * self.block, min((block + 1) * self.block, len(self.store)))

    def touched(self, first: int, count: int) -> range:
        """List the blocks that have one of `count` words from the first on."""
        if not count:
            return range(0)
        return range(first // self.block, (first + count - 1) // self.block + 1)

    def read(self, first: int, count: int) -> Words:
        """Return what the region reads as."""
        return self.contents[first : first + count]

    def write(self, first: int, values: Words) -> None:
        """Store words in the region."""
        assert self.mode != "r"
        for block in self.touched(first, len(values)):
            self.versions.setdefault(block, [])
        self.contents[first : first + len(values)] = values
        for block in self.touched(first, len(values)):
            self.versions[block].append(self.contents[self.span(block)].copy())

    def is_clean(self, first: int, count: int) -> bool:
        """Whether no block with one of the words was written since it was made durable."""
        return not any(block in self.versions for block in self.touched(first, count))

    def flush(self) -> None:
        """All that was stored in the region is in the store."""
        if self.mode == "r+":
            self.store[:] = self.contents
            self.versions.clear()

    def change_store(self, first: int, values: Words) -> None:
        """Somebody else writes to the store, where the region is clean and not in memory."""
        assert self.is_clean(first, len(values))
        self.store[first : first + len(values)] = values
        self.contents[first : first + len(values)] = values

    def check_store(self, found: Words) -> str | None:
        """Compare the store as it was found: None if it may be so."""
        good = _same_bytes(found, self.store)
        if self.mode == "r+":
            for block, versions in self.versions.items():
                span = self.span(block)
                for version in versions:
                    good[span] |= _same_bytes(found[span], version)
        return _first_wrong(found, self.store, good.all(axis=1))

    def check_region(self, first: int, found: Words) -> str | None:
        """Compare words of the region as they were found: None if they are right."""
        wanted = self.read(first, len(found))
        return _first_wrong(found, wanted, found == wanted, first)


def _same_bytes(found: Words, wanted: Words) -> npt.NDArray[np.bool_]:
    """Compare words byte by byte, shape (n, 8)."""
    return (found.view(np.uint8) == wanted.view(np.uint8)).reshape(-1, 8)


def _first_wrong(
    found: Words, wanted: Words, good: npt.NDArray[np.bool_], first: int = 0
) -> str | None:
    if good.all():
        return None
    at = int(np.argmin(good))
    number = int(np.count_nonzero(~good))
    return f"{number} words wrong, first {first + at}: {found[at]:#x} instead of {wanted[at]:#x}"
