"""Files of compressed blocks, as tests make them."""

from __future__ import annotations

import random
from pathlib import Path

from pagemove.stores import CompressedStore

K = 1024
N = 64 * K


def contents(seed: int) -> bytes:
    return random.Random(seed).randbytes(N)


def read(store: CompressedStore, offset: int = 0, length: int = N) -> bytes:
    buffer = bytearray(length)
    store.read_into(offset, buffer)
    return bytes(buffer)


def made(path: Path, seed: int = 0) -> CompressedStore:
    store = CompressedStore(N, path=path, block_size=4 * K)
    store.write(0, contents(seed))
    store.flush()
    return store


def compact(store: CompressedStore, last: int = 9) -> None:
    """Write until the file is compacted, and what is in the end is known."""
    before = store.stats()["compactions"]
    for _ in range(4):
        store.write(0, contents(last))
    assert store.stats()["compactions"] > before
