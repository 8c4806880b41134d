"""unshare: make pages that a fork has left shared exclusive again."""

from __future__ import annotations

import errno

import numpy as np
import numpy.typing as npt

from pagemove._native import calls, remap
from pagemove._native.mapping import Hold
from pagemove.calls.failure import Failure
from pagemove.introspect import HUGE_PAGE_SIZE, PAGE_SIZE, PageState, states_at

_STATE_CHUNK = 1 << 16


def unshare(buffer: object, *, copy: bool = False) -> int:
    """Make pages left shared by a fork exclusive again, so that they can move.

    After a forked child has ended, the kernel still takes the pages it shared for shared until
    they are written to. This does so for every page of the buffer, in place and without changing
    a byte. Holes and zero pages stay as they are.

    Parameters
    ----------
    buffer : writable C-contiguous buffer
        Every page that it overlaps is made exclusive.
    copy : bool
        Copy pages that a living process shares, instead of refusing.

    Returns
    -------
    int
        Pages made exclusive. A swapped-out page is read in and counts, as whether it was shared
        cannot be told.

    Raises
    ------
    PageShared
        A living process shares a page, or KSM has merged it; without `copy` nothing was done.
    RemapError
        EINVAL: the buffer is in paged memory. ENOMEM and others of madvise(2)
        MADV_POPULATE_WRITE. `.moved` is 0.
    BufferError, TypeError
        The buffer is read-only; the argument is not a C-contiguous buffer.

    Notes
    -----
    About 0.1 to 0.3 microseconds a page, one page fault for each that was shared. A fork in
    another thread at the same time may turn "in place" into a copy.

    Examples
    --------
    >>> import pagemove
    >>> with pagemove.Memory(4096) as memory:
    ...     pagemove.unshare(memory)
    0
    """
    with Hold(buffer, True) as hold:
        start = hold.address - hold.address % PAGE_SIZE
        pages = -(-(hold.address + hold.nbytes - start) // PAGE_SIZE) if hold.nbytes else 0
        try:
            _refuse_paged(start, pages * PAGE_SIZE)
            if not copy:
                _refuse_shared(start, pages)
            return sum(
                _make_exclusive(start + at * PAGE_SIZE, min(_STATE_CHUNK, pages - at))
                for at in range(0, pages, _STATE_CHUNK)
            )
        except Failure as failure:
            raise failure.as_error("unshare") from None


def _refuse_paged(start: int, length: int) -> None:
    region = remap.paged_at(start, length)
    if region:
        # To write to pages of it would make blocks of it dirty.
        raise Failure(
            errno.EINVAL,
            max(start, region),
            f"the buffer at {start:#x} is in paged memory, the PagedMemory at {region:#x}, which "
            "no fork inherits: no page of it is shared, and there is nothing to do",
        )


def _has(states: npt.NDArray[np.uint16], flag: PageState) -> npt.NDArray[np.bool_]:
    return np.asarray((states & np.uint16(flag)) != 0, np.bool_)


def _refuse_shared(start: int, pages: int) -> None:
    for at in range(0, pages, _STATE_CHUNK):
        states = states_at(start + at * PAGE_SIZE, min(_STATE_CHUNK, pages - at))
        shared = (
            _has(states, PageState.PRESENT)
            & ~_has(states, PageState.ZERO)
            & ~_has(states, PageState.EXCLUSIVE)
        )
        if shared.any():
            page = at + int(np.argmax(shared))
            raise Failure(
                errno.EBUSY,
                start + page * PAGE_SIZE,
                f"page {page} at {start + page * PAGE_SIZE:#x} is shared with a living process, or "
                "merged by KSM: end that process first, or pass copy=True",
            )


def _make_exclusive(start: int, pages: int) -> int:
    """Write-touch the pages that are there, run by run; return how many needed it."""
    states = states_at(start, pages)
    there = _has(states, PageState.PRESENT | PageState.SWAPPED) & ~_has(states, PageState.ZERO)
    huge = there & _has(states, PageState.HUGE)
    made = _touch_runs(start, there & ~huge)
    return made + _touch_huge(start, huge)


def _runs(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    return edges.reshape(-1, 2)


def _touch_runs(start: int, mask: npt.NDArray[np.bool_]) -> int:
    return sum(
        min(
            _populate(start + int(first) * PAGE_SIZE, int(last - first) * PAGE_SIZE),
            int(last - first),
        )
        for first, last in _runs(mask)
    )


def _touch_huge(start: int, mask: npt.NDArray[np.bool_]) -> int:
    """One fault makes a whole huge page exclusive, so these are counted one by one."""
    made = 0
    for first, last in _runs(mask):
        at, end = start + int(first) * PAGE_SIZE, start + int(last) * PAGE_SIZE
        while at < end:
            border = min(end, at - at % HUGE_PAGE_SIZE + HUGE_PAGE_SIZE)
            faults = _populate(at, border - at)
            pages = (border - at) // PAGE_SIZE
            # A page may take more than one fault: the first may only split the huge page.
            made += pages if faults == 1 else min(faults, pages)
            at = border
    return made


def _populate(address: int, length: int) -> int:
    try:
        return calls.populate_write(address, length)
    except OSError as error:
        raise Failure(
            error.errno or errno.EINVAL,
            address,
            f"the pages at {address:#x} cannot be made writable: {error.strerror}",
        ) from None
