"""What regions, budgets and arenas have done so far, in numbers.

Dataclasses take long to make for what most programs never ask: this is imported by who is asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from pagemove.errors import StoreError

#: What is at the moment, and not a count of what happened.
_LEVELS = ("resident_nbytes", "dirty_nbytes", "pinned_nbytes")


@dataclass(frozen=True, slots=True)
class PagingStats:
    """What a region has done since it was made, and what it holds at this moment.

    ``later - earlier`` is what happened in between, with the levels of the later one.

    Attributes
    ----------
    faults : int
        Touches of blocks that were not mapped: each had a thread wait.
    write_faults : int
        First writes to blocks that had been read before: each had a thread wait, without I/O.
    soft_faults : int
        Faults served without I/O, because the block was read ahead or had just been evicted.
    prefetched : int
        Blocks read before they were touched.
    evicted : int
        Blocks that left the region.
    remapped : int
        Blocks that were taken out by mremap, because the kernel has no UFFDIO_MOVE
        (`KernelFeatures.paging`); 0 where it has.
    written_back : int
        Changed blocks that were written to the store.
    resident_nbytes, dirty_nbytes, pinned_nbytes : int
        Bytes in memory now, blocks on their way in and out included, without those that stay in
        place and count as stored (``store["in_place_blocks"]``); bytes changed, and not yet
        written back; bytes of blocks that are `pinned`.
    bytes_read, bytes_written : int
        From and to the store.
    retries, errors : int
        Reads, writes and flushes that failed and were tried again; that failed for good.
    restarts : int
        Helper processes that had ended and were started anew.
    background_written : int
        Changed blocks, of `written_back`, that were written because of `writeback_interval`.
    background_failures : int
        Times that the store has not taken them; they stay changed, and are tried again.
    failures : tuple of StoreError
        The newest of what failed for good, at most 64, oldest first.
    histogram : tuple of (int, int)
        How long faults took: an upper bound in nanoseconds, and how many took less than it, but not
        less than the bound before. Ascending, without empty ones.
    io : mapping of str to str
        How a file is read, as far as is known: ``"queue"`` is ``"io_uring"``, or ``"threads"`` and
        why, once a block was not in the page cache; ``"direct"`` is ``"yes"``, or ``"no"`` and why,
        if the store was opened with `direct`.
    store : mapping of str to float
        What the store says of itself at the moment (`Store.stats`): how well a `CompressedStore`
        compresses, for instance. Empty for a file.

    Examples
    --------
    >>> import pagemove
    >>> stats = pagemove.PagingStats(faults=4, histogram=((10_000, 3), (80_000, 1)))
    >>> stats.p50_ns, stats.p99_ns
    (10000, 80000)
    """

    faults: int = 0
    write_faults: int = 0
    soft_faults: int = 0
    prefetched: int = 0
    evicted: int = 0
    remapped: int = 0
    written_back: int = 0
    resident_nbytes: int = 0
    dirty_nbytes: int = 0
    pinned_nbytes: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    retries: int = 0
    errors: int = 0
    restarts: int = 0
    background_written: int = 0
    background_failures: int = 0
    failures: tuple[StoreError, ...] = field(default=(), compare=False)
    histogram: tuple[tuple[int, int], ...] = ()
    io: Mapping[str, str] = field(default_factory=dict)
    store: Mapping[str, float] = field(default_factory=dict)

    @property
    def p50_ns(self) -> int:
        """What half of the faults took at most, in nanoseconds; 0 if there were none."""
        return self.percentile(50)

    @property
    def p99_ns(self) -> int:
        """What 99 of 100 faults took at most, in nanoseconds; 0 if there were none."""
        return self.percentile(99)

    def percentile(self, percent: float) -> int:
        """Return what so many of 100 faults took at most, in nanoseconds; 0 if there were none.

        It is an upper bound from the histogram.

        Parameters
        ----------
        percent : float
            From 0 to 100.

        Returns
        -------
        int
            Nanoseconds.

        Examples
        --------
        >>> import pagemove
        >>> stats = pagemove.PagingStats(faults=4, histogram=((10_000, 3), (80_000, 1)))
        >>> stats.percentile(75), stats.percentile(76)
        (10000, 80000)
        """
        wanted = sum(count for _, count in self.histogram) * percent / 100
        seen = 0
        for bound, count in self.histogram:
            seen += count
            if seen >= wanted:
                return bound
        return 0

    def __sub__(self, earlier: PagingStats) -> PagingStats:
        if not isinstance(earlier, PagingStats):
            return NotImplemented
        counts = Counter(dict(self.histogram))
        counts.subtract(dict(earlier.histogram))
        numbers = {
            each.name: getattr(self, each.name) - getattr(earlier, each.name)
            for each in fields(self)
            if each.name not in (*_LEVELS, "failures", "histogram", "io", "store")
        }
        new = min(numbers["errors"], len(self.failures))
        return PagingStats(
            **numbers,
            **{name: getattr(self, name) for name in _LEVELS},
            failures=self.failures[len(self.failures) - new :],
            histogram=tuple((bound, count) for bound, count in sorted(counts.items()) if count),
            io=self.io,
            store=self.store,
        )


@dataclass(frozen=True, slots=True)
class AllocationStats:
    """What an arena holds, and what its region has done: of `PagedAllocations.stats`.

    Attributes
    ----------
    limit : int or None
        Bytes that are in memory at most.
    arrays : int
        Arrays in it, also those that have outlived the block.
    nbytes, peak_nbytes : int
        Bytes of all of them, in whole blocks: now, and at most so far.
    allocations : int
        Arrays that were made, so far.
    moved_nbytes : int
        Bytes that were copied because an array grew (`ndarray.resize`), had no room where it was,
        and its pages could not move: a forked child shares them, or they are locked (mlock).
    refused : int
        Arrays that were not made, for want of address space, or of room in `store_limit`: each was
        a MemoryError.
    space_nbytes, largest_free_nbytes : int
        Address space; the largest part of it that is free in one piece. What is free has no memory.
    paging : PagingStats
        Of the region.
    """

    limit: int | None
    arrays: int
    nbytes: int
    peak_nbytes: int
    allocations: int
    moved_nbytes: int
    refused: int
    space_nbytes: int
    largest_free_nbytes: int
    paging: PagingStats = field(repr=False)


@dataclass(frozen=True, slots=True)
class BudgetShare:
    """What one region has of a `Budget` at the moment.

    Attributes
    ----------
    label : str
        The store of the region, as messages name it.
    block_size : int
        Bytes of its blocks; it has whole blocks of the budget.
    leased_nbytes : int
        Bytes that are its own for now: it may use them without asking.
    resident_nbytes : int
        Bytes of it in memory, blocks on their way in and out included; never more than leased.
    """

    label: str
    block_size: int
    leased_nbytes: int
    resident_nbytes: int


@dataclass(frozen=True, slots=True)
class BudgetStats:
    """What became of a `Budget` so far, and who has it at this moment.

    Attributes
    ----------
    limit : int
        Bytes that all regions together may have in memory.
    leased_nbytes : int
        Bytes that regions have, used or not: never more than `limit`, but while `Budget.resize`
        has yet to get back what is too much.
    least_nbytes : int
        Bytes that the regions cannot do without: four blocks each, and what is `pinned`.
    grown_nbytes, returned_nbytes : int
        Bytes that regions got so far, and returned.
    moved_nbytes : int
        Bytes, of those returned, that went from a region that missed little to one that missed
        more.
    refused : int
        Times that a region could not return what was wanted of it: its blocks are pinned, in use,
        or cannot be written.
    members : int
        Regions that share it, those included that have ended but not given back their memory.
    regions : tuple of BudgetShare
        What each of the open ones has.
    kept_nbytes : int
        Bytes of it that are set aside for what the processes of regions keep decoded
        (`stores.SlicedStore`).
    """

    limit: int
    leased_nbytes: int
    least_nbytes: int
    grown_nbytes: int
    returned_nbytes: int
    moved_nbytes: int
    refused: int
    members: int
    regions: tuple[BudgetShare, ...] = ()
    kept_nbytes: int = 0

    @property
    def resident_nbytes(self) -> int:
        """Bytes of all open regions in memory."""
        return sum(each.resident_nbytes for each in self.regions)
