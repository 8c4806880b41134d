"""Public names that are imported at their first use: module `__getattr__`, PEP 562.

As SPEC 1 of Scientific Python has it, but with the imports for type checkers in the package itself.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Mapping

from pagemove import limits


def names(
    package: str,
    modules: Mapping[str, str],
    *,
    parts: Collection[str] = (),
    along: Mapping[str, Collection[str]] = {},
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package.

    Parameters
    ----------
    package : str
        Its name.
    modules : mapping of str to str
        Of each public name the module in the package that has it.
    parts : collection of str
        Modules of the package that are its attributes, though nobody has imported them.
    along : mapping of str to collection of str
        Of each of these modules what is imported with it.
    """

    def attribute(name: str) -> object:
        # Modules are read from files, of which the process may have as many as it may.
        with limits.named():
            # First: threads that come to it by different ways would each find a part of it.
            importlib.import_module("numpy")
            if name in parts:
                return importlib.import_module(f"{package}.{name}")
            if name not in modules:
                raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name)
            module = modules[name]
            found = getattr(importlib.import_module(f"{package}.{module}"), name)
            for other in along.get(module, ()):
                importlib.import_module(f"{package}.{other}")
        vars(sys.modules[package])[name] = found
        return found

    def listed() -> list[str]:
        # For completion: modules that are only parts of it are left out.
        there = vars(sys.modules[package])
        return sorted({*there["__all__"], *(name for name in there if name.startswith("__"))})

    return attribute, listed
