"""The pager's C code: each floor knows only those below it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "src" / "pagemove" / "_native"
PAGER = NATIVE / "pager"

#: From the ground up: the folders of pager/, and what is in none of them.
FLOORS = ("state", "mechanisms", "engine", "")
#: What state is tested without: no threads, no kernel.
_NOT_IN_STATE = r"pthread|sys/(?!types|cdefs)|unistd|poll|fcntl|time|signal|sched|uapi"

pytestmark = pytest.mark.skipif(not PAGER.is_dir(), reason="the sources of the pager are not here")


def code_of(path: Path) -> str:
    """Return a file without its comments."""
    return without_comments(path.read_text())


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.DOTALL)


def floor_of(name: str) -> int:
    """Return the number of the floor of a file, by its path from pager/ on."""
    return FLOORS.index(name.rpartition("/")[0])


def sources() -> dict[str, str]:
    """Return the code of every file of the pager, by its path from pager/ on."""
    return {
        path.relative_to(PAGER).as_posix(): code_of(path)
        for path in sorted(PAGER.rglob("*.[ch]"))
    }


def called(code: str) -> set[str]:
    """Return the names of a file that may be those of functions."""
    code = re.sub(r'"(?:\\.|[^"\\\n])*"|\bstruct pg_\w+', " ", code)
    return set(re.findall(r"\bpg_\w+", code))


def functions(code: str) -> set[str]:
    """Return the functions that a file defines and others could call."""
    found = re.findall(r"^(?!typedef\b)[a-z][\w \t*()]*?\b(pg_\w+)\([^;{}]*\)\s*\{", code, re.M)
    return set(found)


def structures(code: str) -> set[str]:
    return set(re.findall(r"\bstruct (pg_\w+)\s*\{", code))


def upward_includes(files: dict[str, str]) -> list[str]:
    """List the includes of headers of a higher floor."""
    return [
        f"{name} includes {header}"
        for name, code in files.items()
        for header in re.findall(r'#include "pager/([\w./]+)"', code)
        if floor_of(header) > floor_of(name)
    ]


def upward_calls(files: dict[str, str]) -> list[str]:
    """List the functions of a higher floor that are called, or only declared."""
    homes = {each: name for name, code in files.items() for each in functions(code)}
    return [
        f"{name} calls {each} of {homes[each]}"
        for name, code in files.items()
        for each in sorted(called(code) & set(homes))
        if floor_of(homes[each]) > floor_of(name)
    ]


def upward_structures(files: dict[str, str]) -> list[str]:
    """List the structures of a higher floor that state or mechanisms name, if only as a pointer."""
    homes = {each: name for name, code in files.items() for each in structures(code)}
    return [
        f"{name} names {named} of {homes[named]}"
        for name, code in files.items()
        if floor_of(name) < FLOORS.index("engine")
        for named in sorted(set(re.findall(r"\bstruct (pg_\w+)", code)) & set(homes))
        if floor_of(homes[named]) > floor_of(name)
    ]


if __name__ == "__main__":
    f = sources()
    for x in upward_includes(f) + upward_calls(f) + upward_structures(f):
        print(x)
