"""remap_anon_pages for Python: move pages of memory between mappings, without copying."""

from pagemove import lowlevel, stores
from pagemove._version import __version__ as __version__
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
from pagemove.paging import (
    AllocationStats,
    Budget,
    BudgetShare,
    BudgetStats,
    PagedAllocations,
    PagedArray,
    PagedMemory,
    PagingStats,
    Reference,
    create_array,
    memmap,
    open_array,
    open_arrays,
    paged_allocations,
    pinned,
    prefetch,
    reference,
    region_of,
    save,
    save_on_sigterm,
    serve,
    take,
)
from pagemove.probing import features

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


def __dir__() -> list[str]:
    # For completion: modules that are only parts of it are left out.
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
