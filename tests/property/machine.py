"""The calls, made to the kernel and to the model: same errno, same progress, same effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import rule

import model
import pagemove
from model import PAGE, Claim, Kind, Registration

from .outcomes import Outcome, in_kernel, in_model
from .world import NUMBERS, World, number

holes = st.booleans()
rarely = st.sampled_from([False, False, False, True])
ways = st.sampled_from(["plain", "plain", "holes", "move"])
pairs = st.lists(st.tuples(number, number), min_size=1, max_size=12)
steps = st.sampled_from([None, None, (1, 1), (1, -1), (0, 1), (1, 0)])
dtypes = st.sampled_from(["int64", "int32", "uint64", "uint16", "uint8", "int8"])


def pick(pages: list[int], at: int) -> int:
    """Choose one of a list by a number drawn."""
    return pages[at * len(pages) // NUMBERS]


class Machine(World):
    """Model and kernel side by side, with small pages only."""

    #: Pages that the large pages of `move_many` have.
    LARGE: ClassVar[int] = 2

    def both(self, call: Callable[[], object], same: Callable[[int], object]) -> Outcome:
        """Make a call, and the same in the model, which is told how much was seen to move."""
        seen = in_kernel(call)
        expected = in_model(lambda: same(seen.moved))
        note(f"kernel {seen}, model {expected}")
        assert seen == expected
        return seen

    def remap(self, dst: int, src: int, length: int, flags: int = 0) -> Outcome:
        return self.both(
            lambda: pagemove.remap_anon_pages(dst, src, length, flags),
            lambda moved: model.remap_anon_pages(
                self.space, dst, src, length, flags, happened=moved
            ),
        )

    @rule(to=number, to_at=number, of=number, of_at=number, length=number, holes=holes, over=rarely)
    def remap_anywhere(
        self, to: int, to_at: int, of: int, of_at: int, length: int, holes: bool, over: bool
    ) -> None:
        dst, dst_room = self.range(to, to_at, length)
        src, src_room = self.range(of, of_at, length)
        # Behind foreign memory there is a gap, behind a Memory what is somebody else's.
        over = over and self.foreign(to) and self.foreign(of)
        count = self.count(length) if over else min(dst_room, src_room)
        self.remap(dst * PAGE, src * PAGE, count * PAGE, int(holes))

    def pages_to_move(self, which: int) -> list[int]:
        area = self.area(which)
        pages = range(area.first, area.first + area.count)
        return [page for page in pages if page in self.space.pages and self.writable(page)]

    def places_for(self, which: int, source: int) -> list[int]:
        """List the holes of an area that a page could move to."""
        area, origin = self.area(which), self.space.mapping(source)
        return [
            page
            for page in range(area.first, area.first + area.count)
            if page not in self.space.pages
            and (mapping := self.space.mapping(page)) is not None
            and origin is not None
            and mapping.registered is not Registration.OTHER
            and replace(mapping, registered=origin.registered, inherited=True)
            == replace(origin, inherited=True)
        ]

    @rule(to=number, to_at=number, of=number, of_at=number, length=number, how=ways)
    def move_likely(self, to: int, to_at: int, of: int, of_at: int, length: int, how: str) -> None:
        """Move from where there is a page to where there is none."""
        sources = self.preferred(self.pages_to_move(of))
        if not sources:
            return
        src = pick(sources, of_at)
        targets = self.preferred(self.places_for(to, src))
        if not targets:
            return
        dst = pick(targets, to_at)
        room = [self.room(to, dst), self.room(of, src)]
        count = min(self.count(length), *room)
        if how == "move":
            self.move_pages(to, dst, of, src, count, holes=False)
        else:
            self.remap(dst * PAGE, src * PAGE, count * PAGE, int(how == "holes"))

    @rule(to=number, to_at=number, of=number, of_at=number, length=number, how=ways)
    def move_likely_again(self, **drawn: Any) -> None:
        """Hypothesis chooses among rules evenly; this is what all others are there for."""
        self.move_likely(**drawn)

    def preferred(self, pages: list[int]) -> list[int]:
        """Choose among the pages a move could begin at."""
        return pages

    @rule(
        to=number,
        of=number,
        at=number,
        odd=st.sampled_from([(1, 0, 0, 0), (0, 8, 0, 0), (0, 0, -1, 0), (0, 0, 0, 2)]),
        holes=holes,
    )
    def remap_wrongly(
        self, to: int, of: int, at: int, odd: tuple[int, int, int, int], holes: bool
    ) -> None:
        dst, _ = self.range(to, at, 0)
        src, _ = self.range(of, at, 0)
        flags = odd[3] | int(holes)
        self.remap(dst * PAGE + odd[0], src * PAGE + odd[1], PAGE + odd[2], flags)

    @rule(to=number, to_at=number, of=number, of_at=number, length=number, holes=holes)
    def move(self, to: int, to_at: int, of: int, of_at: int, length: int, holes: bool) -> None:
        dst, dst_room = self.range(to, to_at, length)
        src, src_room = self.range(of, of_at, length)
        self.move_pages(to, dst, of, src, min(dst_room, src_room), holes=holes)

    def move_pages(self, to: int, dst: int, of: int, src: int, count: int, *, holes: bool) -> None:
        into = self.area(to).buffer(dst - self.area(to).first, count)
        out_of = self.area(of).buffer(src - self.area(of).first, count)

        def same(moved: int) -> int:
            model.move(
                self.space, dst * PAGE, src * PAGE, count * PAGE, holes=holes, happened=moved
            )
            return count * PAGE

        self.both(lambda: pagemove.move(into, out_of, holes=holes), same)

    @rule(to=number, of=number, pairs=pairs, runs=steps, large=rarely, dtype=dtypes, holes=holes)
    def move_many(
        self,
        to: int,
        of: int,
        pairs: list[tuple[int, int]],
        runs: tuple[int, int] | None,
        large: bool,
        dtype: str,
        holes: bool,
    ) -> None:
        """Move scattered pages; with `runs` each of the first pairs is the start of a run."""
        # A page across two mappings that merge as the first of them is registered: or do not.
        area = self.area(to)
        large = large and len(self.space.vmas(area.first, area.count)) == 1
        pages = self.LARGE if large else 1
        most = np.iinfo(dtype).max
        limits = [min(self.area(which).count // pages, most) for which in (to, of)]
        chosen = [(self.index(a, pages), self.index(b, pages)) for a, b in pairs]
        if runs is not None:
            chosen = [(a + i * runs[0], b + i * runs[1]) for a, b in chosen[:3] for i in range(4)]
        chosen = [(a % limits[0], b % limits[1]) for a, b in chosen]
        self.move_chosen(to, of, chosen, pages, dtype, holes=holes)

    def index(self, at: int, pages: int) -> int:
        """Make a page number for `move_many` of one drawn."""
        return at

    @rule(to=number, of=number, pairs=pairs, dtype=dtypes, holes=holes)
    def move_many_likely(
        self, to: int, of: int, pairs: list[tuple[int, int]], dtype: str, holes: bool
    ) -> None:
        """Move scattered pages that are there to where there are none."""
        sources = self.pages_to_move(of)
        if not sources:
            return
        chosen = []
        for a, b in pairs:
            src = pick(sources, b)
            targets = self.places_for(to, src)
            if targets:
                dst = pick(targets, a)
                chosen.append((dst - self.area(to).first, src - self.area(of).first))
        if chosen:
            wide = "int64" if self.WITH_HUGE else dtype
            self.move_chosen(to, of, chosen, 1, wide, holes=holes)

    def move_chosen(
        self,
        to: int,
        of: int,
        chosen: list[tuple[int, int]],
        pages: int,
        dtype: str,
        *,
        holes: bool,
    ) -> None:
        dst, src = self.area(to), self.area(of)
        dst_pages, src_pages = [a for a, _ in chosen], [b for _, b in chosen]
        self.both(
            lambda: pagemove.move_many(
                dst.buffer(),
                src.buffer(),
                np.array(dst_pages, dtype),
                np.array(src_pages, dtype),
                page_size=pages * PAGE,
                holes=holes,
            ),
            lambda moved: model.move_many(
                self.space,
                dst.address,
                src.address,
                dst_pages,
                src_pages,
                page_size=pages * PAGE,
                holes=holes,
                happened=moved,
            ),
        )

    @rule(which=number, at=number, length=number, copy=st.booleans())
    def unshare(self, which: int, at: int, length: int, copy: bool) -> None:
        first, count = self.range(which, at, length)
        if not self.ordinary(first, count, writable=True) or self.has(first, count, Kind.POISON):
            return
        buffer = self.area(which).buffer(first - self.area(which).first, count)
        entries = [self.space.pages.get(page) for page in range(first, first + count)]
        vague = any(
            entry is not None
            and (entry.swapped or entry.swapped_at_fork or entry.claim is Claim.UNKNOWN)
            for entry in entries
        )
        seen = in_kernel(lambda: pagemove.unshare(buffer, copy=copy))
        expected = in_model(
            lambda: model.unshare(
                self.space, first * PAGE, count * PAGE, copy=copy, refused=seen.errno is not None
            )
        )
        note(f"kernel {seen}, model {expected}")
        assert seen.errno == expected.errno
        assert vague or seen.value == expected.value
