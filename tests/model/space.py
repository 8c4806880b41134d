"""`AddressSpace`: page tables, and everything that changes them but moving pages."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .mappings import PAGE, CallError, Impossible, Mappings, Registration
from .pages import Claim, Folio, Kind, Page, State

#: Pages in a huge page: a page table's worth of 8-byte entries.
HUGE = PAGE // 8

_HUGE, _ZERO = int(State.HUGE), int(State.ZERO)


class AddressSpace(Mappings):
    """The mappings and the page tables of one process."""

    def __init__(self) -> None:
        super().__init__()
        self._children: set[int] = set()
        self._last_child = 0
        #: Page tables that may exist: to where there is surely none, a huge page moves whole.
        self._tables: set[int] = set()
        self.pages: dict[int, Page] = {}

    # Mappings.

    def map(
        self,
        first: int,
        count: int,
        prot: str = "rw",
        *,
        anonymous: bool = True,
        inherited: bool = True,
    ) -> None:
        """Map fresh memory over the range, as MAP_FIXED does."""
        self._unmap(first, count)
        self.add(first, count, prot, anonymous=anonymous, inherited=inherited)

    def unmap(self, first: int, count: int) -> None:
        """Unmap the range, whatever of it is mapped."""
        self._unmap(first, count)
        self.remove(first, count)

    def _unmap(self, first: int, count: int) -> None:
        self._clear(range(first, first + count))
        self._unhuge(first, count, None)
        # Page tables go with the mapping, where it had all of the addresses they are for.
        self._tables.difference_update(range(-(-first // HUGE), (first + count) // HUGE))

    def _change(self, first: int, count: int, **attributes: Any) -> None:
        self.change(first, count, **attributes)
        # A bound in its midst costs a huge page its one entry; whether there is one, is seen.
        self._unhuge(first, count, None)

    def protect(self, first: int, count: int, prot: str) -> None:
        """Change the protection: "rw", "r" or ""."""
        self._change(first, count, prot=prot)

    def lock(self, first: int, count: int) -> None:
        """Lock as mlock2 with MLOCK_ONFAULT: what is there stays, nothing is filled."""
        self._change(first, count, locked=True)

    def unlock(self, first: int, count: int) -> None:
        """Unlock the range."""
        self._change(first, count, locked=False)

    def register_elsewhere(self, first: int, count: int) -> None:
        """Let another userfaultfd have the range."""
        vmas = self.vmas(first, count)
        if any(vma.mapping.registered is Registration.OURS for vma in vmas):
            raise CallError(errno.EBUSY)
        self._change(first, count, registered=Registration.OTHER)

    def unregister(self, first: int, count: int) -> None:
        """Let no userfaultfd have the range."""
        self._change(first, count, registered=Registration.NONE)

    # Page tables.

    def _clear(self, pages: Iterable[int], *, markers: bool = True) -> None:
        for page in pages:
            entry = self.pages.get(page)
            if entry is not None and (markers or entry.kind is not Kind.GUARD):
                del self.pages[page]

    def run(self, page: int) -> range:
        """Return the pages that one huge page would map here."""
        start = page - page % HUGE
        return range(start, start + HUGE)

    def _unhuge(self, first: int, count: int, huge: bool | None) -> None:
        """Split huge pages that lie partly in the range."""
        end = first + count
        for page in {first, end - 1}:
            run = self.run(page)
            if run.start < first or run.stop > end:
                self.split(page, huge)

    def split(self, page: int, huge: bool | None = False) -> None:
        """Map the pages around by an entry each, or perhaps (None)."""
        for each in self.run(page):
            entry = self.pages.get(each)
            if entry is not None and entry.huge is not False:
                entry.huge = huge
        self._tables.add(page // HUGE)

    def has_table(self, page: int) -> bool:
        """Whether a page table may be there; if not, surely none is."""
        return page // HUGE in self._tables

    def note_table(self, page: int) -> None:
        """Note that a page table may be there from now on."""
        self._tables.add(page // HUGE)

    def touch_read(self, page: int, *, huge: bool = False) -> int:
        """Read a page, and return what it holds; `huge`: a huge page was seen afterwards."""
        entry = self.pages.get(page)
        if entry is None:
            self._fault(page, Kind.ZERO, huge)
            return 0
        self._touchable(entry)
        if entry.swapped:
            entry.swapped = False
            if entry.claim is Claim.LEFT:
                entry.claim = Claim.UNKNOWN
        return entry.token

    def touch_write(self, page: int, token: int, *, huge: bool = False) -> None:
        """Fill a page; `huge`: a huge page was seen afterwards."""
        entry = self.pages.get(page)
        if entry is None:
            self._fault(page, Kind.ANON, huge)
        else:
            self._touchable(entry)
            self._write_fault(page, entry, huge)
        self.pages[page].token = token
        self.pages[page].swapped = False

    def _touchable(self, entry: Page) -> None:
        if entry.kind in (Kind.GUARD, Kind.POISON):
            raise ValueError("touching it would be SIGSEGV or SIGBUS")

    def _fault(self, page: int, kind: Kind, huge: bool) -> None:
        if not huge:
            self.pages[page] = Page(kind)
            self._tables.add(page // HUGE)
            return
        run = self.run(page)
        vma = self.vma_at(page)
        if vma is None or vma.start > run.start or vma.end < run.stop:
            raise Impossible("a huge page where its mapping has no room for one")
        if any(each in self.pages for each in run):
            raise Impossible("a huge page over pages that were there")
        self._map_huge(run, kind)

    def _map_huge(self, run: range, kind: Kind) -> None:
        folio = Folio() if kind is Kind.ANON else None
        for each in run:
            self.pages[each] = Page(kind, huge=True, folio=folio)
        if folio is not None:
            folio.head = self.pages[run.start]

    def _write_fault(self, page: int, entry: Page, huge: bool) -> None:
        run = self.run(page)
        if entry.kind is Kind.ZERO:
            if huge and entry.huge is not False:
                self._map_huge(run, Kind.ANON)
                return
            self.split(page)
            self.pages[page] = Page(Kind.ANON)
        elif entry.claim is Claim.SHARED:
            self.split(page)
            self.pages[page] = Page(Kind.ANON)
        elif entry.claim is not Claim.MINE:
            if entry.folio is None:
                entry.own()
            elif huge:
                for each in run:
                    self.pages[each].own()
            else:
                # Reused in place or copied; and the kernel asks the first page of a huge page
                # whether any page of it may move.
                self.split(page)
                for other in self.pages.values():
                    if other.folio is entry.folio and other.claim is Claim.LEFT:
                        other.claim = Claim.UNKNOWN

    def _advise(self, first: int, count: int, do: Callable[[range], None], *, locked: bool) -> None:
        """Do something mapping by mapping, as madvise does: a gap is reported at the end."""
        for vma in self.vmas(first, count):
            if vma.mapping.locked and not locked:
                raise CallError(errno.EINVAL)
            self._unhuge(vma.start, vma.length, False)
            do(range(vma.start, vma.end))
        if not self.covered(first, count):
            raise CallError(errno.ENOMEM)

    def discard(self, first: int, count: int) -> None:
        """MADV_DONTNEED: pages go, guard pages stay."""
        self._advise(first, count, lambda run: self._clear(run, markers=False), locked=False)

    def guard(self, first: int, count: int) -> None:
        """MADV_GUARD_INSTALL: what was there is gone."""

        def install(run: range) -> None:
            self.pages.update((page, Page(Kind.GUARD)) for page in run)
            self._tables.update(page // HUGE for page in run)

        self._advise(first, count, install, locked=False)

    def unguard(self, first: int, count: int) -> None:
        """MADV_GUARD_REMOVE: guard pages become holes, nothing else changes."""

        def remove(run: range) -> None:
            guards = [page for page in run if self._is(page, Kind.GUARD)]
            self._clear(guards)

        for vma in self.vmas(first, count):
            remove(range(vma.start, vma.end))
        if not self.covered(first, count):
            raise CallError(errno.ENOMEM)

    def _is(self, page: int, kind: Kind) -> bool:
        entry = self.pages.get(page)
        return entry is not None and entry.kind is kind

    def poison(self, first: int, count: int) -> None:
        """UFFDIO_POISON over holes."""
        if any(page in self.pages for page in range(first, first + count)):
            raise CallError(errno.EEXIST)
        self.pages.update((page, Page(Kind.POISON)) for page in range(first, first + count))
        self._tables.update(page // HUGE for page in range(first, first + count))

    def page_out(self, swapped: Iterable[int]) -> None:
        """Note which pages were seen to have left for swap."""
        for page in swapped:
            entry = self.pages.get(page)
            mapping = self._mappings.get(page)
            if entry is None or mapping is None or mapping.locked or entry.kind is not Kind.ANON:
                raise Impossible(f"page {page} was swapped out: {entry}, {mapping}")
            if entry.claim is Claim.SHARED and not entry.swapped_at_fork:
                raise Impossible(f"page {page} was swapped out, which another process maps")
            entry.swapped = True
            entry.huge, entry.folio = False, None

    # Processes.

    @property
    def children(self) -> set[int]:
        """The children that live."""
        return set(self._children)

    def fork(self) -> int:
        """Fork a child that lives on and touches nothing; return its number."""
        self._last_child += 1
        self._children.add(self._last_child)
        for page, entry in self.pages.items():
            if self.inherited(page):
                entry.fork(self._last_child)
        return self._last_child

    def end_child(self, child: int) -> None:
        """Let a child exit: what it had is not given back until it is written or unshared."""
        self._children.remove(child)
        for entry in self.pages.values():
            entry.child_ended(child)

    # What can be seen.

    def states(self, first: int, count: int) -> list[tuple[int, int]]:
        """Return the words of `page_states`, each with the flags of it that are not certain."""
        hole = (0, 0)
        return [
            self.pages[page].state() if page in self.pages else hole
            for page in range(first, first + count)
        ]

    def adopt_states(self, first: int, seen: Sequence[int]) -> None:
        """Compare with what was seen, and take over what was not certain."""
        expected = self.states(first, len(seen))
        for page, (word, (sure, unsure)) in enumerate(zip(seen, expected, strict=True), first):
            if (word ^ sure) & ~unsure:
                raise Impossible(
                    f"page {page} is {State(word)!r}, not {State(sure)!r}"
                    f" (not certain: {State(unsure)!r}); {self.pages.get(page)}"
                )
            if unsure & _HUGE:
                self.pages[page].huge = bool(word & _HUGE)
            if unsure & _ZERO:
                self.pages[page].perhaps_zero = False
                if word & _ZERO:
                    self.pages[page] = Page(Kind.ZERO)
