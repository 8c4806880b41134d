"""Paged memory: arrays larger than memory, whose blocks come from a store when they are touched."""

from pagemove.paging.allocations import AllocationStats, PagedAllocations, paged_allocations
from pagemove.paging.array import PagedArray
from pagemove.paging.arrays import open_arrays
from pagemove.paging.budget import Budget, BudgetShare, BudgetStats
from pagemove.paging.create import create_array
from pagemove.paging.giving import serve
from pagemove.paging.memmap import memmap
from pagemove.paging.open import open_array, region_of
from pagemove.paging.pins import pinned
from pagemove.paging.reference import Reference, reference
from pagemove.paging.region import PagedMemory
from pagemove.paging.saving import save
from pagemove.paging.sigterm import save_on_sigterm
from pagemove.paging.stats import PagingStats
from pagemove.paging.taking import prefetch, take

__all__ = [
    "AllocationStats",
    "Budget",
    "BudgetShare",
    "BudgetStats",
    "PagedAllocations",
    "PagedArray",
    "PagedMemory",
    "PagingStats",
    "Reference",
    "create_array",
    "memmap",
    "open_array",
    "open_arrays",
    "paged_allocations",
    "pinned",
    "prefetch",
    "reference",
    "region_of",
    "save",
    "save_on_sigterm",
    "serve",
    "take",
]
