"""Why a region cannot be made, beyond what the system call said: a limit, or a change of user."""

from __future__ import annotations

import errno

from pagemove import limits
from pagemove.errors import UnsupportedError

# What a pager has open at most, for each region over a file that shares it, and for each request
# that a helper process may have under way.
_DESCRIPTORS, _OF_A_FILE, _OF_A_LANE = 16, 3, 2
# So few that a Python does not start.
_FEW_DESCRIPTORS = 64


def explain(error: OSError, lanes: int = 0) -> None:
    """Have the error of a `Pager` that was not made name what is behind it.

    `explained` of it says whether the message has words of the helper process or of a file, which
    may fail with any errno. `lanes` is how many requests a helper may have under way.
    """
    explained = getattr(error, "explained", False)
    if isinstance(error, UnsupportedError):
        return
    if error.errno in (errno.EACCES, errno.EPERM) and not limits.is_dumpable():
        limits.append(
            error,
            f"a region has to open /proc/self/pagemap, and {limits.NOT_DUMPABLE}, or open regions "
            "before the change: they work on",
        )
    elif error.errno == errno.EPIPE and explained:
        _explain_end(error)
    elif error.errno in limits.ALWAYS or (error.errno == errno.EAGAIN and not explained):
        if error.errno == errno.EMFILE and not explained:
            # They are not those of the program, which may have hardly any.
            needed = f"this region opens up to {_DESCRIPTORS + _OF_A_LANE * lanes}"
            if not lanes:
                each = f"{_OF_A_FILE} for each region over a file"
                needed = f"the pager opens up to {_DESCRIPTORS}, and {each}"
            error.strerror = f"{error.strerror}; {needed}"
        limits.explain(error)


def _explain_end(error: OSError) -> None:
    """Name what a helper process that ended as it started has inherited."""
    found = limits.behind(MemoryError())
    found += tuple(
        limit
        for limit in limits.behind(OSError(errno.EMFILE, ""))
        if limits.soft_descriptors() < _FEW_DESCRIPTORS
    )
    if found:
        limits.append(error, limits.text_of(found))
