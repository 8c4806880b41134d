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
    PagedArray,
    PagedMemory,
    PagingStats,
    memmap,
    open_array,
    open_arrays,
    pinned,
    region_of,
    save,
    save_on_sigterm,
)
from pagemove.probing import features

__all__ = [
    "HUGE_PAGE_SIZE",
    "PAGE_SIZE",
    "RAP_ALLOW_SRC_HOLES",
    "DestinationMapped",
    "KernelFaultsWarning",
    "KernelFeatures",
    "Memory",
    "PageShared",
    "PageState",
    "PagedArray",
    "PagedMemory",
    "PagingStats",
    "RemapError",
    "SourceHole",
    "StoreError",
    "UnsupportedError",
    "Vma",
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
    "pinned",
    "region_of",
    "remap_anon_pages",
    "save",
    "save_on_sigterm",
    "stores",
    "unshare",
    "vmas",
]
