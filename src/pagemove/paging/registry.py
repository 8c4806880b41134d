"""The regions of this process: found by address, and what is said when the first one is made."""

from __future__ import annotations

import os
import sys
import warnings
import weakref
from typing import TYPE_CHECKING

from pagemove.errors import KernelFaultsWarning

if TYPE_CHECKING:
    from pagemove.paging.region import PagedMemory

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep

_live: weakref.WeakSet[PagedMemory] = weakref.WeakSet()
_warned = False


def enter(region: PagedMemory) -> None:
    """Have a region found from now on, for as long as it lives."""
    _live.add(region)


def region_at(address: int, nbytes: int) -> PagedMemory | None:
    """Find the open region that has all bytes of a range, if any."""
    for region in list(_live):
        if not region.closed:
            start = region.address
            if start <= address and address + nbytes <= start + region.nbytes:
                return region
    return None


def warn_of_kernel_faults() -> None:
    """Warn, once for the process, that faults of system calls are not served."""
    global _warned
    if _warned:
        return
    warnings.warn(
        "system calls on paged memory that is not resident fail in this process with EFAULT "
        "('Bad address') or transfer less than they are asked to, for it may use userfaultfd only "
        "with UFFD_USER_MODE_ONLY: numpy.save, tofile, pickle.dump and file.write of large arrays, "
        "readinto, numpy.fromfile (which returns zeros), sockets, and libraries that write files. "
        "Make them within "
        "'with pagemove.pinned(array):', or use pagemove.save; or have such faults served: as "
        "root, 'sysctl -w vm.unprivileged_userfaultfd=1', or let this user open /dev/userfaultfd, "
        "or grant CAP_SYS_PTRACE ('pagemove doctor' says what is missing)",
        KernelFaultsWarning,
        stacklevel=_outside(),
    )
    _warned = True


def _outside() -> int:
    """Return the stack level, for our caller's warning, of the first frame outside the package."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
        level += 1
    return level
