"""What this kernel and this process may do, and why not.

Everything is found by trying it. Releases are compared for one purpose only: to name the known
defects of a kernel, which cannot be tried without harm.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import mmap
import os
import re
import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from pagemove import children
from pagemove._native import calls, pager, remap
from pagemove._native.mapping import Hold
from pagemove._native.pager import codec
from pagemove.cgroups import read as read_text
from pagemove.introspect import HUGE_PAGE_SIZE, PAGE_SIZE, count_vmas, open_proc
from pagemove.kernel import UFFD_FEATURES, KernelFeatures
from pagemove.problems import DEVICE, KILLED, Surroundings, problems_of

USER_MODE_ONLY = 1
_MADV_GUARD_INSTALL = 102
# In place of features: it was opened, and then not asked for them.
_SILENT = -1
_PROCMAP_QUERY = 0xC0686611  # _IOWR('f', 17, struct procmap_query)


def features(*, refresh: bool = False) -> KernelFeatures:
    """Return what this kernel and this process may do, and why not.

    Parameters
    ----------
    refresh : bool
        Look again, after the process has changed its user, its limits or its seccomp filter. Else
        it looks once, and once more in a forked child.

    Returns
    -------
    KernelFeatures
        With a `Problem` for each thing that is missing.

    Notes
    -----
    The first call costs about a millisecond. It opens descriptors and maps a page, and closes and
    unmaps them again.

    Examples
    --------
    >>> import pagemove
    >>> pagemove.features().remap_anon_pages
    True
    """
    if refresh:
        _probe.cache_clear()
    return _probe()


def defects_of(release: str) -> tuple[str, ...]:
    """Name the known defects of a Linux release.

    Parameters
    ----------
    release : str
        As in ``uname -r``, such as ``"6.18.44-fc"``.

    Returns
    -------
    tuple of str
        Names of `pagemove.kernel.DEFECTS`.

    Notes
    -----
    The numbers decide, in the same code that guards the moves. Some distributions stay at
    ``6.8.0-51-generic`` and put fixes and features of later kernels into it, so the numbers say
    little: such a kernel is taken to have every defect that it may have. `stable_release` knows
    more where the kernel does. A text that is no release counts as older than any.

    Examples
    --------
    >>> from pagemove.probing import defects_of
    >>> defects_of("6.18.1")
    ('CVE-2026-31397', 'stale-EAGAIN', 'holes-spin', 'split-spin')
    """
    bits = remap.defects_of(release)
    names = []
    if bits & remap.DEFECT_REFUSE:
        names.append("CVE-2024-27007")
    if bits & remap.DEFECT_HUGE_ZERO:
        names.append("CVE-2026-31397")
    if bits & remap.DEFECT_STALE_EAGAIN:
        # Both come from the same loop over the pages, which Linux 6.18 rewrote, and have one fix.
        names += ["stale-EAGAIN", "holes-spin"]
    if bits & remap.DEFECT_SPLIT_SPIN:
        names.append("split-spin")
    return tuple(names)


def stable_release(release: str, signature: str) -> str:
    """Return the release by which a kernel's defects are judged.

    That is `release`, as `uname -r` has it, unless `signature`, what Ubuntu's kernels show in
    /proc/version_signature (``"Ubuntu 6.8.0-51.52-generic 6.8.12"``), ends with the stable release
    that the kernel has caught up with.
    """
    last = signature.rpartition(" ")[2]
    return last if re.fullmatch(r"\d+\.\d+\.\d+", last) else release


@functools.cache
def _probe() -> KernelFeatures:
    return look()


def look(killed: Collection[str] = ()) -> KernelFeatures:
    """Look what there is, without the `PROBES` that would kill the process."""
    release = os.uname().release
    tried = {name: (KILLED, 0) if name in killed else probe() for name, probe in PROBES.items()}
    errors = {name: error for name, (error, _) in tried.items()}
    offered = next((tried[name][1] for name in _DOORS if not errors[name]), 0)
    silent = any(features == _SILENT for _, features in tried.values())
    names = dict(enumerate(UFFD_FEATURES))
    seccomp = read_text("/proc/self/status").partition("\nSeccomp:")[2].split()
    sysctl = read_text("/proc/sys/vm/unprivileged_userfaultfd")
    defects = defects_of(stable_release(release, read_text("/proc/version_signature")))
    if offered and "MOVE" not in (names.get(bit) for bit in _bits(offered)):
        defects = ()  # all of them are of that call
    found = KernelFeatures(
        release=release,
        page_size=PAGE_SIZE,
        huge_page_size=HUGE_PAGE_SIZE,
        userfaultfd_syscall=not errors["userfaultfd_syscall"],
        userfaultfd_user_mode=not errors["userfaultfd_user_mode"],
        userfaultfd_device=not errors["userfaultfd_device"],
        unprivileged_userfaultfd=int(sysctl) if sysctl else None,
        seccomp=int(seccomp[0]) if seccomp else 0,
        uffd_features=tuple(names.get(bit, f"BIT_{bit}") for bit in _bits(offered)),
        pagemap_scan=not errors["pagemap_scan"],
        procmap_query=not errors["procmap_query"],
        guard_regions=not errors["guard_regions"],
        vma_names=not errors["vma_names"],
        io_uring=not errors["io_uring"],
        thp=read_text("/sys/kernel/mm/transparent_hugepage/enabled")
        .partition("[")[2]
        .partition("]")[0],
        swap=sum(int(line.split()[2]) << 10 for line in read_text("/proc/swaps").splitlines()[1:]),
        ksm={"1": "running", "": ""}.get(read_text("/sys/kernel/mm/ksm/run"), "stopped"),
        max_map_count=int(read_text("/proc/sys/vm/max_map_count") or 0),
        vma_count=_count_vmas(),
        defects=defects,
        problems=(),
        compression=codec() or "",
    )
    problems = sorted(
        problems_of(found, Surroundings.here(errors, silent=silent)),
        key=lambda problem: not problem.needed,
    )
    return replace(found, problems=tuple(problems))


children.first_do(_probe.cache_clear)


def _count_vmas() -> int:
    try:
        return count_vmas()
    except OSError:
        return 0


def _bits(word: int) -> list[int]:
    return [bit for bit in range(64) if word >> bit & 1]


def open_device() -> int:
    """Open a userfaultfd by /dev/userfaultfd."""
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        return calls.userfaultfd_new(device, os.O_CLOEXEC)
    finally:
        os.close(device)


def _try_door(door: Callable[[], int]) -> tuple[int, int]:
    """Open a userfaultfd; return (0, the features it offers), (errno, 0), or (errno, _SILENT)."""
    try:
        fd = door()
    except OSError as error:
        return error.errno or errno.EIO, 0
    try:
        return 0, calls.api(fd)[0]
    except OSError as error:
        return error.errno or errno.EIO, _SILENT
    finally:
        os.close(fd)


def _error_of(call: Callable[[], object]) -> tuple[int, int]:
    """Make a call; return (0, 0), or (errno, 0)."""
    try:
        call()
    except OSError as error:
        return error.errno or errno.EIO, 0
    return 0, 0


def _scan_pagemap() -> None:
    with open_proc("pagemap") as pagemap:
        calls.pagemap_scan(pagemap.fileno(), PAGE_SIZE, 2 * PAGE_SIZE, 1 << 3)


def _query_procmap() -> None:
    query = bytearray(struct.pack("<Q96x", 104))
    with open_proc("maps") as maps:
        try:
            fcntl.ioctl(maps, _PROCMAP_QUERY, query)
        except OSError as error:
            # Nothing is mapped at address 0, and a kernel that knows the ioctl says so.
            if error.errno != errno.ENOENT:
                raise


def _open_ring() -> None:
    error = pager.try_ring()
    if error:
        raise OSError(error, os.strerror(error))


def _on_a_page(call: Callable[[int], object]) -> None:
    """Make a call with the address of a page of our own."""
    with mmap.mmap(-1, PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        with Hold(page) as hold:
            address = hold.address
        call(address)


_DOORS: dict[str, Callable[[], int]] = {
    "userfaultfd_syscall": lambda: calls.userfaultfd(os.O_CLOEXEC),
    "userfaultfd_user_mode": lambda: calls.userfaultfd(os.O_CLOEXEC | USER_MODE_ONLY),
    "userfaultfd_device": open_device,
}
_CALLS: dict[str, Callable[[], object]] = {
    "pagemap_scan": _scan_pagemap,
    "procmap_query": _query_procmap,
    "guard_regions": lambda: _on_a_page(
        lambda page: calls.madvise(page, PAGE_SIZE, _MADV_GUARD_INSTALL)
    ),
    "vma_names": lambda: _on_a_page(lambda page: calls.set_vma_name(page, PAGE_SIZE, b"pagemove")),
    "io_uring": _open_ring,
}
#: What makes system calls that a seccomp filter may not know: by the name of what it finds, a
#: function that returns an errno or 0, and the features of the userfaultfd that it has opened.
PROBES: Mapping[str, Callable[[], tuple[int, int]]] = {
    **{name: functools.partial(_try_door, door) for name, door in _DOORS.items()},
    **{name: functools.partial(_error_of, call) for name, call in _CALLS.items()},
}
