"""Where the blocks of paged memory come from and go to."""

from pagemove.stores.base import Store
from pagemove.stores.callable import CallableStore
from pagemove.stores.compressed import CompressedStore
from pagemove.stores.file import FileStore
from pagemove.stores.fsspec import FsspecStore
from pagemove.stores.layered import LayeredStore
from pagemove.stores.redis import RedisStore

__all__ = [
    "CallableStore",
    "CompressedStore",
    "FileStore",
    "FsspecStore",
    "LayeredStore",
    "RedisStore",
    "Store",
]
