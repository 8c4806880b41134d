"""Two areas whose pages go back and forth, so that every measurement ends as it began."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

import pagemove
from benchmarks._measure import Unmeasurable
from benchmarks._naive import Pages, Words
from pagemove import HUGE_PAGE_SIZE, PAGE_SIZE, Memory, PageState


class Areas:
    """Two areas of equal length, one with pages, one with room for them.

    Parameters
    ----------
    length : int
        Pages, or huge pages, of each area.
    filled : array of int, optional
        Which of them there are; all by default. Page n holds the number n + 1.
    huge : bool
        Whether they are huge pages.
    """

    def __init__(self, length: int, filled: Pages | None = None, *, huge: bool = False) -> None:
        self.page_size = HUGE_PAGE_SIZE if huge else PAGE_SIZE
        self.filled = np.arange(length, dtype=np.int64) if filled is None else np.sort(filled)
        self._huge = huge
        self.home = Memory(length * self.page_size, huge_pages=huge)
        self.away = Memory(length * self.page_size, huge_pages=huge)
        self._numbers()[self.filled] = self.filled + 1
        self.check()

    def _numbers(self) -> npt.NDArray[np.int64]:
        return self.home.asarray(np.int64)[:: self.page_size // 8]

    def addresses(self) -> tuple[Words, Words]:
        """Return destinations and sources that bring every page away, and then home again."""
        offsets = self.filled.astype(np.uint64) * np.uint64(self.page_size)
        home, away = offsets + np.uint64(self.home.address), offsets + np.uint64(self.away.address)
        return np.concatenate([away, home]), np.concatenate([home, away])

    def check(self) -> None:
        """Fail unless every page is at home, with its content, and none of them was split."""
        states = self.home.page_states()
        assert (self._numbers()[self.filled] == self.filled + 1).all(), "a page has other content"
        assert not pagemove.page_states(self.away).any(), "a page did not come home"
        if self._huge and not (states & PageState.HUGE).all():
            raise Unmeasurable("the kernel has no huge pages to give")

    def close(self) -> None:
        """Free the memory."""
        self.home.close()
        self.away.close()

    def __enter__(self) -> Areas:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.check()
        self.close()
