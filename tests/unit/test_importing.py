"""What is imported, and when: names at their first use, and hardly anything besides NumPy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pagemove
from pagemove import stores
from support import fresh_interpreter

#: Small modules of the standard library, beyond what NumPy imports: for all names of the library.
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
#: What neither `import pagemove` nor `pagemove run` is to wait for.
LATER = {
    *("argparse", "gettext", "locale", "shutil", "pathlib", "urllib", "ipaddress", "json"),
    *("dataclasses", "copy", "signal", "sysconfig", "base64", "binascii", "bisect"),
    *("numpy.typing", "pagemove.calls", "pagemove.containers", "pagemove.introspect"),
    *("pagemove.kernel", "pagemove.memory", "pagemove.probing", "pagemove.problems"),
    *("pagemove.paging.array", "pagemove.paging.stats", "pagemove.paging.stored"),
    *("pagemove.stores.file", "pagemove.stores.links", "pagemove.stores.urls"),
}
#: Modules of the library, and others that NumPy has not imported: a few more than there are.
MOST_AT_IMPORT, MOST_TO_RUN, MOST_BESIDES = 13, 48, 16


def modules_after(code: str) -> set[str]:
    return set(fresh_interpreter(f"import sys\n{code}\nprint(*sys.modules)").split())


def of_the_library(modules: set[str]) -> set[str]:
    return {name for name in modules if name.partition(".")[0] == "pagemove"}


def top_of(name: str) -> str:
    """Return the package; the name of what Cython shares between modules ends in its version."""
    top = name.partition(".")[0]
    return "_cython" if top.startswith("_cython_") else top


@pytest.fixture(scope="module")
def numpys() -> set[str]:
    """Return what NumPy imports, and the interpreter for itself."""
    return modules_after("import numpy")


def test_the_import_alone(numpys: set[str]) -> None:
    loaded = modules_after("import pagemove")
    assert "numpy" not in loaded
    assert not loaded & (LATER - numpys), sorted(loaded & LATER)
    assert len(of_the_library(loaded)) <= MOST_AT_IMPORT, sorted(of_the_library(loaded))
    assert len(loaded - numpys - of_the_library(loaded)) <= MOST_BESIDES


@pytest.mark.needs("paging")
def test_a_program_begins_with_little_besides(numpys: set[str]) -> None:
    code = "import sys; modules = {*sys.modules}; import numpy; print(*modules)"
    command = [sys.executable, "-m", "pagemove", "run", "--limit", "8MiB", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & (LATER - numpys), sorted(loaded & (LATER - numpys))
    assert len(of_the_library(loaded)) <= MOST_TO_RUN, sorted(of_the_library(loaded))
    besides = loaded - numpys - of_the_library(loaded) - {"runpy", "pkgutil"}
    assert len(besides) <= MOST_BESIDES, sorted(besides)


def test_every_name_is_found_at_its_first_use() -> None:
    """Each in the order in which they are listed, so that many are the first of their module."""
    said = fresh_interpreter(
        """
        import pagemove, sys
        assert not set(pagemove.__all__) & set(vars(pagemove))
        assert set(pagemove.__all__) <= set(dir(pagemove))
        for name in pagemove.__all__:
            found = getattr(pagemove, name)
            assert vars(pagemove)[name] is found
            kind = getattr(found, "__module__", "")
            assert not kind or kind.partition(".")[0] == "pagemove", name
        names = {}
        exec("from pagemove import *", names)
        print(set(names) - {"__builtins__"} == set(pagemove.__all__))
        """
    )
    assert said.split() == ["True"]


@pytest.mark.parametrize("name", ["kernel.DEFECTS", "errors.StoreError", "calls", "introspect.Vma"])
def test_a_module_that_messages_name_is_there(name: str) -> None:
    assert fresh_interpreter(f"import pagemove; pagemove.{name}; print(1)") == "1"


def test_what_is_no_name() -> None:
    with pytest.raises(AttributeError, match=r"'pagemove' has no attribute 'absent'"):
        pagemove.absent  # noqa: B018
    assert not hasattr(pagemove, "absent")


def test_a_name_for_which_there_is_no_descriptor() -> None:
    said = fresh_interpreter(
        """
        import errno, os, resource
        import numpy, pagemove
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
        held = []
        try:
            while True:
                held.append(os.dup(0))
        except OSError:
            pass
        try:
            pagemove.open_array
        except OSError as error:
            print(error.errno == errno.EMFILE, "RLIMIT_NOFILE" in str(error))
        for fd in held:
            os.close(fd)
        print(pagemove.open_array.__name__)
        """
    )
    assert said.split() == ["True", "True", "open_array"]


@pytest.mark.needs("paging")
def test_what_has_a_region_imports_nothing_more(tmp_path: Path) -> None:
    """There may be no descriptor left, or another user, when it is asked or refused."""
    path = tmp_path / "numbers"
    np.zeros(100_000).tofile(path)
    said = fresh_interpreter(
        f"""
        import pickle, sys, warnings
        from pagemove import KernelFaultsWarning, PagedMemory, open_array
        from pagemove.stores import FileStore
        warnings.simplefilter("ignore", KernelFaultsWarning)
        before = {{*sys.modules}}
        with FileStore({str(path)!r}, writable=True) as store:
            with PagedMemory(store, mode="r+") as region:
                region.prefetch([0, 500_000])
                region.flush()
                region.stats()
        with open_array({str(path)!r}, dtype=float) as array:
            pickle.dumps(array)
        print(*[name for name in {{*sys.modules}} - before if name.startswith("pagemove")])
        print("pagemove.probing" in before)
        """
    )
    assert said == "True"


@pytest.mark.needs("paging")
def test_what_a_program_does_first_in_a_child_may_use_the_library(tmp_path: Path) -> None:
    """Handlers are called in the order of registration: the library's are as of its import."""
    path = tmp_path / "numbers.npy"
    np.save(path, np.arange(100_000))
    said = fresh_interpreter(
        f"""
        import os
        import pagemove
        os.register_at_fork(after_in_child=lambda: print(array[::9_999].tolist()[-1], flush=True))
        array = pagemove.open_array({str(path)!r})
        child = os.fork()
        if not child:
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    )
    assert said.split() == ["99990", "0"]


@pytest.mark.needs("move")
def test_what_a_program_changes_at_its_exit_is_saved(tmp_path: Path) -> None:
    """Its handler comes before the library's, whose place is that of the import."""
    path = tmp_path / "numbers"
    np.zeros(100_000).tofile(path)
    fresh_interpreter(
        f"""
        import atexit
        import pagemove
        atexit.register(lambda: array.__setitem__(5, 5.0))
        array = pagemove.open_array({str(path)!r}, dtype=float, mode="r+")
        array[4] = 4.0
        # A finaliser would save as well, where there is one yet.
        del pagemove.paging.closing.Closing.__del__
        """
    )
    assert np.fromfile(path)[4:6].tolist() == [4.0, 5.0]


def test_nothing_is_imported_that_is_not_needed(numpys: set[str]) -> None:
    added = modules_after("from pagemove import *") - numpys
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
