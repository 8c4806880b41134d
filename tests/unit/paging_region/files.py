"""The file that these tests page, of blocks and a rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pagemove import PagedMemory
from pagemove.stores import FileStore

BLOCK = 65536
BLOCKS = 40
N = BLOCKS * BLOCK + 1234
CONTENTS = np.random.default_rng(8).bytes(N)


def opened(path: Path, mode: str = "r", **options: object) -> PagedMemory:
    """Open a region over it that may have four blocks in memory."""
    with FileStore(path, writable=mode == "r+") as store:
        return PagedMemory(store, mode=mode, **{"resident_limit": 4 * BLOCK, **options})
