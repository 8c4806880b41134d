"""One page of a page table: what it holds, and who else has it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class Kind(enum.Enum):
    """What a page-table entry holds; a hole is no entry at all."""

    ANON = enum.auto()  # a page of this process, in memory or in swap
    ZERO = enum.auto()  # the shared page of zeros, after a hole was read
    GUARD = enum.auto()  # MADV_GUARD_INSTALL
    POISON = enum.auto()  # UFFDIO_POISON


class Claim(enum.Enum):
    """Whether a page may be moved, for an anonymous page only."""

    MINE = enum.auto()
    SHARED = enum.auto()  # with a child that lives
    LEFT = enum.auto()  # with children that all have exited: the kernel goes on refusing
    UNKNOWN = enum.auto()  # the kernel may or may not have noticed that it is exclusive again


class State(enum.IntFlag):
    """The words of `page_states`, by the names the contract gives them."""

    PRESENT = enum.auto()
    SWAPPED = enum.auto()
    ZERO = enum.auto()
    HUGE = enum.auto()
    EXCLUSIVE = enum.auto()
    WRITE_PROTECTED = enum.auto()
    GUARD = enum.auto()


# Plain integers: thousands of pages are compared after every step.
_PRESENT, _SWAPPED, _ZERO, _HUGE, _EXCLUSIVE, _, _GUARD = (int(state) for state in State)


class Folio:
    """The identity of a huge page's memory, which outlives its being mapped as one."""

    __slots__ = ("head",)

    def __init__(self) -> None:
        #: Its first page: the kernel asks that, and no other, whether it may be broken up to move.
        self.head: Page | None = None


@dataclass(eq=False, slots=True)
class Page:
    """One entry of a page table."""

    kind: Kind
    token: int = 0
    swapped: bool = False
    claim: Claim = Claim.MINE
    sharers: set[int] = field(default_factory=set)
    #: Mapped by one entry for the whole huge page; None where the kernel may have split it or not.
    huge: bool | None = False
    folio: Folio | None = None
    #: Of a huge page that was broken up: the kernel may have mapped the zero page in its place.
    perhaps_zero: bool = False
    #: The other process had it in swap when it was forked: what is mapped once need not be mine.
    swapped_at_fork: bool = False

    def fork(self, child: int) -> None:
        """Let a new child have the page too."""
        if self.kind is Kind.ANON:
            self.claim = Claim.SHARED
            self.sharers.add(child)
            self.swapped_at_fork |= self.swapped

    def child_ended(self, child: int) -> None:
        """Take the page from a child that exited."""
        if child in self.sharers:
            self.sharers.discard(child)
            if not self.sharers:
                self.claim = Claim.LEFT

    def own(self, claim: Claim = Claim.MINE) -> None:
        """Make the page this process's alone."""
        self.claim = claim
        self.sharers.clear()
        self.swapped_at_fork = False

    def state(self) -> tuple[int, int]:
        """Return the word of `page_states`, and the flags of it that are not certain."""
        if self.kind is Kind.GUARD:
            return _GUARD, 0
        if self.kind is Kind.POISON or self.swapped:
            return _SWAPPED, 0
        word, unsure = _PRESENT, 0
        if self.huge is None:
            unsure |= _HUGE
        elif self.huge:
            word |= _HUGE
        if self.kind is Kind.ZERO:
            return word | _ZERO, unsure
        if self.claim is not Claim.SHARED:
            word |= _EXCLUSIVE
        if self.swapped_at_fork:
            unsure |= _EXCLUSIVE
        if self.perhaps_zero and not self.token:
            unsure |= _ZERO | _EXCLUSIVE
        return word, unsure
