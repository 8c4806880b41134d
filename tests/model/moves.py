"""`remap_anon_pages` and its relatives, as the contract has them.

Every call takes an `AddressSpace` first, and addresses and lengths in bytes; `happened` is the
number of bytes that were seen to move, asked only about a page of which the kernel alone knows
whether it is still shared (`Claim.UNKNOWN`).
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from .mappings import PAGE, CallError, Mapping, Registration
from .pages import Claim, Folio, Kind, Page
from .space import HUGE, AddressSpace

RAP_ALLOW_SRC_HOLES = 1
_END_OF_ADDRESSES = 1 << 64


def remap_anon_pages(
    space: AddressSpace,
    dst: int,
    src: int,
    length: int,
    flags: int = 0,
    *,
    happened: int | None = None,
) -> int:
    """Move pages; return the bytes moved, or raise `CallError` when there were none."""
    _check_arguments(dst, src, length, flags)
    first_dst, first_src, count = dst // PAGE, src // PAGE, length // PAGE
    try:
        _check_mappings(space, first_dst, first_src, count)
    except CallError:
        target = space.mapping(first_dst)
        if target is not None and target.movable:
            space.register_here(first_dst, Registration.PERHAPS_OURS)
        _note_look(space, first_dst, first_src)
        raise
    space.register_here(first_dst)
    done = 0
    while done < count:
        try:
            done += _move_one(
                space,
                first_dst + done,
                first_src + done,
                count - done,
                holes=bool(flags & RAP_ALLOW_SRC_HOLES),
                happened=happened is not None and happened > done * PAGE,
                asked=happened is not None,
            )
        except CallError:
            if not done:
                raise
            break
    return done * PAGE


def _check_arguments(dst: int, src: int, length: int, flags: int) -> None:
    if flags & ~RAP_ALLOW_SRC_HOLES:
        raise CallError(errno.EINVAL)
    if length <= 0 or length % PAGE or dst % PAGE or src % PAGE:
        raise CallError(errno.EINVAL)
    if min(dst, src) < 0 or max(dst, src) + length > _END_OF_ADDRESSES:
        raise CallError(errno.EINVAL)
    if src <= dst < src + length:
        raise CallError(errno.EINVAL)


def _check_mappings(space: AddressSpace, dst: int, src: int, count: int) -> None:
    target = _one_mapping(space, dst, count)
    origin = _one_mapping(space, src, count)
    if not target.movable or not origin.movable:
        raise CallError(errno.EINVAL)
    if target.prot != origin.prot or "w" not in target.prot:
        raise CallError(errno.EINVAL)
    if target.locked != origin.locked:
        raise CallError(errno.EINVAL)
    if target.registered is Registration.OTHER:
        raise CallError(errno.EINVAL)


def _one_mapping(space: AddressSpace, first: int, count: int) -> Mapping:
    vma = space.vma_at(first)
    if vma is None or vma.end < first + count:
        raise CallError(errno.EINVAL)
    return vma.mapping


def _move_one(
    space: AddressSpace, dst: int, src: int, left: int, *, holes: bool, happened: bool, asked: bool
) -> int:
    """Move a page, or a huge page; return how many pages that were."""
    if dst in space.pages:
        # What is found out only on the way may have cost a huge page its one entry.
        space.split(src, None)
        raise CallError(errno.EEXIST)
    page = space.pages.get(src)
    if page is None:
        _note_look(space, dst, src)
        if not holes:
            raise CallError(errno.ENOENT)
        return 1
    if page.kind in (Kind.GUARD, Kind.POISON):
        _note_look(space, dst, src)
        raise CallError(errno.EFAULT)
    whole = page.huge is not False and _whole(space, dst, src, left)
    if not whole:
        space.split(src, None)
        space.note_table(dst)
    _check_claim(space, page, happened=happened, asked=asked)
    if whole:
        for step in range(HUGE):
            moved = space.pages[dst + step] = space.pages.pop(src + step)
            if space.has_table(dst):
                moved.huge = None
                moved.perhaps_zero = moved.kind is Kind.ANON and not moved.token
        return HUGE
    space.split(src)
    _break_up(space, page)
    page.folio, page.huge = None, False
    space.pages[dst] = space.pages.pop(src)
    return 1


def _note_look(space: AddressSpace, dst: int, src: int) -> None:
    """Note the page tables that a move makes which finds nothing to move.

    The kernel makes the destination's before it reads the source's entry, if that has a table. And
    the library may ask the kernel about each side by a move to there.
    """
    space.note_table(dst)
    space.note_table(src)


def _whole(space: AddressSpace, dst: int, src: int, left: int) -> bool:
    if dst % HUGE or src % HUGE or left < HUGE:
        return False
    return not any(dst + step in space.pages for step in range(HUGE))


def _check_claim(space: AddressSpace, page: Page, *, happened: bool, asked: bool) -> None:
    if page.kind is not Kind.ANON or page.claim is Claim.MINE:
        return
    if page.folio is not None and not _refuses_for_all(space, page.folio):
        _break_up(space, page)
    if page.claim is not Claim.UNKNOWN and not page.perhaps_zero:
        raise CallError(errno.EBUSY)
    if not asked:
        raise ValueError("only the kernel knows whether this page can move")
    if not happened:
        page.claim = Claim.SHARED if page.sharers else Claim.LEFT
        _break_up(space, page)
        raise CallError(errno.EBUSY)
    page.own()


def _refuses_for_all(space: AddressSpace, folio: Folio) -> bool:
    """Whether a huge page surely stays in one piece, because its first page is shared.

    That page may be gone since before the fork, and exclusive forever. Then any other is refused
    only after the huge page was broken up.
    """
    head = folio.head
    return (
        head is not None
        and head.folio is folio
        and head.claim in (Claim.SHARED, Claim.LEFT)
        and any(page is head for page in space.pages.values())
    )


def _break_up(space: AddressSpace, page: Page) -> None:
    """Break up the memory of a huge page, which moving one page of it does.

    The kernel maps the zero page then in place of every page that holds nothing but zeros.
    """
    if page.folio is not None:
        for other in space.pages.values():
            if other.folio is page.folio:
                other.perhaps_zero = not other.token


def move(
    space: AddressSpace,
    dst: int,
    src: int,
    length: int,
    *,
    holes: bool = False,
    happened: int | None = None,
) -> None:
    """Move whole buffers of equal length; what stops it is what is raised."""
    done = 0
    while done < length:
        try:
            done += remap_anon_pages(
                space,
                dst + done,
                src + done,
                length - done,
                int(holes),
                happened=None if happened is None else happened - done,
            )
        except CallError as error:
            raise CallError(error.errno, moved=done) from None


def move_many(
    space: AddressSpace,
    dst: int,
    src: int,
    dst_pages: Sequence[int],
    src_pages: Sequence[int],
    *,
    page_size: int = PAGE,
    holes: bool = False,
    happened: int | None = None,
) -> int:
    """Move page after page, each by a call of its own."""
    done = 0
    for index, (to, origin) in enumerate(zip(dst_pages, src_pages, strict=True)):
        try:
            move(
                space,
                dst + to * page_size,
                src + origin * page_size,
                page_size,
                holes=holes,
                happened=None if happened is None else happened - done,
            )
        except CallError as error:
            raise CallError(error.errno, moved=done + error.moved, index=index) from None
        done += page_size
    return done


def unshare(
    space: AddressSpace,
    address: int,
    length: int,
    *,
    copy: bool = False,
    refused: bool | None = None,
) -> int:
    """Make pages exclusive that exited children left; return how many were not.

    `refused`: whether it was seen to refuse, asked only where nothing but swap entries tells that
    another process has a page.
    """
    first, count = address // PAGE, -(-length // PAGE)
    there = {page: space.pages[page] for page in range(first, first + count) if page in space.pages}
    others = {page: entry for page, entry in there.items() if entry.claim is not Claim.MINE}
    if not copy and any(_refuses(entry, refused) for entry in others.values()):
        # Refused before or after some pages were done: the contract leaves it open.
        for entry in others.values():
            if entry.claim is Claim.LEFT:
                entry.claim = Claim.UNKNOWN
        raise CallError(errno.EBUSY)
    for page, entry in others.items():
        if entry.claim is Claim.SHARED:
            space.split(page, None)
            entry.folio = None
        entry.own()
    for entry in there.values():
        # Whether a page in swap is shared cannot be told without reading it in.
        entry.swapped = False
    return len(others)


def _refuses(entry: Page, refused: bool | None) -> bool:
    if entry.claim is not Claim.SHARED:
        return False
    if not entry.swapped and not entry.swapped_at_fork:
        return True
    if refused is None:
        raise ValueError("only the kernel knows whether another process has this page")
    return refused
