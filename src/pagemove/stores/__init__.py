"""Where the blocks of paged memory come from and go to.

A kind of store is imported at its first use: most programs use one, and some need slow libraries.
"""

import importlib
from typing import TYPE_CHECKING

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
    _MODULES = {
        "CallableStore": "callable",
        "CompressedStore": "compressed",
        "FileStore": "file",
        "FsspecStore": "fsspec",
        "LayeredStore": "layered",
        "RedisStore": "redis",
        "SlicedStore": "sliced",
        "Store": "base",
    }

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
        found = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        # For completion: modules that are only parts of it are left out.
        return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


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
