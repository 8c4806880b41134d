"""Why a move failed: which page, what is there, what to do. Only ever called after a failure."""

from __future__ import annotations

import contextlib
import errno

from pagemove import limits
from pagemove._native import remap
from pagemove.calls.failure import Failure
from pagemove.calls.mappings import prepare
from pagemove.errors import RemapError, UnsupportedError, describe
from pagemove.introspect import PageState, states_at
from pagemove.probing import features

_HOLE = PageState(0)


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
    meanwhile, in which case the message says both. The destination is registered by the way, which
    is how it shows that another userfaultfd has it.
    """
    try:
        prepare(dst, src, length)
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
            if at_src & PageState.HUGE and remap.defects() & remap.DEFECT_SPLIT_SPIN:
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
    remedy = "run `pagemove doctor` for the remedy"
    with contextlib.suppress(OSError):
        try:
            features(refresh=True).require("remap_anon_pages")
        except UnsupportedError as error:
            remedy = str(error.strerror)
    return UnsupportedError(code, f"{call}: {describe(code)}; {remedy}", moved=moved, index=index)
