"""The modules of the native core: all in one shared object, and imported as any other."""

from __future__ import annotations

import importlib
import importlib.util
import pickle

import pytest

import pagemove._native
from support import fresh_interpreter

MODULES = ("arena", "calls", "mapping", "pager", "remap")


@pytest.mark.parametrize("name", MODULES)
def test_each_is_imported_first_by_the_statement_for_it(name: str) -> None:
    said = fresh_interpreter(
        f"""
        import sys
        from pagemove._native import {name}
        from pagemove._native.{name} import __file__ as path
        print({name}.__name__, path.rpartition("/")[2].partition(".")[0])
        print(sys.modules["pagemove._native.{name}"] is {name})
        """
    )
    assert said.split() == [f"pagemove._native.{name}", "core", "True"]


def test_none_is_loaded_that_nobody_imports() -> None:
    said = fresh_interpreter(
        """
        import sys
        from importlib.machinery import PathFinder
        # The package without what its __init__ imports.
        sys.modules["pagemove"] = package = type(sys)("pagemove")
        package.__path__ = PathFinder.find_spec("pagemove").submodule_search_locations
        import pagemove._native
        print([name for name in sys.modules if name.startswith("pagemove._native.")])
        import pagemove._native.calls
        print([name for name in sys.modules if name.startswith("pagemove._native.")])
        """
    )
    assert said.splitlines() == ["[]", "['pagemove._native.calls']"]


def test_threads_that_import_one_at_once_get_the_same() -> None:
    said = fresh_interpreter(
        """
        import threading
        begin, found = threading.Barrier(8), []

        def work():
            begin.wait()
            from pagemove._native import pager
            found.append(pager)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for each in threads: each.start()
        for each in threads: each.join()
        print(len(found), len({id(each) for each in found}))
        """
    )
    assert said.split() == ["8", "1"]


def test_another_name_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pagemove\._native\.absent"):
        importlib.import_module("pagemove._native.absent")


@pytest.mark.parametrize("name", MODULES)
def test_reloaded_it_is_the_same(name: str) -> None:
    module = importlib.import_module(f"pagemove._native.{name}")
    before = dict(vars(module))
    assert importlib.reload(module) is module
    assert {n: v for n, v in vars(module).items() if n != "__spec__"} == {
        n: v for n, v in before.items() if n != "__spec__"
    }
    assert importlib.util.find_spec(f"pagemove._native.{name}") is not None


def test_nor_does_reloading_the_package_lose_them() -> None:
    from pagemove._native import pager

    importlib.reload(pagemove._native)
    assert importlib.import_module("pagemove._native.pager") is pager
    assert len(pagemove._native.__path__) == len({*pagemove._native.__path__})


def test_classes_are_pickled_by_name() -> None:
    from pagemove._native import mapping, pager

    for kind in (mapping.Mapping, mapping.Hold, pager.Pager, pager.SharedLimit):
        assert pickle.loads(pickle.dumps(kind)) is kind


def test_what_one_enters_another_sees(tmp_path) -> None:
    """The table of paged memory is the pager's and that of the moves at once."""
    path = tmp_path / "file"
    path.write_bytes(bytes(65536))
    said = fresh_interpreter(
        f"""
        import pagemove
        from pagemove._native import remap
        with pagemove.PagedMemory(pagemove.stores.FileStore({str(path)!r})) as memory:
            at = memory.address
            print(remap.paged_at(at + 100, 1) == at)
        print(remap.paged_at(at, 65536))
        """
    )
    assert said.split() == ["True", "0"]
