"""The reference against the package: every public name is there, and says what it takes."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pagemove
from pagemove import lowlevel, stores
from pagemove.testing import Fault

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def test_every_name_of_lowlevel_is_described() -> None:
    page = (REFERENCE / "lowlevel.md").read_text()
    described = set(re.findall(r"^\| `(\w+)` \| [^|]{4,} \|$", page, re.MULTILINE))
    described |= set(re.findall(r"^\.\. autofunction:: (\w+)$", page, re.MULTILINE))
    assert set(lowlevel.__all__) <= described


@pytest.mark.parametrize("kind", [pagemove.PagedMemory, pagemove.Memory], ids=lambda k: k.__name__)
def test_every_public_method_is_in_the_reference(kind: type) -> None:
    pages = "".join(page.read_text() for page in REFERENCE.glob("*.md"))
    (listed,) = re.findall(rf"autoclass:: {kind.__name__}\n +:members:(.*)", pages)
    methods = {name for name in vars(kind) if not name.startswith("_")}
    assert methods <= set(re.findall(r"\w+", listed)) or not listed.strip()


@pytest.mark.parametrize(
    "kind",
    [pagemove.PagedMemory, pagemove.Memory, pagemove.PagedArray],
    ids=lambda kind: kind.__name__,
)
def test_every_method_has_an_example(kind: type) -> None:
    # What an ndarray has too is described by NumPy.
    own = [each for each in kind.__mro__ if each.__module__.startswith("pagemove.")]
    methods = {
        name: method
        for each in own
        for name, method in vars(each).items()
        if inspect.isfunction(method) and name[0] != "_" and not hasattr(np.ndarray, name)
    } | ({"tofile": kind.tofile} if kind is pagemove.PagedArray else {})
    assert len(methods) >= 2
    assert [name for name, method in methods.items() if ">>> " not in (method.__doc__ or "")] == []


MODULES_WITH_NAMES = ["", ".dask", ".lowlevel", ".stores", ".testing", ".xarray"]


@pytest.mark.parametrize("module", [f"pagemove{name}" for name in MODULES_WITH_NAMES])
def test_completion_shows_public_names_only(module: str) -> None:
    public = importlib.import_module(module)
    assert {name for name in dir(public) if name[:2] != "__"} == set(public.__all__)


@pytest.mark.needs("move")
def test_completion_of_a_region_shows_what_the_reference_lists() -> None:
    with pagemove.PagedMemory(nbytes=1 << 20) as region:
        assert shown(region) == listed("PagedMemory")


def test_completion_of_a_budget_shows_what_the_reference_lists() -> None:
    assert shown(pagemove.Budget("16MiB")) == listed("Budget")


def test_completion_of_memory_shows_its_own_methods() -> None:
    with pagemove.Memory(1) as memory:
        assert shown(memory) == {
            *("address", "asarray", "close", "closed", "discard", "nbytes", "page_states")
        }


def test_completion_of_an_array_shows_what_the_reference_lists(tmp_path: Path) -> None:
    np.save(tmp_path / "numbers.npy", np.arange(10_000))
    array = pagemove.open_array(tmp_path / "numbers.npy")
    own = shown(array) - set(dir(np.ndarray))
    assert own == listed("PagedArray") - set(dir(np.ndarray))


def test_completion_of_a_reference_shows_what_it_says(tmp_path: Path) -> None:
    np.save(tmp_path / "numbers.npy", np.arange(10_000))
    reference = pagemove.reference(pagemove.open_array(tmp_path / "numbers.npy"))
    assert shown(reference) - {"dtype", "shape"} == listed("Reference")


@pytest.mark.needs("move")
def test_completion_of_a_served_array_shows_what_the_reference_lists(tmp_path: Path) -> None:
    array = pagemove.create_array(tmp_path / "numbers.npy", (1000,), "i8")
    with pagemove.serve(array, str(tmp_path / "socket")) as served:
        assert shown(served) - {"url"} == listed("pagemove.paging.served.Served")


def test_completion_of_stores_has_nothing_that_is_for_regions_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"contents")
    with pagemove.stores.FileStore(tmp_path / "file") as store:
        assert "hand_over_lock" not in shown(store)
        assert shown(store) >= {"read_into", "write", "flush", "stats", "close"}
    fault = Fault("read", errno=5)
    assert shown(fault) == {"count", "delay", "errno", "first", "hits", "operation", "short"}


def shown(thing: object) -> set[str]:
    return {name for name in dir(thing) if name[0] != "_"}


def listed(kind: str) -> set[str]:
    """Return the members of a class that a page of the reference lists."""
    pages = "".join(page.read_text() for page in REFERENCE.glob("*.md"))
    (members,) = re.findall(rf"autoclass:: {re.escape(kind)}\n +:members: (.*)", pages)
    return set(members.split(", "))


def documented() -> dict[str, Callable[..., object]]:
    """Return every function that the reference names, and every method that its classes list."""
    found: dict[str, Callable[..., object]] = {}
    for page in REFERENCE.glob("*.md"):
        module = "pagemove"
        kind = None
        for line in page.read_text().splitlines():
            if match := re.match(r"\.\. (currentmodule|automodule):: (\S+)", line):
                module = match[2]
            elif match := re.match(r"\.\. auto(function|class):: (\S+)", line):
                path = match[2] if "." in match[2] else f"{module}.{match[2]}"
                thing = pkgutil.resolve_name(path)
                kind = (path, thing) if match[1] == "class" else None
                if match[1] == "function":
                    found[path] = thing
            elif kind and (match := re.match(r" +:members:(.*)", line)):
                names = re.findall(r"\w+", match[1]) or own_methods(kind[1])
                members = {name: inspect.getattr_static(kind[1], name, None) for name in names}
                found |= {
                    f"{kind[0]}.{name}": member
                    for name, member in members.items()
                    if inspect.isfunction(member)
                }
    return found


def own_methods(kind: type) -> list[str]:
    bases = [base for base in kind.__mro__ if base.__module__.startswith("pagemove.")]
    return [name for base in bases for name in vars(base) if name[0] != "_"]


#: The example of the class is that of its methods; what completion leaves out.
FOR_OTHERS = ("pagemove.testing.StoreContract.", "pagemove.stores.FileStore.hand_over_lock")
#: They return what is known, or do nothing the second time.
RAISE_NOTHING = {
    *("pagemove.features", "pagemove.probing.defects_of", "pagemove.testing.Fault.hits"),
    *("served.Served.stats", "served.Served.close"),
    *("Budget.stats", "KernelFeatures.as_dict", "PagedAllocations.stats", "PagingStats.percentile"),
    *(f"pagemove.stores.{kind}.{name}" for kind in stores.__all__ for name in ("close", "stats")),
}
DOCUMENTED = {
    name: function for name, function in documented().items() if not name.startswith(FOR_OTHERS)
}


def test_the_reference_has_functions_and_methods() -> None:
    assert {"pagemove.open_array", "pagemove.lowlevel.copy", "pagemove.serve"} <= set(DOCUMENTED)
    assert {"pagemove.PagedMemory.record", "pagemove.dask.from_array"} <= set(DOCUMENTED)
    assert len(DOCUMENTED) > 100


@pytest.mark.each
@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_the_reference_says_what_is_taken_returned_and_raised(name: str) -> None:
    function = DOCUMENTED[name]
    text = inspect.getdoc(function) or ""
    signature = inspect.signature(function)
    for parameter in set(signature.parameters) - {"self"}:
        assert re.search(rf"^(\*{{0,2}}\w+, )*\*{{0,2}}{parameter}\b", text, re.MULTILINE), (
            parameter
        )
    if signature.return_annotation not in ("None", "NoReturn"):
        assert re.search(r"^(Returns|Yields)\n-", text, re.MULTILINE) or "eturn" in text, "returns"
    if not name.endswith(tuple(RAISE_NOTHING)):
        assert re.search(r"^Raises\n-", text, re.MULTILINE), "raises"
    assert ">>> " in text, "example"
