"""NumPy arrays under a limit without a change to who makes them: `paged_allocations`."""

from __future__ import annotations

import errno
import functools
import inspect
import os
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from mmap import PAGESIZE as PAGE_SIZE
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from pagemove._native import arena as native
from pagemove._native.mapping import generation
from pagemove.paging.arenas import ArenaMemory, directory_of, limit_of, new_arena
from pagemove.paging.budget import limit_in
from pagemove.paging.compression import store_limit_of
from pagemove.paging.options import Limit, Size
from pagemove.paging.sizes import nbytes_of, text_of

if TYPE_CHECKING:
    from typing_extensions import CapsuleType

    from pagemove.paging.stats import AllocationStats

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: Of the limit, what is compressed may take as much more where a directory takes the rest.
_SHARE_WITH_SPILL = 4

#: Why the pager could not be switched on, and what helps.
_UNSERVED = {
    errno.ENOMEM: (
        ". A part of an array has been unmapped (munmap, mremap), or there is no memory or mapping "
        "left (vm.max_map_count): leave the memory of arrays mapped, or delete such an array"
    ),
    errno.EINVAL: (
        ". Something that cannot be paged has been mapped over a part of an array, as a file "
        "(mmap with MAP_FIXED): delete that array, or raise the limit"
    ),
    errno.EBUSY: (
        ". Somebody else has registered a part of an array with a userfaultfd: unregister it, or "
        "delete that array"
    ),
    errno.EBADF: (
        ". The program has closed the library's descriptors: use another paged_allocations, begun "
        "after that"
    ),
}

#: What is left when a block ends, innermost last: who has entered, and the handler before; in a
#: child made by fork the arena is another one.
_entered: ContextVar[
    tuple[tuple[PagedAllocations, CapsuleType, CapsuleType, dict[str, int], native.Arena], ...]
] = ContextVar("pagemove.paged_allocations", default=())


class PagedAllocations:
    """What `paged_allocations` returns: a context manager, and a decorator.

    It can be used any number of times, by several threads at once: all of its blocks have one arena
    and one limit.
    """

    def __init__(
        self,
        limit: Limit,
        *,
        min_size: Size = "1MiB",
        spill: str | os.PathLike[str] | None = None,
        store_limit: Size | None = None,
    ) -> None:
        self._least = nbytes_of(min_size, "min_size")
        if self._least < 1:
            raise ValueError(f"min_size must be positive, not {min_size!r}")
        self._limit = limit_of(limit)
        self._follows = isinstance(limit, str) and limit.strip().lower() == "auto"
        self._spill = directory_of(spill)
        self._store_limit = store_limit_of(store_limit)
        if self._spill is not None and self._store_limit is None:
            most = limit_in(self._limit)
            self._store_limit = min(max(most // _SHARE_WITH_SPILL, PAGE_SIZE), sys.maxsize)
        self._making, self._process = threading.Lock(), generation()
        self._made: tuple[native.Arena, ArenaMemory] | None = None

    def _lock(self) -> threading.Lock:
        # In a child made by fork one thread runs, and another of the parent may have had it.
        if self._process != generation():
            self._making, self._process = threading.Lock(), generation()
        return self._making

    def _arena(self) -> tuple[native.Arena, ArenaMemory]:
        with self._lock():
            # In a child made by fork it is the parent's, and gone.
            if self._made is None or self._made[1].inherited:
                self._made = new_arena(
                    self._limit,
                    self._least,
                    self._spill,
                    self._store_limit,
                    self._follows,
                )
            return self._made

    def __enter__(self) -> Self:
        arena, _ = self._arena()
        before = native.current_handler()
        entered = _entered.get()
        # Small arrays are left to the handler outside, not to this arena again.
        mine = any(each[4] is arena and each[2] is before for each in entered)
        handler = before if mine else arena.handler(self._least, before)
        native.swap_handler(handler)
        refused = arena.counters()
        _entered.set((*entered, (self, before, handler, refused, arena)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        entered = list(_entered.get())
        # A generator may be closed in another order than it was begun, or in another context.
        place = next((i for i in reversed(range(len(entered))) if entered[i][0] is self), None)
        if place is None:
            return
        _, before, _, refused, _ = entered.pop(place)
        if place == len(entered):
            native.swap_handler(before)
        else:
            entered[place] = (entered[place][0], before, *entered[place][2:])
        _entered.set(tuple(entered))
        if isinstance(error, MemoryError):
            self._explain(error, refused)

    def _explain(self, error: MemoryError, before: dict[str, int]) -> None:
        """Say what was refused since there were those counters, if anything was."""
        with self._lock():
            made = self._made
        if made is None or made[1].inherited:
            return
        now = made[0].counters()
        if now["unserved"] > before.get("unserved", 0):
            code = now["unserved_error"]
            error.add_note(
                "pagemove.paged_allocations: the arrays would be more than "
                f"{text_of(made[1].resident_limit or 0)} (limit), and cannot be paged: "
                f"{os.strerror(code)}{_UNSERVED.get(code, '')}"
            )
            return
        full = now["full"] - before.get("full", 0)
        if full:
            limit = text_of(made[1].resident_limit or 0)
            used = (
                f"{text_of(now['used_then'])} of arrays were in use, at most {limit} of them "
                "resident (limit), and the others compressed, in at most "
                f"{text_of(self._store_limit or 0)} (store_limit)"
            )
            if self._spill is not None:
                error.add_note(
                    f"pagemove.paged_allocations: {self._spill} (spill) is full. {used}, or in "
                    "unnamed files there: delete arrays, make room there (or raise RLIMIT_FSIZE, "
                    "ulimit -f), or name another directory"
                )
            else:
                error.add_note(
                    f"pagemove.paged_allocations: store_limit is full. {used}: delete arrays, "
                    "raise store_limit (pagemove run --store-limit), or name a directory with "
                    "spill= (--spill)"
                )
        elif now["refused"] > before.get("refused", 0):
            error.add_note(
                f"pagemove.paged_allocations has address space for {text_of(made[1].nbytes)} "
                f"of arrays, {text_of(now['used_then'])} were in use, and "
                f"{text_of(now['largest_then'])} free in one piece: delete arrays, raise "
                "the limit, of which that is a multiple, or RLIMIT_AS (ulimit -v)"
            )

    def __call__(self, function: _Function) -> _Function:
        """Have the arrays that a function makes in the arena; coroutines and generators too."""
        wrapped: Callable[..., Any]
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def wrapped(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await function(*args, **kwargs)

        elif inspect.isasyncgenfunction(function):

            @functools.wraps(function)
            async def wrapped(*args: Any, **kwargs: Any) -> Any:
                # What `yield from` is for the other kind.
                inner = function(*args, **kwargs)
                with self:
                    step = inner.asend(None)
                    while True:
                        try:
                            item = await step
                        except StopAsyncIteration:
                            return
                        try:
                            step = inner.asend((yield item))
                        except GeneratorExit:
                            await inner.aclose()
                            raise
                        except BaseException as error:
                            step = inner.athrow(error)

        elif inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return (yield from function(*args, **kwargs))

        else:

            @functools.wraps(function)
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return function(*args, **kwargs)

        return cast(_Function, wrapped)

    def stats(self) -> AllocationStats:
        """Return what is in the arena, and what its region has done.

        Returns
        -------
        AllocationStats
            All zeros before it is first used.

        Examples
        --------
        >>> import numpy as np
        >>> import pagemove
        >>> with pagemove.paged_allocations("64MiB") as allocations:
        ...     array = np.ones(1 << 18)
        ...     allocations.stats().arrays
        1
        """
        from dataclasses import replace

        from pagemove.paging.stats import AllocationStats, PagingStats  # see there

        with self._lock():
            made = self._made
        if made is None or made[1].inherited:
            return AllocationStats(None, 0, 0, 0, 0, 0, 0, 0, 0, PagingStats())
        counters, paging = made[0].counters(), made[1].stats()
        # While they are fewer than the limit the pager has nothing to do with them.
        plain = made[0].plain_nbytes
        if plain:
            paging = replace(paging, resident_nbytes=plain)
        return AllocationStats(
            limit=made[1].resident_limit,
            arrays=counters["objects"],
            nbytes=counters["used"],
            peak_nbytes=counters["peak"],
            allocations=counters["allocated"],
            moved_nbytes=counters["moved"],
            refused=counters["refused"],
            space_nbytes=made[1].nbytes,
            largest_free_nbytes=counters["largest"],
            paging=paging,
        )

    @property
    def kernel_faults(self) -> bool:
        """Whether system calls reach arrays that are not resident; see `PagedMemory`."""
        return self._arena()[1].kernel_faults

    def _faults(self) -> int:
        counters = self._arena()[1].counters()
        return int(counters["faults"] + counters["write_faults"])

    def _everywhere(self) -> None:
        """Have the arrays of all threads in it, from now on and forever: for whole programs."""
        self._arena()[0].replace_default(self._least)

    def __repr__(self) -> str:
        limit = self._limit if isinstance(self._limit, int) else self._limit.limit
        return f"<paged_allocations, at most {text_of(limit)} resident>"


def paged_allocations(
    limit: Limit,
    *,
    min_size: Size = "1MiB",
    spill: str | os.PathLike[str] | None = None,
    store_limit: Size | None = None,
) -> PagedAllocations:
    """Have NumPy make its large arrays in paged memory, under one limit, while a block runs.

    Nothing else about them changes: what makes them need not know. They have whatever NumPy and
    what is built on it does to them, and may outlive the block: the arena ends with the last.

    Parameters
    ----------
    limit : int, str or Budget
        The most bytes of all of them together that are in memory: ``"2GiB"``, a number, a `Budget`
        that they share with other regions; ``"50%"`` of the memory available now; ``"auto"``: half,
        and less while others need memory, as for ``resident_limit="auto"``.
    min_size : int or str
        Arrays of fewer bytes are made as ever.
    spill : str or path-like, optional
        A directory. What does not fit the limit is kept in memory, compressed, outside of the
        limit; what does not shrink, or has no room there, goes to an unnamed file in the directory,
        as it is, if there is one.
    store_limit : int or str, optional
        The most bytes of memory that what is compressed may take; by default what it needs, and
        with `spill` a quarter of `limit`. Where there is no room any more, neither in the
        directory, an array is a MemoryError, with a note that says so; a thread that stores to one
        that was made before gets SIGBUS, after `PagedMemory`'s message.

    Returns
    -------
    PagedAllocations
        A context manager, and a decorator of functions, coroutines and generators, asynchronous
        ones too; ``with ... as`` is itself. `PagedAllocations.stats` says what is in it.

    Raises
    ------
    ValueError
        `limit`, `min_size` or `store_limit` is out of range, or `spill` empty.
    TypeError
        `limit`, `min_size` or `store_limit` is not a size, or `spill` not a path.
    NotADirectoryError
        `spill` is no directory.
    ImportError, OSError, UnsupportedError
        When the block begins for the first time: as `PagedMemory`.

    Notes
    -----
    It holds for the context that entered it, as `contextvars` have it: tasks of asyncio that are
    started within, not threads (before Python 3.14), and whatever runs between two steps of a
    generator that has entered. ``pagemove run`` is for all threads of a program.

    Arrays begin at a block of 128 KiB (less where `min_size` or `limit` is small), and take whole
    blocks. They are zeros without being touched. Freeing one drops its blocks, wherever they are.
    One that grows does so where it is, as long as there is address space behind it; else its pages
    move, and what is compressed of it stays as it is.

    As long as all of them fit `limit`, and it is no `Budget`, they are ordinary memory that costs
    what it always does, also in children made by fork and for system calls. The first that does not
    fit has the pager serve the arena from then on. A child made by fork after that has the arrays
    as they were at that moment, and the limit for itself. With a shared `Budget` or the helper
    process they are not there: touching them is SIGSEGV, after a message, and arrays made
    there are ordinary ones. System calls on arrays need `pinned` or `save` then, where
    `PagedMemory.kernel_faults` is False.

    Address space without end there is not: an array for which there is none is a MemoryError, with
    a note that says so.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np, pagemove
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with pagemove.paged_allocations("8MiB", spill=folder) as arena:
    ...         numbers = np.arange(4_000_000)
    ...         squares = numbers * numbers
    ...     int(squares[-1]), arena.stats().paging.resident_nbytes <= 8 << 20
    (15999992000001, True)
    """
    return PagedAllocations(limit, min_size=min_size, spill=spill, store_limit=store_limit)
