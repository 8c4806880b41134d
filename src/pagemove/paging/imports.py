"""Where the process that runs a store imports from.

With ``python -m`` and ``PYTHONPATH=.`` the path begins with where the program was started, and what
lies there may have the name of a module that the library needs. The program itself may have
imported that module before, from elsewhere, or before there was such a file. So what is installed
comes first, and where the program stands not at all, unless the store is the program's own: that
one finds its modules where the program does, once the library has its own.
"""

from __future__ import annotations

import contextlib
import os
import site
import sys
import sysconfig
from collections.abc import Iterable

# What stores of the library import. Where they come from here, they come from there.
_LIBRARIES = (
    *("pagemove", "numpy", "fsspec", "aiohttp", "s3fs", "aiobotocore", "botocore", "obstore"),
    *("redis", "zstandard"),
)

#: The main module of a program, and of what multiprocessing has started by spawn or forkserver.
MAINS = frozenset(("__main__", "__mp_main__"))


def program_path() -> list[str]:
    """Return where this process imports from, but not where its user stands at the moment."""
    entries = (entry for entry in sys.path if isinstance(entry, str))
    return [os.path.abspath(entry) for entry in entries if os.path.normpath(entry) != "."]


def library_path() -> list[str]:
    """Return where what the library needs is imported from: first what is installed."""
    installed, here = _installed(), None
    with contextlib.suppress(OSError):  # it may be gone
        here = os.getcwd()
    path = program_path()
    first = [entry for entry in path if _is_in(entry, installed)]
    return first + [entry for entry in path if entry not in first and entry != here]


def folder_of(name: str) -> str | None:
    """Return the folder that a module was imported from, if that is a folder."""
    top = sys.modules.get(name.partition(".")[0])
    file = getattr(top, "__file__", None)
    if name in MAINS or not isinstance(file, str):
        return None
    folder = os.path.dirname(os.path.abspath(file))
    return os.path.dirname(folder) if hasattr(top, "__path__") else folder


def are_installed(modules: Iterable[str]) -> bool:
    """Return whether modules belong to the library or to an installed package, not to a program."""
    installed = _installed()
    for name in modules:
        folder = folder_of(name)
        # By value goes what is in no module, with the names of others that it may import.
        if name in MAINS or name.partition(".")[0] == "cloudpickle":
            return False
        if folder is not None and not _is_in(folder, installed):
            return False
    return True


def _installed() -> set[str]:
    standard = sysconfig.get_path("stdlib")
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    found: set[str | None] = {sysconfig.get_path(name) for name in names}
    found |= {os.path.join(standard, "lib-dynload"), sysconfig.get_config_var("DESTSHARED")}
    found |= {*site.getsitepackages(), *site.getsitepackages([sys.base_prefix])}
    if site.ENABLE_USER_SITE:
        found.add(site.getusersitepackages())
    found |= {folder_of(name) for name in _LIBRARIES}
    return {os.path.realpath(folder) for folder in found if folder}


def _is_in(entry: str, folders: set[str]) -> bool:
    # The standard library may also be an archive beside its folder.
    archive = os.path.join(
        os.path.dirname(sysconfig.get_path("stdlib")),
        f"python{sys.version_info.major}{sys.version_info.minor}.zip",
    )
    return os.path.realpath(entry) in folders or entry == archive
