"""The open region that the items of a view are in."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from pagemove.paging.places import Place, place_of
from pagemove.paging.region import PagedMemory
from pagemove.paging.registry import region_at
from pagemove.views import owner_behind


def check_open(view: object) -> None:
    """Raise ValueError for a view of a region that is closed, or is the parent's.

    `owner_behind` finds the region where `region_at`, which knows open ones alone, finds none.
    """
    region = owner_behind(view, PagedMemory)
    if region is not None and region.closed:
        raise ValueError(f"{region!r} has none of its items in memory any more: open it again")


def region_behind(array: npt.NDArray[Any]) -> tuple[PagedMemory | None, Place]:
    """Find the region that has all items of an array, if any, and where they are.

    Raises
    ------
    ValueError
        The region is closed.
    """
    check_open(array)
    place = place_of(array)
    return (region_at(place.start, place.nbytes) if place.nbytes else None), place
