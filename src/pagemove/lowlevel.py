"""The public door to the raw calls: userfaultfd and its ioctls under their own names.

Integers in, integers out, `OSError` on failure; addresses and lengths in bytes, modes and features
as in ioctl_userfaultfd(2). Nothing is checked, retried or remembered: these are the kernel's calls,
its defects included, for those who build their own pager or collector on them. Each releases the
GIL. `remap_anon_pages` is the safe way to move pages.

Examples
--------
>>> import os
>>> from pagemove import lowlevel
>>> fd = lowlevel.userfaultfd(os.O_CLOEXEC | lowlevel.UFFD_USER_MODE_ONLY)
>>> features, ioctls = lowlevel.api(fd)
>>> bool(features & lowlevel.UFFD_FEATURE_MOVE)
True
>>> os.close(fd)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numpy as np

from pagemove._native import calls

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _of_integers(call: Callable[_P, _R]) -> Callable[_P, _R]:
    """Refuse what is no integer (nor a name in bytes): the native call would cut a float to one."""

    @functools.wraps(call)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        for value in (*args, *kwargs.values()):
            if not isinstance(value, int | np.integer | bytes):
                raise TypeError(
                    f"{call.__name__} takes integers, not the {type(value).__name__} {value!r}"
                )
        return call(*args, **kwargs)

    return checked


api = _of_integers(calls.api)
continue_ = _of_integers(calls.continue_)
copy = _of_integers(calls.copy)
madvise = _of_integers(calls.madvise)
mincore = _of_integers(calls.mincore)
mmap = _of_integers(calls.mmap)
move = _of_integers(calls.move)
mprotect = _of_integers(calls.mprotect)
mremap = _of_integers(calls.mremap)
munmap = _of_integers(calls.munmap)
pagemap_scan = _of_integers(calls.pagemap_scan)
poison = _of_integers(calls.poison)
read_events = _of_integers(calls.read_events)
register = _of_integers(calls.register)
set_vma_name = _of_integers(calls.set_vma_name)
unregister = _of_integers(calls.unregister)
userfaultfd = _of_integers(calls.userfaultfd)
userfaultfd_new = _of_integers(calls.userfaultfd_new)
wake = _of_integers(calls.wake)
writeprotect = _of_integers(calls.writeprotect)
zeropage = _of_integers(calls.zeropage)

UFFD_USER_MODE_ONLY = 1

UFFD_FEATURE_PAGEFAULT_FLAG_WP = 1 << 0
UFFD_FEATURE_EVENT_FORK = 1 << 1
UFFD_FEATURE_EVENT_REMAP = 1 << 2
UFFD_FEATURE_EVENT_REMOVE = 1 << 3
UFFD_FEATURE_MISSING_HUGETLBFS = 1 << 4
UFFD_FEATURE_MISSING_SHMEM = 1 << 5
UFFD_FEATURE_EVENT_UNMAP = 1 << 6
UFFD_FEATURE_SIGBUS = 1 << 7
UFFD_FEATURE_THREAD_ID = 1 << 8
UFFD_FEATURE_MINOR_HUGETLBFS = 1 << 9
UFFD_FEATURE_MINOR_SHMEM = 1 << 10
UFFD_FEATURE_EXACT_ADDRESS = 1 << 11
UFFD_FEATURE_WP_HUGETLBFS_SHMEM = 1 << 12
UFFD_FEATURE_WP_UNPOPULATED = 1 << 13
UFFD_FEATURE_POISON = 1 << 14
UFFD_FEATURE_WP_ASYNC = 1 << 15
UFFD_FEATURE_MOVE = 1 << 16
UFFD_FEATURE_RWP = 1 << 17
UFFD_FEATURE_RWP_ASYNC = 1 << 18

UFFDIO_REGISTER_MODE_MISSING = 1 << 0
UFFDIO_REGISTER_MODE_WP = 1 << 1
UFFDIO_REGISTER_MODE_MINOR = 1 << 2

UFFDIO_COPY_MODE_DONTWAKE = 1 << 0
UFFDIO_COPY_MODE_WP = 1 << 1
UFFDIO_ZEROPAGE_MODE_DONTWAKE = 1 << 0
UFFDIO_WRITEPROTECT_MODE_WP = 1 << 0
UFFDIO_WRITEPROTECT_MODE_DONTWAKE = 1 << 1
UFFDIO_MOVE_MODE_DONTWAKE = 1 << 0
UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES = 1 << 1

UFFD_EVENT_PAGEFAULT = 0x12
UFFD_EVENT_FORK = 0x13
UFFD_EVENT_REMAP = 0x14
UFFD_EVENT_REMOVE = 0x15
UFFD_EVENT_UNMAP = 0x16
UFFD_PAGEFAULT_FLAG_WRITE = 1 << 0
UFFD_PAGEFAULT_FLAG_WP = 1 << 1
UFFD_PAGEFAULT_FLAG_MINOR = 1 << 2

PAGE_IS_WPALLOWED = 1 << 0
PAGE_IS_WRITTEN = 1 << 1
PAGE_IS_FILE = 1 << 2
PAGE_IS_PRESENT = 1 << 3
PAGE_IS_SWAPPED = 1 << 4
PAGE_IS_PFNZERO = 1 << 5
PAGE_IS_HUGE = 1 << 6

MREMAP_MAYMOVE = 1
MREMAP_FIXED = 2
MREMAP_DONTUNMAP = 4
MAP_FIXED_NOREPLACE = 0x100000
MADV_COLD = 20
MADV_PAGEOUT = 21
MADV_POPULATE_READ = 22
MADV_POPULATE_WRITE = 23
MADV_GUARD_INSTALL = 102
MADV_GUARD_REMOVE = 103

__all__ = [
    "MADV_COLD",
    "MADV_GUARD_INSTALL",
    "MADV_GUARD_REMOVE",
    "MADV_PAGEOUT",
    "MADV_POPULATE_READ",
    "MADV_POPULATE_WRITE",
    "MAP_FIXED_NOREPLACE",
    "MREMAP_DONTUNMAP",
    "MREMAP_FIXED",
    "MREMAP_MAYMOVE",
    "PAGE_IS_FILE",
    "PAGE_IS_HUGE",
    "PAGE_IS_PFNZERO",
    "PAGE_IS_PRESENT",
    "PAGE_IS_SWAPPED",
    "PAGE_IS_WPALLOWED",
    "PAGE_IS_WRITTEN",
    "UFFDIO_COPY_MODE_DONTWAKE",
    "UFFDIO_COPY_MODE_WP",
    "UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES",
    "UFFDIO_MOVE_MODE_DONTWAKE",
    "UFFDIO_REGISTER_MODE_MINOR",
    "UFFDIO_REGISTER_MODE_MISSING",
    "UFFDIO_REGISTER_MODE_WP",
    "UFFDIO_WRITEPROTECT_MODE_DONTWAKE",
    "UFFDIO_WRITEPROTECT_MODE_WP",
    "UFFDIO_ZEROPAGE_MODE_DONTWAKE",
    "UFFD_EVENT_FORK",
    "UFFD_EVENT_PAGEFAULT",
    "UFFD_EVENT_REMAP",
    "UFFD_EVENT_REMOVE",
    "UFFD_EVENT_UNMAP",
    "UFFD_FEATURE_EVENT_FORK",
    "UFFD_FEATURE_EVENT_REMAP",
    "UFFD_FEATURE_EVENT_REMOVE",
    "UFFD_FEATURE_EVENT_UNMAP",
    "UFFD_FEATURE_EXACT_ADDRESS",
    "UFFD_FEATURE_MINOR_HUGETLBFS",
    "UFFD_FEATURE_MINOR_SHMEM",
    "UFFD_FEATURE_MISSING_HUGETLBFS",
    "UFFD_FEATURE_MISSING_SHMEM",
    "UFFD_FEATURE_MOVE",
    "UFFD_FEATURE_PAGEFAULT_FLAG_WP",
    "UFFD_FEATURE_POISON",
    "UFFD_FEATURE_RWP",
    "UFFD_FEATURE_RWP_ASYNC",
    "UFFD_FEATURE_SIGBUS",
    "UFFD_FEATURE_THREAD_ID",
    "UFFD_FEATURE_WP_ASYNC",
    "UFFD_FEATURE_WP_HUGETLBFS_SHMEM",
    "UFFD_FEATURE_WP_UNPOPULATED",
    "UFFD_PAGEFAULT_FLAG_MINOR",
    "UFFD_PAGEFAULT_FLAG_WP",
    "UFFD_PAGEFAULT_FLAG_WRITE",
    "UFFD_USER_MODE_ONLY",
    "api",
    "continue_",
    "copy",
    "madvise",
    "mincore",
    "mmap",
    "move",
    "mprotect",
    "mremap",
    "munmap",
    "pagemap_scan",
    "poison",
    "read_events",
    "register",
    "set_vma_name",
    "unregister",
    "userfaultfd",
    "userfaultfd_new",
    "wake",
    "writeprotect",
    "zeropage",
]
