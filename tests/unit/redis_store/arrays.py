"""Arrays in a server, made, read, and looked into from outside."""

from __future__ import annotations

import re

import numpy as np

from pagemove.stores import RedisStore
from support.servers import Redis

K = 1024
N = 300 * K + 7
CONTENTS = np.random.default_rng(1).bytes(N)


def read(store: RedisStore, offset: int = 0, length: int | None = None) -> bytes:
    buffer = bytearray(store.nbytes - offset if length is None else length)
    store.read_into(offset, buffer)
    return bytes(buffer)


def create(server: Redis, key: str, contents: bytes = CONTENTS, **options: object) -> RedisStore:
    options = {"block_size": 16 * K, **options}
    store = RedisStore(server.url, key, nbytes=len(contents), create=True, **options)
    store.write(0, contents)
    return store


def key_of(store: RedisStore, block: int) -> str:
    return store._layout.block_key(block)


def calls(server: Redis, command: str) -> int:
    """Count how often a command was carried out."""
    found = re.search(rf"cmdstat_{command}:calls=(\d+)".encode(), server.say_whole("INFO", "all"))
    return int(found[1]) if found else 0
