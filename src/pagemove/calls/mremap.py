"""mremap: the alternative, which moves the mapping and lets the pages follow."""

from __future__ import annotations

import contextlib
import errno
import mmap as _mmap
from collections.abc import Iterator

import numpy as np

from pagemove import lowlevel
from pagemove._native import remap
from pagemove.calls.arguments import Place, check_arguments
from pagemove.calls.explain import with_limits
from pagemove.calls.failure import Failure
from pagemove.calls.mappings import check_not_paged, prepare
from pagemove.introspect import PAGE_SIZE, PageState, find_vma, states_at, vmas
from pagemove.memory import owner_at
from pagemove.registration import register

_PROT_NONE = 0


def mremap(
    dst: object,
    src: object,
    length: int,
    *,
    detect: bool = False,
    keep_source: bool = False,
    no_replace: bool = False,
) -> str:
    """Move a mapping, pages and all: the alternative to `remap_anon_pages`.

    Without flags this has the semantics of mremap(2) with MREMAP_FIXED: whatever is mapped at the
    destination is wiped without a word, and the source is not mapped any more.

    Parameters
    ----------
    dst, src : int or writable C-contiguous buffer
        Page-aligned addresses, as for `remap_anon_pages`.
    length : int
        Bytes, a whole number of pages.
    detect : bool
        Look first whether every source page is mapped exclusively and every destination page is a
        hole; if so move the pages and leave the mappings alone. This is the detection proposed in
        2014 in place of a call of its own.
    keep_source : bool
        Keep the source mapped, without its pages (MREMAP_DONTUNMAP). Private anonymous memory only.
    no_replace : bool
        Refuse with EEXIST if anything is mapped at the destination, even if it is empty.

    Returns
    -------
    str
        ``"pages"`` if the pages moved and the mappings stayed, ``"mapping"`` if the mapping moved.

    Raises
    ------
    ValueError
        The source is a `Memory`, which would lose its mapping: pass `keep_source`. Or `length`
        exceeds a buffer.
    DestinationMapped
        With `no_replace`, something is mapped at the destination.
    RemapError
        EINVAL: arguments; paged memory on either side. EFAULT: the source is not mapped. ENOMEM:
        vm.max_map_count is reached.
    BufferError, TypeError
        As for `remap_anon_pages`.

    Notes
    -----
    About 4 to 12 microseconds for small ranges, cheap by the page for large ones; up to three
    mappings more for every scattered call. Takes the lock of the address space for writing.

    Examples
    --------
    >>> import pagemove
    >>> a, b = pagemove.Memory(4096), pagemove.Memory(4096)
    >>> memoryview(a)[:2] = b"hi"
    >>> pagemove.mremap(b, a, 4096, detect=True)
    'pages'
    >>> a.close(); b.close()
    """
    if not isinstance(length, int | np.integer):
        raise TypeError(f"length must be an integer, not {type(length).__name__}")
    length = int(length)
    with _address(dst, length) as to, _address(src, length) as of:
        try:
            check_arguments(to, of, length, 0, 0)
            check_not_paged("source", of, length)
            if not no_replace:  # which refuses whatever is there
                check_not_paged("destination", to, length)
            if detect and not no_replace and _move_pages(to, of, length):
                return "pages"
            owner = owner_at(of, length)
            if owner is not None and not keep_source:
                raise ValueError(
                    f"the source is in {owner!r}, which would lose its mapping: pass "
                    "keep_source=True, or use remap_anon_pages"
                )
            _move_mapping(to, of, length, keep_source=keep_source, no_replace=no_replace)
        except Failure as failure:
            raise failure.as_error("mremap") from None
    return "mapping"


@contextlib.contextmanager
def _address(argument: object, length: int) -> Iterator[int]:
    with Place(argument) as at:
        if at.nbytes is not None and length > at.nbytes:
            raise ValueError(f"length {length} exceeds the {at.nbytes} bytes of the buffer")
        yield at.address


def _move_pages(dst: int, src: int, length: int) -> bool:
    """Move the pages if the cheap case applies, all of them or none; say whether it did."""
    pages = length // PAGE_SIZE
    try:
        if states_at(dst, pages).any():
            return False
        wanted = np.uint16(PageState.PRESENT | PageState.EXCLUSIVE)
        if ((states_at(src, pages) & wanted) != wanted).any():
            return False
        moved = remap.move(dst, src, length, 0)
        if moved == -errno.EINVAL:
            prepare(dst, src, length)
            moved = remap.move(dst, src, length, 0)
    except (OSError, Failure):
        return False
    if moved == length:
        return True
    if moved > 0:
        _move_back(dst, src, moved)
    return False


def _move_back(dst: int, src: int, moved: int) -> None:
    """Undo a part that moved before a page changed under the detection."""
    prepare(src, dst, moved)
    back = remap.move(src, dst, moved, 0)
    if back != moved:
        raise Failure(
            errno.EBUSY,
            dst,
            f"another thread used the pages: of {moved} bytes moved to {dst:#x}, "
            f"{max(back, 0)} were moved back to {src:#x}",
        )


def _move_mapping(dst: int, src: int, length: int, *, keep_source: bool, no_replace: bool) -> None:
    gaps = _gaps(src, length) if no_replace else []
    if no_replace:
        # The kernel has no MREMAP_NOREPLACE. A reservation that replaces nothing closes the gap
        # between looking and moving: what wipes it then is the move itself.
        flags = _mmap.MAP_PRIVATE | _mmap.MAP_ANONYMOUS | lowlevel.MAP_FIXED_NOREPLACE
        try:
            lowlevel.mmap(dst, length, _PROT_NONE, flags)
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise Failure(
                    errno.EEXIST,
                    dst,
                    f"something is mapped in the destination {dst:#x}-{dst + length:#x} already: "
                    "unmap it or choose another address",
                ) from None
            raise _mremap_failure(error, dst, src, length) from None
    flags = lowlevel.MREMAP_MAYMOVE | lowlevel.MREMAP_FIXED
    if keep_source:
        flags |= lowlevel.MREMAP_DONTUNMAP
    try:
        lowlevel.mremap(src, length, length, flags, dst)
    except OSError as error:
        if no_replace:
            with contextlib.suppress(OSError):
                lowlevel.munmap(dst, length)
        raise _mremap_failure(error, dst, src, length) from None
    for start, end in gaps:
        # Since Linux 6.17 mremap moves around gaps, and leaves the reservation there.
        with contextlib.suppress(OSError):
            lowlevel.munmap(dst + start - src, end - start)
    if owner_at(dst, length) is not None:
        # The mapping that came has not the settings that a Memory has.
        with contextlib.suppress(OSError):
            lowlevel.madvise(dst, length, _mmap.MADV_DONTFORK)
            register(dst, length)


def _gaps(start: int, length: int) -> list[tuple[int, int]]:
    """Find what is not mapped within a range."""
    gaps, at = [], start
    for vma in vmas():
        if vma.end > at and vma.start < start + length:
            if vma.start > at:
                gaps.append((at, vma.start))
            at = vma.end
    if at < start + length:
        gaps.append((at, start + length))
    return gaps


def _mremap_failure(error: OSError, dst: int, src: int, length: int) -> Failure:
    code = error.errno or errno.EINVAL
    if code == errno.EFAULT or find_vma(src) is None:
        return Failure(
            errno.EFAULT, src, f"source {src:#x}-{src + length:#x} is not, or not all, mapped"
        )
    if code == errno.ENOMEM:
        return Failure(
            code,
            src,
            with_limits(
                "the process has too many mappings (vm.max_map_count) or too little address space: "
                "raise the limit, or move pages with remap_anon_pages, which adds no mapping",
                code,
            ),
        )
    return Failure(code, dst, f"{error.strerror} (destination {dst:#x}, source {src:#x})")
