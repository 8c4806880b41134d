"""A region that arrays are allocated in: zeros until written, and never saved."""

from __future__ import annotations

import errno
import os
import resource
from mmap import PAGESIZE as PAGE_SIZE
from typing import TYPE_CHECKING, Any

from pagemove._native.arena import Arena
from pagemove.paging.available import LEAST, SHARE, available
from pagemove.paging.budget import Budget, limit_in
from pagemove.paging.following import ArenaLimit, follow
from pagemove.paging.options import FEWEST_BLOCKS, Limit
from pagemove.paging.region import PagedMemory
from pagemove.paging.sizes import nbytes_of, text_of

if TYPE_CHECKING:
    from pathlib import Path

#: What is read and evicted as one: a part of the smallest array, so that little of the last block
#: is for nothing, and of the limit, so that there are some to choose from.
_LARGEST_BLOCK = 131072
_BLOCKS_OF_AN_ARRAY = 8
_BLOCKS_OF_A_LIMIT = 64

#: Address space costs nothing; a mapping of more than that the kernel may refuse.
_MOST_SPACE = 4 << 40
_LEAST_SPACE = 1 << 40
_TIMES_THE_LIMIT = 64
_MOST_BLOCKS = 1 << 28


class ArenaMemory(PagedMemory):
    """The region that holds the arrays. Its contents are discarded with the last of them."""

    _known_as = "the arrays of pagemove.paged_allocations"
    _blank = True

    def __init__(
        self,
        nbytes: int,
        limit: Limit,
        block_size: int,
        spill: Path | None,
        store_limit: int | None = None,
        *,
        plain: bool = True,
    ) -> None:
        self._plain = plain
        self._follower: ArenaLimit | None = None
        options: dict[str, Any] = {
            "resident_limit": limit,
            "block_size": block_size,
            "writeback_interval": None,
            "name": "arrays",
        }
        super().__init__(nbytes=nbytes, store_limit=store_limit, spill=spill, **options)
        self._forgettable = True

    def _save_or_tell(self) -> None:
        pass

    def _save_before_close(self) -> None:
        pass


def limit_of(limit: Limit) -> int | Budget:
    """Take a limit: as of a region, or ``"auto"``, or a share of what is available, ``"50%"``.

    Raises
    ------
    ValueError
        It is none of these; or what is available is unknown.
    """
    if isinstance(limit, Budget):
        return limit
    word = limit.strip().lower() if isinstance(limit, str) else ""
    if word != "auto" and not word.endswith("%"):
        return nbytes_of(limit, "limit")
    percent = 100 / SHARE if word == "auto" else _percent(word)
    memory = available()
    if memory is None:
        raise ValueError(
            f"limit {limit!r} is a share of the memory available, which is unknown here: pass a "
            "number of bytes, or '2GiB'"
        )
    return max(int(memory * percent / 100), LEAST)


def _percent(word: str) -> float:
    try:
        percent = float(word[:-1])
    except ValueError:
        percent = 0.0
    if not 0 < percent <= 100:
        raise ValueError(f"limit {word!r} is not a share of memory: write for instance '50%'")
    return percent


def directory_of(spill: str | os.PathLike[str] | None) -> Path | None:
    """Take a directory for what leaves memory; NotADirectoryError, ValueError or TypeError."""
    if spill is None:
        return None
    if not isinstance(spill, str | os.PathLike):
        raise TypeError(f"spill must be a path of a directory, or None, not {spill!r}")
    if not os.fspath(spill):
        raise ValueError(
            "spill is '', which names no directory: pass one on a disk ('.' is the current one), "
            "or leave spill out to keep what does not fit in memory, compressed"
        )
    from pathlib import Path  # not for arenas without files

    path = Path(spill).absolute()
    code = errno.ENOTDIR
    try:
        if path.is_dir():
            return path
    except OSError as error:
        code = error.errno or code
    wanted = "spill must be a directory that an unnamed file can be made in"
    why = "" if code == errno.ENOTDIR else f", and it cannot be looked at: {os.strerror(code)}"
    raise OSError(code, f"{wanted}{why}", str(path))


def new_arena(
    limit: int | Budget,
    least: int,
    spill: Path | None,
    store_limit: int | None = None,
    follows: bool = False,
) -> tuple[Arena, ArenaMemory]:
    """Make an arena for arrays of `least` bytes or more.

    With `follows` its limit is less while others need memory.

    Raises
    ------
    ValueError
        The limit is too small.
    ImportError, OSError, UnsupportedError
        As `PagedMemory`.
    """
    most = limit_in(limit)
    if most < FEWEST_BLOCKS * PAGE_SIZE:
        raise ValueError(
            f"limit {most} is less than four pages: raise it to at least "
            f"{text_of(FEWEST_BLOCKS * PAGE_SIZE)}"
        )
    block = min(least // _BLOCKS_OF_AN_ARRAY, most // _BLOCKS_OF_A_LIMIT, _LARGEST_BLOCK)
    block = max(1 << max(block.bit_length() - 1, 0), PAGE_SIZE)
    nbytes = _space(most, block)
    # What shares its limit with others is never ordinary memory.
    plain = not isinstance(limit, Budget)
    budget = Budget(limit) if follows and isinstance(limit, int) else None
    while True:
        try:
            memory = ArenaMemory(nbytes, budget or limit, block, spill, store_limit, plain=plain)
        except OSError as error:
            # A limit on address space, or no overcommitment.
            if error.errno != errno.ENOMEM or nbytes <= 2 * most:
                raise
            nbytes = max(nbytes // 4, 2 * most) // block * block
        else:
            break
    arena = Arena(memory, most if plain else 0)
    if budget is not None:
        memory._follower = follow(arena, budget)
    return arena, memory


def _space(limit: int, block: int) -> int:
    """Choose how much address space arrays have."""
    nbytes = min(max(_TIMES_THE_LIMIT * limit, _LEAST_SPACE), _MOST_SPACE, _MOST_BLOCKS * block)
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        nbytes = min(nbytes, soft // 4)
    return max(nbytes, 2 * limit) // block * block
