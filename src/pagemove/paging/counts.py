"""What a region has counted, as `PagingStats`: with dataclasses and JSON, for this alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pagemove.paging import failures
from pagemove.paging.compression import CompressedMemory
from pagemove.paging.stats import PagingStats

if TYPE_CHECKING:
    from pagemove.paging.blocks import Blocks


def stats_of(region: Blocks) -> PagingStats:
    """Return what a region has done so far, and what it holds; ValueError if it is closed."""
    with memoryview(region):
        counters = region.counters()
        resident, dirty = counters.pop("resident"), counters.pop("dirty")
        pinned = counters.pop("pinned")
        del counters["leased"]
        return PagingStats(
            **counters,
            resident_nbytes=resident,
            dirty_nbytes=dirty,
            pinned_nbytes=pinned,
            failures=tuple(each.error(region._label) for each in failures.noted(region)),
            histogram=tuple(region.histogram()),
            io=_io_of(region),
            store=json.loads(region.store_stats() or "{}"),
        )


def _io_of(region: Blocks) -> dict[str, str]:
    queue, direct, _ = region.reading()
    if isinstance(region._store, CompressedMemory) and not queue and not direct:
        return {}
    from pagemove.paging.reading import described  # there already, where there is a file

    return described(region, region._store)
