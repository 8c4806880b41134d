"""Why a move failed: which page, what is there, what to do. Only ever called after a failure."""

from __future__ import annotations

import contextlib
import errno

from pagemove import limits
from pagemove._native import remap
from pagemove.errors import RemapError, UnsupportedError, describe, remap_error
from pagemove.introspect import PAGE_SIZE, PageState, Vma, find_vma, states_at
from pagemove.memory import register

_HOLE = PageState(0)


class Failure(Exception):  # noqa: N818 (never seen by a user: becomes a RemapError)
    """What is wrong, before it is known which call to name."""

    def __init__(self, code: int, address: int | None, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.address = address
        self.text = text

    def as_error(self, call: str, *, moved: int = 0, index: int | None = None) -> RemapError:
        """Make the exception that names the call and how far it got."""
        progress = f" ({moved} bytes were moved before)" if moved else ""
        return remap_error(
            self.code,
            f"{call}: {self.text}{progress}",
            moved=moved,
            index=index,
            address=self.address,
        )


def check_arguments(dst: int, src: int, length: int, flags: int, known_flags: int) -> None:
    """Raise the `Failure` of arguments that no mappings could make right."""
    for name, address in (("destination", dst), ("source", src)):
        if address % PAGE_SIZE:
            raise Failure(
                errno.EINVAL,
                address,
                f"{name} {address:#x} is not page aligned: the nearest page below it starts at "
                f"{address - address % PAGE_SIZE:#x}",
            )
    if length <= 0 or length % PAGE_SIZE:
        raise Failure(
            errno.EINVAL,
            None,
            f"length {length} is not a positive multiple of the page size, {PAGE_SIZE}",
        )
    for name, address in (("destination", dst), ("source", src)):
        if address < 0 or address + length > 2**64:
            raise Failure(
                errno.EINVAL,
                address,
                f"{name} {address:#x} and length {length} wrap around the address space",
            )
    if flags & ~known_flags:
        raise Failure(
            errno.EINVAL,
            None,
            f"unknown flag bits {flags & ~known_flags:#x}: only RAP_ALLOW_SRC_HOLES (1) is known",
        )
    if src <= dst < src + length:
        raise Failure(
            errno.EINVAL,
            dst,
            f"destination {dst:#x} starts inside the source range {src:#x}-{src + length:#x}: move "
            "the upper part first, in a call of its own",
        )


def check_not_paged(name: str, start: int, length: int) -> None:
    """Raise the `Failure` of a range that has memory of a `PagedMemory`.

    Its pager would not know that a page has gone, or come: what was written would be lost.
    """
    region = remap.paged_at(start, length)
    if region:
        remedy = (
            "copy the bytes out of it (numpy.copyto), or flush() it and read its store; evict() "
            "gives memory back"
            if name == "source"
            else "copy the bytes into it (numpy.copyto)"
        )
        raise Failure(
            errno.EINVAL,
            max(start, region),
            f"{name} {start:#x}-{start + length:#x} is in paged memory, the PagedMemory at "
            f"{region:#x}, of which only its pager may move pages: {remedy}",
        )


def _check_mapping(name: str, start: int, length: int) -> Vma:
    vma = find_vma(start)
    if vma is None:
        raise Failure(
            errno.EINVAL, start, f"{name} {start:#x} is not mapped: nothing is at that address"
        )
    if start + length > vma.end:
        raise Failure(
            errno.EINVAL,
            vma.end,
            f"{name} {start:#x}-{start + length:#x} is not inside one mapping: the mapping of its "
            f"first page ends at {vma.end:#x}; move the parts one by one",
        )
    if not vma.anonymous or {"ht", "io", "pf", "mm", "ss"} & set(vma.flags):
        kind = "hugetlb" if "ht" in vma.flags else "shared, file-backed or special"
        raise Failure(
            errno.EINVAL,
            start,
            f"{name} {start:#x} is in a {kind} mapping ({vma.permissions} {vma.name or 'unnamed'}):"
            " only private anonymous memory can be moved, such as a Memory",
        )
    return vma


def check_mappings(dst: int, src: int, length: int) -> None:
    """Raise the `Failure` of mappings between which nothing can be moved.

    A destination that is all right but not registered yet, is registered here.
    """
    check_not_paged("source", src, length)
    check_not_paged("destination", dst, length)
    at_dst = _check_mapping("destination", dst, length)
    at_src = _check_mapping("source", src, length)
    for name, start, vma in (("destination", dst, at_dst), ("source", src, at_src)):
        if vma.permissions[1] != "w":
            raise Failure(
                errno.EINVAL,
                start,
                f"{name} {start:#x} is not writable ({vma.permissions}): mprotect it first",
            )
    if at_dst.permissions != at_src.permissions:
        raise Failure(
            errno.EINVAL,
            dst,
            f"protections differ: destination {dst:#x} is {at_dst.permissions}, source {src:#x} is "
            f"{at_src.permissions}",
        )
    locked = ["lo" in vma.flags for vma in (at_dst, at_src)]
    if locked[0] != locked[1]:
        which = "destination" if locked[0] else "source"
        raise Failure(
            errno.EINVAL,
            dst if locked[0] else src,
            f"only the {which} {(dst if locked[0] else src):#x} is locked in memory (mlock): lock "
            "both sides, the destination with mlock2(MLOCK_ONFAULT) so that it stays empty, or "
            "neither",
        )
    try:
        register(at_dst.start, at_dst.end - at_dst.start)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Failure(
                errno.EINVAL,
                dst,
                f"destination {dst:#x} is registered with another userfaultfd: unregister "
                "it there, or move into other memory",
            ) from None
        raise Failure(
            errno.EINVAL, dst, f"destination {dst:#x} cannot be registered: {error.strerror}"
        ) from None


def _state(address: int) -> PageState:
    return PageState(int(states_at(address, 1)[0]))


def _name(state: PageState) -> str:
    if state & PageState.GUARD:
        return "a guard page"
    if state & PageState.SWAPPED:
        return "a swapped-out page, or a marker"
    if state & PageState.ZERO:
        return "the zero page (a read of a hole maps it)"
    if state & PageState.HUGE:
        return "a huge page"
    return "a page" if state else "a hole"


def explain(code: int, dst: int, src: int, length: int) -> Failure:
    """Find out what a failure at the first page of the ranges means, and give it its true errno.

    `code` is what the kernel, or a look, said; the page tables are read now, and may have changed
    meanwhile, in which case the message says both.
    """
    try:
        check_mappings(dst, src, length)
    except Failure as failure:
        return failure
    if code == errno.ENOMEM:
        text = f"no memory for page tables at {dst:#x}: free some and repeat"
        return Failure(code, dst, with_limits(text, code))
    try:
        at_dst, at_src = _state(dst), _state(src)
    except OSError as error:
        return Failure(
            code,
            dst,
            f"{describe(code)} at destination {dst:#x}, source {src:#x}; the page tables could not "
            f"be read to say more: {error.strerror}",
        )
    if at_dst and code in (errno.ENOENT, errno.EFAULT, errno.EEXIST):
        return Failure(
            errno.EEXIST,
            dst,
            f"destination {dst:#x} holds {_name(at_dst)} already: discard it first "
            "(Memory.discard, madvise MADV_DONTNEED) or move elsewhere",
        )
    return _explain_pages(code, dst, src, at_src)


def with_limits(text: str, code: int) -> str:
    """Add which limits an errno can come from, and how to raise them."""
    found = limits.text_of(limits.behind(OSError(code, text)))
    return f"{text}; {found}" if found else text


def _explain_pages(code: int, dst: int, src: int, at_src: PageState) -> Failure:
    if code == errno.EEXIST:
        return Failure(
            code,
            dst,
            f"destination {dst:#x} held a page when the kernel looked, and is a hole now: another "
            "thread uses it; agree with that thread and repeat",
        )
    if code == errno.ENOENT:
        meanwhile = f" (by now {_name(at_src)} has arrived)" if at_src else ""
        return Failure(
            code,
            src,
            f"source {src:#x} is a hole{meanwhile}: write to it first, or pass "
            "RAP_ALLOW_SRC_HOLES to skip holes",
        )
    if code == errno.EBUSY:
        if at_src & PageState.PRESENT and not at_src & PageState.EXCLUSIVE:
            cause = "is shared with a living forked process, or merged by KSM"
            remedy = "end that process and call unshare(), or unshare(copy=True) to copy the page"
        else:
            cause = (
                "is pinned for I/O, was left shared by a forked process that has ended, or belongs "
                "to a huge page of which a pipe or I/O holds a part"
            )
            remedy = "let the I/O finish, or call unshare() on the source"
            if at_src & PageState.HUGE and remap.quirks() & remap.QUIRK_SPLIT_SPIN:
                remedy += (
                    "; on this kernel, which has the defect split-spin, it is refused too where "
                    "the huge page is locked in memory: munlock it, or move it whole"
                )
        return Failure(code, src, f"the page at source {src:#x} {cause}: {remedy}")
    if code == errno.EFAULT:
        what = "a guard page" if at_src & PageState.GUARD else "a poisoned page or a marker"
        return Failure(
            code, src, f"source {src:#x} is {what}: remove it first, it has no page to move"
        )
    return Failure(code, dst, f"{describe(code)} at destination {dst:#x}, source {src:#x}")


def unsupported(call: str, code: int, *, moved: int = 0, index: int | None = None) -> RemapError:
    """Make the `UnsupportedError` with the remedy that ``pagemove doctor`` prints."""
    if code == errno.EOPNOTSUPP:
        if not limits.is_dumpable():
            text = f"skipping holes needs /proc/self/pagemap, and {limits.NOT_DUMPABLE}"
            return UnsupportedError(code, f"{call}: {text}", moved=moved, index=index)
        text = (
            "refused: a huge zero page in the source would be corrupted by this kernel "
            "(CVE-2026-31397), or /proc/self/pagemap, which skipping holes needs, cannot be "
            "opened; update the kernel, mount /proc, or move without holes"
        )
        return UnsupportedError(code, f"{call}: {text}", moved=moved, index=index)
    from pagemove.probing import features  # it needs this module's errors

    remedy = "run `pagemove doctor` for the remedy"
    with contextlib.suppress(OSError):
        try:
            features(refresh=True).require("remap_anon_pages")
        except UnsupportedError as error:
            remedy = str(error.strerror)
    return UnsupportedError(code, f"{call}: {describe(code)}; {remedy}", moved=moved, index=index)
