"""Mappings that pages can move between: checked, and the destination registered."""

from __future__ import annotations

import errno

from pagemove._native import remap
from pagemove.calls.failure import Failure
from pagemove.introspect import Vma, find_vma
from pagemove.registration import register


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


def _check_mappings(dst: int, src: int, length: int) -> Vma:
    """Raise the `Failure` of mappings between which nothing can be moved.

    Returns the destination's mapping. Changes nothing: it need not be registered.
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
    return at_dst


def prepare(dst: int, src: int, length: int) -> None:
    """Check the mappings, and register the destination's, or raise the `Failure` of either.

    Whether another userfaultfd has the destination only registering it finds out.
    """
    at_dst = _check_mappings(dst, src, length)
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
