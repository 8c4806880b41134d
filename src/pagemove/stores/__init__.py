"""Where the blocks of paged memory come from and go to.

A kind of store is imported at its first use: most programs use one, and some need slow libraries.
"""

from typing import TYPE_CHECKING

from pagemove import lazily

if TYPE_CHECKING:
    from pagemove.stores.base import Store
    from pagemove.stores.callable import CallableStore
    from pagemove.stores.compressed import CompressedStore
    from pagemove.stores.file import FileStore
    from pagemove.stores.fsspec import FsspecStore
    from pagemove.stores.layered import LayeredStore
    from pagemove.stores.redis import RedisStore
    from pagemove.stores.sliced import SlicedStore
else:
    __getattr__, __dir__ = lazily.names(
        __name__,
        {
            "CallableStore": "callable",
            "CompressedStore": "compressed",
            "FileStore": "file",
            "FsspecStore": "fsspec",
            "LayeredStore": "layered",
            "RedisStore": "redis",
            "SlicedStore": "sliced",
            "Store": "base",
        },
    )


__all__ = [
    "CallableStore",
    "CompressedStore",
    "FileStore",
    "FsspecStore",
    "LayeredStore",
    "RedisStore",
    "SlicedStore",
    "Store",
]
