"""What `import pagemove` imports: NumPy, and hardly anything that NumPy has not imported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pagemove
from pagemove import stores
from support import fresh_interpreter

#: Small modules of the standard library, beyond what NumPy imports.
STANDARD = {
    *("__future__", "errno", "fcntl", "mmap", "atexit", "resource"),
    *("dataclasses", "copy"),
    # Of a store's path, and what pathlib imports; a process may be unable to import it later.
    *("pathlib", "fnmatch", "ntpath", "urllib", "ipaddress"),
    *("glob", "grp", "pwd"),  # from Python 3.13 on
    *("json", "_json"),
    "signal",
    "importlib",  # of the finder of native modules
    # Of the locks of a file.
    *("threading", "base64", "binascii", "bisect", "_bisect"),
    *("cython_runtime", "_cython"),
}
STORES = {
    "base",
    "descriptors",
    "file",
    "filelock",
    "lengths",
    "links",
    "parts",
    "ranges",
    "unsynced",
    "urls",
}
#: Of each, what is slow to import and what only one kind of store, or the command line, needs.
SLOW = {
    *("asyncio", "ssl", "socket", "subprocess", "logging", "concurrent"),
    *("multiprocessing", "tempfile", "secrets", "random", "hashlib"),
    *("fsspec", "aiohttp", "redis", "s3fs", "obstore", "zstandard", "typer", "rich", "matplotlib"),
}


def modules_after(code: str) -> set[str]:
    return set(fresh_interpreter(f"import sys\n{code}\nprint(*sys.modules)").split())


def top_of(name: str) -> str:
    """Return the package; the name of what Cython shares between modules ends in its version."""
    top = name.partition(".")[0]
    return "_cython" if top.startswith("_cython_") else top


@pytest.fixture(scope="module")
def numpys() -> set[str]:
    """Return what NumPy imports, and the interpreter for itself."""
    return modules_after("import numpy")


def test_nothing_is_imported_that_is_not_needed(numpys: set[str]) -> None:
    added = modules_after("import pagemove") - numpys
    tops = {top_of(name) for name in added} - {"pagemove", "numpy"}
    assert tops <= STANDARD, f"imported besides: {sorted(tops - STANDARD)}"
    loaded = {name.split(".")[2] for name in added if name.startswith("pagemove.stores.")}
    assert loaded <= STORES, f"imported besides: {sorted(loaded - STORES)}"
    packages = {name.split(".")[1] for name in added if name.startswith("pagemove.")}
    assert not packages & {"cli", "compare", "measuring", "trial"}


def test_nor_for_paging_a_file(numpys: set[str], tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    np.save(path, np.arange(100_000))
    code = f"import pagemove; assert pagemove.open_array({str(path)!r})[-1] == 99_999"
    added = {top_of(name) for name in modules_after(code) - numpys}
    assert not added & SLOW, sorted(added & SLOW)


@pytest.mark.parametrize("name", stores.__all__)
def test_a_store_is_found_at_its_first_use(name: str) -> None:
    said = fresh_interpreter(
        f"""
        import pagemove
        print("{name}" in dir(pagemove.stores), pagemove.stores.{name}.__name__)
        from pagemove.stores import {name}
        print({name} is pagemove.stores.{name}, vars(pagemove.stores)["{name}"] is {name})
        """
    )
    assert said.split() == ["True", name, "True", "True"]


def test_all_of_them() -> None:
    namespace: dict[str, object] = {}
    exec("from pagemove.stores import *", namespace)
    assert set(stores.__all__) <= set(namespace)
    assert all(issubclass(getattr(stores, name), stores.Store) for name in stores.__all__)


def test_what_is_no_store() -> None:
    with pytest.raises(AttributeError, match=r"'pagemove\.stores' has no attribute 'NoStore'"):
        pagemove.stores.NoStore  # noqa: B018
    with pytest.raises(ImportError, match="NoStore"):
        exec("from pagemove.stores import NoStore")
