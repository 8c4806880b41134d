"""How the pager reads a file, in words: by io_uring or threads, past the page cache or not."""

from __future__ import annotations

import errno
import os

from pagemove._native.pager import Pager
from pagemove.paging.available import available
from pagemove.stores.base import Store
from pagemove.stores.file import FileStore
from pagemove.stores.parts import whole_of

_REFUSED = (errno.EPERM, errno.EACCES)


def _asked(store: Store) -> bool | str:
    whole, _ = whole_of(store)
    return whole.direct if isinstance(whole, FileStore) else False


def goes_direct(store: Store) -> bool:
    """Whether its file is to be read past the page cache, if that is possible."""
    asked = _asked(store)
    if asked != "auto":
        return bool(asked)
    memory = available()
    # A smaller one stays in the page cache, where what was evicted is found again.
    return memory is not None and store.nbytes > memory


def writes_direct(store: Store, limit: int) -> bool:
    """Whether its file is to be written past the page cache, if that is possible.

    A new one that is larger than the limit: with a copy of each block in the page cache it would
    take the memory that the limit denies it, and most of the time that it takes to write it.
    """
    whole, _ = whole_of(store)
    return isinstance(whole, FileStore) and whole._is_new and bool(limit) and store.nbytes > limit


def why_threads(code: int) -> str:
    """Say why io_uring is not used, by the errno of its set-up."""
    if code in _REFUSED:
        return "io_uring is not permitted: a seccomp filter or kernel.io_uring_disabled"
    if code == errno.ENOSYS:
        return "a seccomp filter hides io_uring, or the kernel does not have it"
    if code == errno.EINVAL:
        return "the kernel's io_uring is older than Linux 6.0"
    return f"io_uring cannot be set up: {os.strerror(code)}"


def _why_not_direct(state: int, alignment: int, store: Store) -> str:
    if state == 0:
        return "the memory that is available can hold the whole file"
    if state == -errno.EDOM:
        _, first = whole_of(store)
        return f"byte {first} of the file, the first, is not at a multiple of {alignment}"
    if -state in (errno.EINVAL, errno.EOPNOTSUPP):
        return "the file system has no direct I/O for this file"
    return f"the file cannot be opened for it: {os.strerror(-state)}"


def described(pager: Pager, store: Store) -> dict[str, str]:
    """Return what `PagingStats.io` has."""
    queue, direct, alignment = pager.reading()
    found = {}
    if queue:
        found["queue"] = "io_uring" if queue > 0 else f"threads: {why_threads(-queue)}"
    if direct == 1:
        found["direct"] = "yes"
    elif direct or _asked(store):
        found["direct"] = f"no: {_why_not_direct(direct, alignment, store)}"
    return found
