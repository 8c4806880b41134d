"""Paged memory: arrays larger than memory, whose blocks come from a store when they are touched."""

from pagemove.paging.open import open_array, region_of
from pagemove.paging.region import PagedMemory
from pagemove.paging.sigterm import save_on_sigterm
from pagemove.paging.stats import PagingStats

__all__ = ["PagedMemory", "PagingStats", "open_array", "region_of", "save_on_sigterm"]
