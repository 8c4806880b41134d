"""remap_anon_pages for Python: move pages of memory between mappings, without copying.

Its names are imported at their first use: most programs use few, and start the sooner.
"""

from typing import TYPE_CHECKING

# All but `lazily` is imported for what it begins, which counts from the import of the library on:
# which standard streams the process has (the native core, with `exits`), what is kept for the case
# that memory is short, and the places among the program's handlers at exit and in forked children.
from pagemove import children, lazily, limits  # noqa: F401
from pagemove._version import __version__ as __version__
from pagemove.paging import exits  # noqa: F401

if TYPE_CHECKING:
    from pagemove import lowlevel, stores
    from pagemove.calls.move_many import move_many
    from pagemove.calls.mremap import mremap
    from pagemove.calls.remap import RAP_ALLOW_SRC_HOLES, move, remap_anon_pages
    from pagemove.calls.unshare import unshare
    from pagemove.errors import (
        DestinationMapped,
        KernelFaultsWarning,
        PageShared,
        RemapError,
        SourceHole,
        StoreError,
        UnsupportedError,
    )
    from pagemove.introspect import (
        HUGE_PAGE_SIZE,
        PAGE_SIZE,
        PageState,
        Vma,
        page_states,
        vmas,
    )
    from pagemove.kernel import KernelFeatures
    from pagemove.memory import Memory, empty
    from pagemove.paging.allocations import PagedAllocations, paged_allocations
    from pagemove.paging.array import PagedArray
    from pagemove.paging.arrays import open_arrays
    from pagemove.paging.budget import Budget
    from pagemove.paging.create import create_array
    from pagemove.paging.giving import serve
    from pagemove.paging.memmap import memmap
    from pagemove.paging.open import open_array, region_of
    from pagemove.paging.pins import pinned
    from pagemove.paging.reference import Reference, reference
    from pagemove.paging.region import PagedMemory
    from pagemove.paging.saving import save
    from pagemove.paging.sigterm import save_on_sigterm
    from pagemove.paging.stats import AllocationStats, BudgetShare, BudgetStats, PagingStats
    from pagemove.paging.taking import prefetch, take
    from pagemove.probing import features
else:
    _MODULES = {
        "calls.move_many": ("move_many",),
        "calls.mremap": ("mremap",),
        "calls.remap": ("RAP_ALLOW_SRC_HOLES", "move", "remap_anon_pages"),
        "calls.unshare": ("unshare",),
        "errors": (
            *("DestinationMapped", "KernelFaultsWarning", "PageShared", "RemapError"),
            *("SourceHole", "StoreError", "UnsupportedError"),
        ),
        "introspect": (
            *("HUGE_PAGE_SIZE", "PAGE_SIZE", "PageState", "Vma", "page_states", "vmas"),
        ),
        "kernel": ("KernelFeatures",),
        "memory": ("Memory", "empty"),
        "paging.allocations": ("PagedAllocations", "paged_allocations"),
        "paging.array": ("PagedArray",),
        "paging.arrays": ("open_arrays",),
        "paging.budget": ("Budget",),
        "paging.create": ("create_array",),
        "paging.giving": ("serve",),
        "paging.memmap": ("memmap",),
        "paging.open": ("open_array", "region_of"),
        "paging.pins": ("pinned",),
        "paging.reference": ("Reference", "reference"),
        "paging.region": ("PagedMemory",),
        "paging.saving": ("save",),
        "paging.sigterm": ("save_on_sigterm",),
        "paging.stats": ("AllocationStats", "BudgetShare", "BudgetStats", "PagingStats"),
        "paging.taking": ("prefetch", "take"),
        "probing": ("features",),
    }
    # Who makes a region may be told why that fails, what it has done, and that there is no
    # descriptor left: nothing is imported then. `pagemove run` has a region before the program.
    _OF_ARENAS = ("paging.counts", "probing")
    _OF_STORES = (*_OF_ARENAS, "paging.stored", "paging.gather", "paging.sigterm")
    # That arrays pickle, and what Dask is told of them, is made of what is built on them.
    _OF_ARRAYS = (*_OF_STORES, "paging.reference")
    _ALONG = {
        "paging.allocations": _OF_ARENAS,
        "paging.region": _OF_STORES,
        "paging.array": _OF_ARRAYS,
        "paging.arrays": _OF_ARRAYS,
        "paging.create": _OF_ARRAYS,
        "paging.memmap": _OF_ARRAYS,
        "paging.open": _OF_ARRAYS,
        "paging.reference": _OF_ARRAYS,
        "paging.taking": _OF_ARRAYS,
    }
    _PARTS = frozenset(
        (
            *("arguments", "calls", "cgroups", "containers", "descriptors", "errors"),
            *("introspect", "kernel", "lowlevel", "memory", "probing", "problems"),
            *("registration", "stores", "views"),
        )
    )
    __getattr__, __dir__ = lazily.names(
        __name__,
        {name: module for module, names in _MODULES.items() for name in names},
        parts=_PARTS,
        along=_ALONG,
    )

__all__ = [
    "HUGE_PAGE_SIZE",
    "PAGE_SIZE",
    "RAP_ALLOW_SRC_HOLES",
    "AllocationStats",
    "Budget",
    "BudgetShare",
    "BudgetStats",
    "DestinationMapped",
    "KernelFaultsWarning",
    "KernelFeatures",
    "Memory",
    "PageShared",
    "PageState",
    "PagedAllocations",
    "PagedArray",
    "PagedMemory",
    "PagingStats",
    "Reference",
    "RemapError",
    "SourceHole",
    "StoreError",
    "UnsupportedError",
    "Vma",
    "create_array",
    "empty",
    "features",
    "lowlevel",
    "memmap",
    "move",
    "move_many",
    "mremap",
    "open_array",
    "open_arrays",
    "page_states",
    "paged_allocations",
    "pinned",
    "prefetch",
    "reference",
    "region_of",
    "remap_anon_pages",
    "save",
    "save_on_sigterm",
    "serve",
    "stores",
    "take",
    "unshare",
    "vmas",
]
