"""What a kernel and a process may do, as data: features, defects, and what is missing."""

from __future__ import annotations

import errno
from dataclasses import asdict, dataclass
from typing import Any

from pagemove.errors import UnsupportedError

#: The UFFD_FEATURE_ names in the order of their bits, and the first Linux with each.
UFFD_FEATURES: dict[str, str] = {
    "PAGEFAULT_FLAG_WP": "5.7 (on arm64 6.10)",
    "EVENT_FORK": "4.11",
    "EVENT_REMAP": "4.11",
    "EVENT_REMOVE": "4.11",
    "MISSING_HUGETLBFS": "4.11",
    "MISSING_SHMEM": "4.11",
    "EVENT_UNMAP": "4.11",
    "SIGBUS": "4.14",
    "THREAD_ID": "4.14",
    "MINOR_HUGETLBFS": "5.13",
    "MINOR_SHMEM": "5.14",
    "EXACT_ADDRESS": "5.18",
    "WP_HUGETLBFS_SHMEM": "5.19",
    "WP_UNPOPULATED": "6.4",
    "POISON": "6.6",
    "WP_ASYNC": "6.7",
    "MOVE": "6.8",
    "RWP": "7.3",
    "RWP_ASYNC": "7.3",
}
#: New ones that nothing here uses: `doctor` does not advise to boot another kernel for them.
UNUSED_FEATURES = ("RWP", "RWP_ASYNC")

#: Known defects of Linux, and what pagemove does about each.
DEFECTS: dict[str, str] = {
    "CVE-2024-27007": "UFFDIO_MOVE can corrupt memory: pagemove refuses to use it",
    "CVE-2026-31397": "UFFDIO_MOVE of a huge zero page maps memory that does not exist: "
    "pagemove refuses to move huge zero pages",
    "stale-EAGAIN": "UFFDIO_MOVE can report a page it has moved as EEXIST, or leave it out of a "
    "short count: pagemove looks at the pages before each call, so that its answers are true",
    "holes-spin": "UFFDIO_MOVE with ALLOW_SRC_HOLES can loop forever when a page is discarded "
    "meanwhile: pagemove never passes that flag and finds the holes itself",
    "split-spin": "UFFDIO_MOVE of part of a huge page can loop forever while I/O or a pipe holds "
    "another part: pagemove has it split beforehand, and refuses to move what cannot be (EBUSY)",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is missing here, and what to do about it.

    Attributes
    ----------
    name : str
        What is missing, by the name that `KernelFeatures.require` takes.
    missing : str
        What was found, and why.
    remedy : str
        The commands, or the kernel, that put it right.
    needed : bool
        Whether `remap_anon_pages` cannot work without it.
    errno : int
        EPERM where it is refused, ENOSYS where the kernel does not have it.
    """

    name: str
    missing: str
    remedy: str
    needed: bool = False
    errno: int = errno.ENOSYS


@dataclass(frozen=True, slots=True)
class KernelFeatures:
    """What this kernel and this process may do, as found at one moment.

    Attributes
    ----------
    release : str
        As `uname -r` has it.
    page_size, huge_page_size : int
        Bytes; a huge page of 0 bytes means that the kernel has none.
    userfaultfd_syscall : bool
        userfaultfd(2) opens one that also reports faults raised inside the kernel.
    userfaultfd_user_mode : bool
        userfaultfd(2) opens one with UFFD_USER_MODE_ONLY: enough to move pages.
    userfaultfd_device : bool
        /dev/userfaultfd opens one.
    unprivileged_userfaultfd : int or None
        The sysctl of that name; None where it cannot be read.
    seccomp : int
        0 no seccomp filter, 1 strict, 2 filtered.
    uffd_features : tuple of str
        The userfaultfd's features, without ``UFFD_FEATURE_``: ``"MOVE"`` ... Unknown ones are
        ``"BIT_19"`` ... Empty where no userfaultfd can be opened.
    pagemap_scan, procmap_query : bool
        The ioctls of /proc/self/pagemap and /proc/self/maps.
    guard_regions, vma_names : bool
        MADV_GUARD_INSTALL; names for anonymous mappings (PR_SET_VMA_ANON_NAME).
    thp : str
        Transparent huge pages: ``"always"``, ``"madvise"``, ``"never"``, or ``""`` without them.
    swap : int
        Bytes of swap space.
    ksm : str
        Merging of equal pages: ``"running"``, ``"stopped"``, or ``""`` in a kernel without it.
    max_map_count, vma_count : int
        The most mappings that a process may have (vm.max_map_count), and how many this one had.
    defects : tuple of str
        Known defects of this kernel, by the names in `DEFECTS`.
    problems : tuple of Problem
        Everything that is missing, what `remap_anon_pages` needs first.
    """

    release: str
    page_size: int
    huge_page_size: int
    userfaultfd_syscall: bool
    userfaultfd_user_mode: bool
    userfaultfd_device: bool
    unprivileged_userfaultfd: int | None
    seccomp: int
    uffd_features: tuple[str, ...]
    pagemap_scan: bool
    procmap_query: bool
    guard_regions: bool
    vma_names: bool
    thp: str
    swap: int
    ksm: str
    max_map_count: int
    vma_count: int
    defects: tuple[str, ...]
    problems: tuple[Problem, ...]

    @property
    def remap_anon_pages(self) -> bool:
        """Whether `pagemove.remap_anon_pages` can work here."""
        return not any(problem.needed for problem in self.problems)

    @property
    def paging(self) -> str:
        """How `pagemove.PagedMemory` takes blocks out of memory here.

        ``"move"``: by UFFDIO_MOVE. ``"mremap"``: the kernel cannot move pages, or must not be asked
        to; blocks leave by mremap and arrive by copy, which is slower (docs: how paging works
        without UFFDIO_MOVE). ``""``: it cannot, because no userfaultfd can be opened.
        """
        if "PAGEFAULT_FLAG_WP" not in self.uffd_features:
            return ""
        broken = "CVE-2024-27007" in self.defects
        return "move" if {"MOVE", "POISON"} <= {*self.uffd_features} and not broken else "mremap"

    def require(self, *names: str) -> None:
        """Raise unless everything named is there.

        Parameters
        ----------
        *names : str
            ``"remap_anon_pages"`` for all that the call needs, ``"paging"`` for what paged memory
            needs, or any of ``REQUIRABLE``: the names of `UFFD_FEATURES`, the yes-or-no attributes
            of this class, ``"paging_by_move"``, ``"huge_pages"``, ``"swap"``, ``"ksm"``.

        Raises
        ------
        UnsupportedError
            Something is missing; the message has the remedy for each.
        ValueError
            No such name.

        Examples
        --------
        >>> import pagemove
        >>> pagemove.features().require("remap_anon_pages", "paging")
        """
        for name in names:
            if name not in REQUIRABLE:
                raise ValueError(f"unknown feature {name!r}; known: {', '.join(REQUIRABLE)}")
        wanted = set(names)
        if wanted.intersection(("paging", "paging_by_move")):
            wanted.add("PAGEFAULT_FLAG_WP")
        if wanted.intersection(UFFD_FEATURES) and not self.uffd_features:
            wanted.add("userfaultfd_user_mode")
        found = [
            problem
            for problem in self.problems
            if problem.name in wanted or (problem.needed and "remap_anon_pages" in wanted)
        ]
        if found:
            text = "; ".join(
                f"{each.name}: {each.missing}. Remedy: {each.remedy}" for each in found
            )
            raise UnsupportedError(found[0].errno, text)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON types; ``remap_anon_pages`` and ``paging`` are the answers.

        Examples
        --------
        >>> import json
        >>> import pagemove
        >>> found = pagemove.features()
        >>> json.loads(json.dumps(found.as_dict()))["paging"] == found.paging
        True
        """
        defects = [{"name": name, "consequence": DEFECTS[name]} for name in self.defects]
        answers = {"remap_anon_pages": self.remap_anon_pages, "paging": self.paging}
        return {**answers, **asdict(self), "defects": defects}


#: The names that `KernelFeatures.require` knows.
REQUIRABLE: tuple[str, ...] = (
    "remap_anon_pages",
    "paging",
    "paging_by_move",
    "userfaultfd_syscall",
    "userfaultfd_user_mode",
    "userfaultfd_device",
    "pagemap_scan",
    "procmap_query",
    "guard_regions",
    "vma_names",
    "huge_pages",
    "swap",
    "ksm",
    *UFFD_FEATURES,
)
