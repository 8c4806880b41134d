"""The reference against the package: every public name is there, and says what it takes."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import pagemove
from pagemove import lowlevel

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
FUNCTIONS = [name for name in pagemove.__all__ if inspect.isfunction(getattr(pagemove, name))]


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


def test_completion_shows_public_names_only() -> None:
    assert {name for name in dir(pagemove) if name[:2] != "__"} == set(pagemove.__all__)


@pytest.mark.needs("move")
def test_completion_of_a_region_shows_what_the_reference_lists() -> None:
    page = (REFERENCE / "paging.md").read_text()
    (listed,) = re.findall(r"autoclass:: PagedMemory\n +:members: (.*)", page)
    with pagemove.PagedMemory(nbytes=1 << 20) as region:
        shown = {name for name in dir(region) if name[0] != "_"}
    assert shown == set(listed.split(", "))


@pytest.mark.each
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_of_a_function_is_documented(name: str) -> None:
    function = getattr(pagemove, name)
    text = inspect.getdoc(function) or ""
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"^(\w+, )*\*{{0,2}}{parameter}\b", text, re.MULTILINE), parameter
