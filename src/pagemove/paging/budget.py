"""One limit for any number of regions: `Budget`."""

from __future__ import annotations

import contextlib
import errno
import math
import threading
import weakref
from mmap import PAGESIZE as PAGE_SIZE
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex, TypeVar

from pagemove import children
from pagemove._native.pager import SharedLimit
from pagemove.paging.sizes import nbytes_of, text_of

if TYPE_CHECKING:
    from pagemove.paging.region import PagedMemory
    from pagemove.paging.stats import BudgetStats

_Limit = TypeVar("_Limit")

_LARGEST = 2**63 - 1
_MOST_SECONDS = 2**63 / 1e9 - 1


def limit_in(limit: Budget | _Limit) -> int | _Limit:
    """Return the bytes of a budget; what is none as it is."""
    return limit.limit if isinstance(limit, Budget) else limit


# What is set aside of budgets, by the identity of the store that keeps it.
_kept: dict[int, weakref.finalize[..., Any]] = {}
_KEEP_PATIENCE = 5_000_000_000  # ns


class Budget(SharedLimit):
    """A limit that any number of regions share, each given it as `resident_limit`.

    All of them together have at most so many bytes in memory at any moment, blocks on their way in
    and out included, as one region has with a limit of its own. Memory goes to the regions that
    miss blocks, from those that miss fewer for what they have: two that are equally busy have
    about as much, and an idle one loses all but what it cannot do without, as others
    need it. A region that cannot give memory up, because its blocks are pinned or its store does
    not take what was changed, keeps what it has, and no other waits for it.

    What the process of an array that is decoded by slices keeps decoded counts too: up to half of
    the budget, as long as 64 blocks are left for the regions.

    Parameters
    ----------
    limit : int or str
        The most bytes: ``"4GiB"``, ``"1.5 GiB"``, ``"100kB"``, or a number. Each region needs four
        blocks of its own at least, and what is `pinned`.

    Raises
    ------
    ValueError
        The limit is not a size, or less than four pages.

    Notes
    -----
    A budget belongs to the process that made it. In a child made by fork, which has none of the
    regions, it is one of the same size without regions. It cannot be pickled. It lives as
    long as it or one of its regions does.

    A region that is opened needs its four blocks at once: others return them. If all have only
    what they cannot do without, or do not return it in `store_timeout` seconds (two at least),
    opening fails with `OSError` (ENOMEM), which names them.

    Each region asks the budget only when it has used what it has, so
    regions that fit cost nothing. What changes hands at once is a 64th of the budget, 16 MiB at
    most and a block at least.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np, pagemove
    >>> budget = pagemove.Budget("1MiB")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = [pathlib.Path(folder, f"{i}.npy") for i in range(3)]
    ...     for path in paths:
    ...         np.save(path, np.arange(100_000))
    ...     arrays = [pagemove.open_array(path, resident_limit=budget) for path in paths]
    ...     totals = [int(array.sum()) for array in arrays]
    ...     stats = budget.stats()
    ...     totals[0] == totals[2], stats.members, stats.resident_nbytes <= stats.limit
    (True, 3, True)
    """

    #: Bytes of it that what is kept decoded for its regions may take; None: it is the user's, whose
    #: limit stays what it is.
    _spare: int | None = None
    _kept_nbytes = 0

    def __init__(self, limit: SupportsIndex | str) -> None:
        super().__init__(_checked(limit))
        self._regions: weakref.WeakSet[PagedMemory] = weakref.WeakSet()
        self._setting = threading.RLock()
        _budgets.add(self)

    def __dir__(self) -> list[str]:
        # For completion: what the native budget has for this class alone is left out.
        return sorted(set(super().__dir__()) - {"change_total", "counters", "shares"})

    @property
    def limit(self) -> int:
        """The most bytes that all regions have in memory, and what is kept decoded for them."""
        return self.counters()["total"] + self._kept_nbytes

    def resize(self, limit: SupportsIndex | str, *, timeout: float = 5.0) -> None:
        """Change the limit, up or down.

        It holds at once for all that regions ask for from then on. A smaller one: regions return
        memory in proportion to what they have, changed blocks after writing them back, and this
        returns when no more than the limit is in memory.

        Parameters
        ----------
        limit : int or str
            As for the constructor.
        timeout : float
            Seconds to wait for regions to return memory.

        Raises
        ------
        ValueError
            The limit is not a size, or less than what the regions cannot do without. The limit is
            as before.
        TimeoutError
            Regions have not returned enough, because their blocks are in use or their stores do
            not take what was changed. The new limit is in force: no region gets more, and the
            excess is requested again whenever a region needs memory. To try again, call this
            again. So it is if a signal handler raises meanwhile (Control-C).

        Examples
        --------
        >>> import pagemove
        >>> budget = pagemove.Budget("64MiB")
        >>> budget.resize("16MiB")
        >>> budget.limit == 16 << 20
        True
        """
        if not 0 <= timeout <= _MOST_SECONDS:
            raise ValueError(
                f"timeout must be a finite number of seconds, not negative, not {timeout}"
            )
        total = _checked(limit)
        with self._setting:
            left = total - self._kept_nbytes
            code = self.change_total(left, math.ceil(timeout * 1e9)) if left > 0 else -1
        if code < 0:
            self._throw_too_small(total)
        if code:
            counters = self.counters()
            raise TimeoutError(
                errno.ETIMEDOUT,
                f"the budget is {text_of(total)} now, but its regions have not returned enough in "
                f"{timeout:g} s: they have {text_of(counters['leased'])}, in blocks that are in "
                "use, or changed and not taken by their stores; call resize again, or close some",
            )

    def _throw_too_small(self, total: int) -> NoReturn:
        counters = self.counters()
        raise ValueError(
            f"a budget of {text_of(total)} is less than the {text_of(counters['floors'])} that its "
            f"{counters['members']} regions cannot do without, four blocks each and what is "
            f"pinned{self._beside()}: close some, or unpin arrays; it stays {text_of(self.limit)}"
        )

    def _beside(self) -> str:
        kept = self._kept_nbytes
        return f", beside the {text_of(kept)} for what is kept decoded" if kept else ""

    def _keep(self, store: object, nbytes: int) -> None:
        """Set bytes aside for what a store keeps, until it has gone or its region is closed.

        Not where the regions cannot do without them.
        """
        with self._setting:
            # Timed out, it is in force all the same.
            if self.change_total(self.counters()["total"] - nbytes, _KEEP_PATIENCE) >= 0:
                self._kept_nbytes += nbytes
                done = weakref.finalize(store, self._give_back, id(store), nbytes)
                done.atexit = False
                _kept[id(store)] = done

    def _give_back(self, store: int, nbytes: int) -> None:
        with self._setting:
            _kept.pop(store, None)
            self._kept_nbytes -= nbytes
            self.change_total(self.counters()["total"] + nbytes, 0)

    def stats(self) -> BudgetStats:
        """Return what became of the budget so far, and what each region has of it.

        All of it is of one moment: what regions have in memory never adds up to more than what
        they have leased, whatever they do meanwhile.

        Returns
        -------
        BudgetStats
            With a `BudgetShare` for each region that is open.

        Examples
        --------
        >>> import pagemove
        >>> budget = pagemove.Budget("16MiB")
        >>> with pagemove.PagedMemory(nbytes=1 << 20, resident_limit=budget) as region:
        ...     region.prefetch(wait=True)
        ...     (share,) = budget.stats().regions
        ...     share.resident_nbytes <= share.leased_nbytes <= budget.limit
        True
        """
        from pagemove.paging.stats import BudgetShare, BudgetStats  # see there

        regions = {}
        for region in list(self._regions):
            # In a child made by fork one may not be opened yet, and is not for this; or it is
            # closed, or the parent's.
            with contextlib.suppress(ValueError):
                if not region.untouched:
                    regions[region.share_id] = region
        counters, found = self.shares()
        shares = [
            BudgetShare(region._label, region.block_size, *found[number])
            for number, region in regions.items()
            if number in found
        ]
        return BudgetStats(
            limit=counters["total"] + self._kept_nbytes,
            leased_nbytes=counters["leased"],
            least_nbytes=counters["floors"],
            grown_nbytes=counters["grown"],
            returned_nbytes=counters["returned"],
            moved_nbytes=counters["moved"],
            refused=counters["refused"],
            members=counters["members"],
            regions=tuple(shares),
            kept_nbytes=self._kept_nbytes,
        )

    def _enter(self, region: PagedMemory) -> None:
        self._regions.add(region)

    def __repr__(self) -> str:
        counters = self.counters()
        shared = f"{counters['members']} region{'s' if counters['members'] != 1 else ''}"
        return (
            f"<Budget of {text_of(self.limit)}, {text_of(counters['leased'])} of it leased "
            f"to {shared}>"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Budget cannot be pickled, for it limits the memory of one process: make one there, "
            f"Budget({self.limit}), and open the arrays with it as resident_limit"
        )


_budgets: weakref.WeakSet[Budget] = weakref.WeakSet()


def _in_child() -> None:
    # A thread that is not here may have had the locks.
    for budget in list(_budgets):
        budget._setting = threading.RLock()


children.first_do(_in_child)


def give_back_kept(store: object) -> None:
    """Return what a store was to keep of a budget: its region is closed."""
    done = _kept.get(id(store))
    if done is not None:
        done()


def _checked(limit: SupportsIndex | str) -> int:
    total = nbytes_of(limit, "limit")
    if not 4 * PAGE_SIZE <= total <= _LARGEST:
        raise ValueError(
            f"the limit of a budget must be from {text_of(4 * PAGE_SIZE)} (four blocks of a page) "
            f"to {_LARGEST} bytes (8 EiB), not {limit!r}"
        )
    return total
