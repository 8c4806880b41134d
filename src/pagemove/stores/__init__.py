"""Where the blocks of paged memory come from and go to."""

from pagemove.stores.base import Store
from pagemove.stores.callable import CallableStore
from pagemove.stores.compressed import CompressedStore
from pagemove.stores.file import FileStore

__all__ = ["CallableStore", "CompressedStore", "FileStore", "Store"]
