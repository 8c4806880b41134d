"""Imports point downwards: every module of pagemove, and the imports inside its functions too."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "src"

#: From the ground up. A module imports from floors below its own and from its own package, not
#: from another room of its floor. "pagemove" is the public names, as users import them.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("_native", "_version"),
    ("arguments", "cgroups", "children", "descriptors", "errors", "stdout", "views"),
    ("kernel", "limits", "lowlevel"),
    ("introspect", "lazily", "problems", "registration"),
    ("memory", "probing"),
    ("calls", "stores"),
    ("containers",),
    ("paging",),
    ("dask", "xarray"),
    ("pagemove",),
    ("checkup", "measuring", "program", "testing"),
    ("compare", "trial"),
    ("cli",),
    ("__main__",),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    """Return every module written in Python, by its dotted name."""
    found = {}
    for path in sorted((ROOT / "pagemove").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


class WithoutTypes(ast.NodeTransformer):
    """Leaves out what only a type checker imports."""

    def visit_If(self, node: ast.If) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return ast.Pass()
        return node


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the modules of pagemove that a program imports, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            is_native = node.module == "pagemove._native"
            names = [name if name in MODULES or is_native else str(node.module) for name in whole]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] == "pagemove")


def wrong(module: str, code: str) -> list[str]:
    """List the imports of a module that do not point downwards."""
    room = room_of(module)
    return [
        f"{module} imports {name}"
        for name in imported(ast.parse(code))
        if room_of(name) != room and FLOOR_OF[room_of(name)] >= FLOOR_OF[room]
    ]


def test_every_room_has_a_floor():
    assert {room_of(module) for module in MODULES} == set(FLOOR_OF)


def test_imports_point_downwards():
    """In one test for all: of many sets of parameters the lean suite has a few."""
    assert [each for name, path in MODULES.items() for each in wrong(name, path.read_text())] == []


def test_no_modules_import_each_other():
    """Within a room too; a type alone may be named both ways."""
    graph = {
        module: set(imported(WithoutTypes().visit(ast.parse(path.read_text()))))
        for module, path in MODULES.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def test_the_native_modules_import_no_python():
    core = ROOT / "pagemove" / "_native"
    for path in (*core.glob("*.pyx"), *core.glob("*.pxi")):
        code = path.read_text()
        found = re.findall(r"^\s*(?:from|import|cimport) (pagemove[\w.]*)", code, re.M)
        assert all(name.startswith("pagemove._native.") for name in found), path.name
        assert not re.search(r"^\s*(?:from|import) pagemove[\w.]* import", code, re.M), path.name


@pytest.mark.parametrize(
    ("module", "code", "is_wrong"),
    [
        ("pagemove.stores.file", "from pagemove.paging import region", True),
        ("pagemove.stores.file", "def f():\n    from pagemove.paging.region import X", True),
        ("pagemove.stores.file", "import pagemove", True),
        ("pagemove.stores.file", "from pagemove import PAGE_SIZE", True),
        ("pagemove.limits", "from pagemove import lowlevel", True),
        ("pagemove.problems", "if TYPE_CHECKING:\n    from pagemove.probing import X", True),
        ("pagemove.stores.file", "from pagemove.stores import base", False),
        ("pagemove.paging.region", "from pagemove.stores.base import Store", False),
        ("pagemove.compare.plan", "from pagemove import PAGE_SIZE", False),
        ("pagemove.limits", "from pagemove._native import calls", False),
    ],
)
def test_what_the_rule_sees(module, code, is_wrong):
    assert bool(wrong(module, code)) == is_wrong
