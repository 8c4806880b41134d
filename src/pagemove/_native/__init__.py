"""The native core: the kernel ABI, the system calls, the moves, the pager.

All its modules are in one shared object, so that they have one state of the C code. Python finds
one module in a file by itself; the finder here finds these.
"""

from __future__ import annotations

import sys
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import find_spec, spec_from_file_location
from types import ModuleType

_MODULES = frozenset(("arena", "calls", "mapping", "pager", "remap"))


class _Finder:
    """Stands for the shared object in the path of this package, as another does for a folder."""

    def __init__(self, path: str) -> None:
        self._path = path

    def find_spec(self, fullname: str, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return where a module is, or None."""
        if fullname.rpartition(".")[2] not in _MODULES:
            return None
        loader = ExtensionFileLoader(fullname, self._path)
        return spec_from_file_location(fullname, self._path, loader=loader)


def _add(core: ModuleSpec | None) -> None:
    if core is None or core.origin is None:
        raise ImportError(f"the shared object of {__name__} is missing: install pagemove again")
    sys.path_importer_cache[core.origin] = _Finder(core.origin)
    __path__.append(core.origin)


_add(find_spec(f"{__name__}.core"))
