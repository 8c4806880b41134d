"""Regions that are there in a child made by fork: opened again, at the same addresses.

Only what has to be is done while the program is in fork: see ``_native/pager/heirs.c``. No Python
runs when a region is first touched, for the thread that touches it may hold the GIL.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from typing import TYPE_CHECKING

from pagemove import children
from pagemove._native.pager import serve_inherited

if TYPE_CHECKING:
    from pagemove.paging.handover import Log
    from pagemove.paging.region import PagedMemory

_heirs: weakref.WeakSet[PagedMemory] = weakref.WeakSet()


def have_again(region: PagedMemory) -> None:
    """Have a region in children made by fork."""
    _heirs.add(region)


def _in_child() -> None:
    with contextlib.ExitStack() as files:
        log: Log | None = None
        for region in list(_heirs):
            if not region.inherited:
                # Compressed memory is there already (carried.c); or it was closed.
                if not region.closed:
                    region._begin_again()
                    if region._budget is not None:
                        region._limit, region._budget = region._budget.limit, None
                continue
            region._begin_again()
            helper = None
            if region._payload:
                from pagemove.paging import handover  # there already, with the helper

                log = log or files.enter_context(contextlib.closing(handover.Log()))
                helper = handover.again(region._payload, log)
                files.callback(os.close, helper[0])
                files.callback(os.close, helper[1])
            if helper or region._budget is not None:
                region.inherit(region._budget, helper)
        serve_inherited()


children.first_do(_in_child)
