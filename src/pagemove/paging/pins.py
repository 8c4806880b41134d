"""Blocks that stay while they are used: `pinned`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NoReturn, TypeVar

import numpy as np

from pagemove._native.mapping import generation
from pagemove.paging import failures
from pagemove.paging.behind import region_behind
from pagemove.paging.places import Offsets, Runs, array_behind, runs_of
from pagemove.paging.region import PagedMemory
from pagemove.paging.sizes import text_of

_View = TypeVar("_View")


@contextlib.contextmanager
def pinned(view: _View, *, write: bool | None = None) -> Iterator[_View]:
    """Bring the blocks of a view in, and keep them resident while the block of code runs.

    System calls then find them there. Without privileges that is what they need: where nobody
    serves the faults of system calls (`PagedMemory.kernel_faults` is False), ``file.write``,
    ``readinto``, sockets, and whatever ends in them, fail with EFAULT on blocks that are not there.

    Parameters
    ----------
    view : array, memoryview or buffer
        Whose blocks are pinned: any view of a region, strided ones too, of which only blocks with
        an item of the view count; a `PagedMemory` itself; or what has such memory, a tensor for
        instance. Of anything that is not in paged memory nothing needs to be pinned, and nothing
        is.
    write : bool, optional
        Whether system calls may write into it. The blocks then count as changed, and are written
        back later. By default, where the view is writeable; False where it is only to be read saves
        that.

    Yields
    ------
    object
        `view`.

    Raises
    ------
    ValueError
        The blocks do not fit the limit; or `write`, and the region is read-only; or the region is
        closed.
    StoreError
        A block cannot be read. The first of them ends the call, after `store_timeout` seconds: what
        was read until then stays in memory, and nothing is pinned.
    TypeError
        `view` has no memory to look at.

    Notes
    -----
    What is pinned by several, or overlaps, stays until the last of them ends. Together they can
    have all of `resident_limit` but four blocks, which the rest of the region needs to be paged
    (eight of huge pages that are writable). `PagedMemory.evict` passes pinned blocks by. `flush`
    writes changed ones, but has them stay as changed as they were, since system calls may change
    them unseen; of what is stored just then it may write a part, and the rest the next time.

    The region cannot be closed meanwhile, nor the array: BufferError. In a child made by fork it is
    not there, and the end of the block does nothing. A thread that discards pinned memory
    (MADV_DONTNEED) takes it away.

    Pinning costs the reads, and for each block some microseconds.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np, pagemove
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "numbers.npy")
    ...     np.save(path, np.arange(1_000_000))
    ...     numbers = pagemove.open_array(path, resident_limit="2MiB")
    ...     with open(path.with_name("some"), "wb") as file, pagemove.pinned(numbers[1000:50_000]):
    ...         file.write(numbers[1000:50_000])
    392000
    """
    array = array_behind(view, "pin")
    region, place = region_behind(array)
    if region is None:
        yield view
        return
    # What is not NumPy's may say that it is writeable, whatever it was made of.
    by_default = array.flags.writeable and (region.mode != "r" or isinstance(view, np.ndarray))
    writes = by_default if write is None else write
    if writes and region.mode == "r":
        raise ValueError(
            f"{region!r} is read-only, and cannot be pinned to be written: open it with mode 'r+' "
            "or 'c'"
        )
    with memoryview(region):  # which keeps it open
        runs = runs_of(place, region.address, region.block_size)
        _pin(region, runs, writes)
        born, key = generation(), object()
        region._pins[key] = place.start - region.address, place.nbytes
        try:
            yield view
        finally:
            # In a child made by fork nothing is pinned.
            if generation() == born:
                del region._pins[key]
                region.unpin_blocks(runs.tobytes())


def _pin(region: PagedMemory, runs: Runs, write: bool) -> None:
    first = failures.next_sequence(region)
    code = region.pin_blocks(runs.tobytes(), write)
    if code < 0:
        _throw_too_large(region, int(runs[:, 1].sum()))
    if code and region.lost:
        region._throw_lost()
    failures.check_read(region, code, first, Offsets(runs, region.block_size), region._label)


def _throw_too_large(region: PagedMemory, count: int) -> NoReturn:
    wanted, most, limit = count * region.block_size, region.pinnable, region.resident_limit or 0
    already = region.counters()["pinned"]
    others = f", {text_of(already)} are pinned already" if already else ""
    raise ValueError(
        f"cannot pin {text_of(wanted)} of {region._label}: of its limit of {text_of(limit)} at "
        f"most {text_of(most)} can be pinned at a time{others}; raise resident_limit by "
        f"{text_of(already + wanted - most)}, or pin and use a smaller part at a time "
        "(pagemove.save does so, for files)"
    )
