"""The pager's C code in four floors: each file knows only what is on its own and below."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGER = Path(__file__).parents[2] / "src" / "pagemove" / "_native" / "pager"

#: From the ground up: the folders of pager/, and what is in none of them.
FLOORS = ("state", "mechanisms", "engine", "")
#: State is made of memory alone: it asks nobody, waits for nobody, and knows no time.
HEADERS_OF_STATE = {
    *("errno.h", "stdarg.h", "stddef.h", "stdint.h", "stdio.h", "stdlib.h", "string.h"),
}
#: But for the address space of its tables.
_ROOM = {"state/room.c": {"sys/mman.h"}}

pytestmark = pytest.mark.skipif(not PAGER.is_dir(), reason="the sources of the pager are not here")


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.DOTALL)


def texts() -> dict[str, str]:
    """Return every file of the pager, by its path from pager/ on."""
    files = sorted(PAGER.rglob("*.[ch]"))
    return {path.relative_to(PAGER).as_posix(): path.read_text() for path in files}


def sources() -> dict[str, str]:
    return {name: without_comments(text) for name, text in texts().items()}


def floor_of(name: str) -> int:
    return FLOORS.index(name.rpartition("/")[0])


def defined(code: str) -> set[str]:
    """Return the functions and variables of a file that others can use."""
    functions = re.findall(r"^(?!typedef)[a-z][\w \t*]*?\b(pg_\w+)\([^;{}]*\)\s*\{", code, re.M)
    variables = re.findall(
        r"^(?!extern|typedef|static)[a-z_][\w \t*(]*?\b(pg_\w+)(?:\[\w+\]|\)\([^;]*\))?"
        r"(?:;| = )",
        code,
        re.M,
    )
    return {*functions, *variables}


def used(code: str) -> set[str]:
    """Return what may be functions or variables: structures have their names for themselves."""
    code = re.sub(r'"(?:\\.|[^"\\\n])*"|\b(?:struct|enum) pg_\w+', " ", code)
    return set(re.findall(r"\bpg_\w+", code))


def includes(files: dict[str, str]) -> list[str]:
    """List the headers of higher floors that are included."""
    return [
        f"{name} includes {header}"
        for name, code in files.items()
        for header in re.findall(r'#include "pager/([\w./]+)"', code)
        if floor_of(header) > floor_of(name)
    ]


def calls(files: dict[str, str]) -> list[str]:
    """List what is defined on a higher floor and used here, or declared for that."""
    homes = {
        each: name
        for name, code in files.items()
        for each in defined(code)
        if name.endswith(".c") or "inline" in code
    }
    return [
        f"{name} uses {each} of {homes[each]}"
        for name, code in files.items()
        for each in sorted(used(code) & homes.keys())
        if floor_of(homes[each]) > floor_of(name)
    ]


def structures(files: dict[str, str]) -> list[str]:
    """List the structures of the engine and above that lower floors name, if only to point to."""
    homes = {
        each: name
        for name, code in files.items()
        for each in re.findall(r"\bstruct (pg_\w+)\s*\{", code)
    }
    return [
        f"{name} names {each} of {homes[each]}"
        for name, code in files.items()
        for each in sorted(set(re.findall(r"\bstruct (pg_\w+)", code)) & homes.keys())
        if floor_of(name) < FLOORS.index("engine") and floor_of(homes[each]) > floor_of(name)
    ]


def outside(files: dict[str, str]) -> list[str]:
    """List what state includes that is not memory."""
    return [
        f"{name} includes {header}"
        for name, code in files.items()
        if floor_of(name) == FLOORS.index("state")
        for header in re.findall(r'#include [<"]([\w./]+)[>"]', code)
        if not header.startswith("pager/")
        and header not in HEADERS_OF_STATE | _ROOM.get(name, set())
    ]


RULES = (includes, calls, structures, outside)


@pytest.mark.parametrize("rule", RULES)
def test_the_pager_in_floors(rule):
    assert rule(sources()) == []


def test_every_file_is_on_a_floor():
    found = sources()
    assert {floor_of(name) for name in found} == {*range(len(FLOORS))}
    assert all(
        re.search(r'#include "(?!pager/)[^"]*pager', code) is None for code in found.values()
    )
    # Every function and variable that a header declares is one that the rules can see.
    everywhere = set().union(*map(defined, found.values()))
    for name, code in found.items():
        if not name.endswith(".h"):
            continue
        declared = re.findall(r"^(?!typedef)[a-z][\w \t*]*?\b(pg_\w+)\([^{}]*?\);", code, re.M)
        assert set(declared) <= everywhere, name


def test_no_file_grows_beyond_what_one_reads_at_once():
    """One that has more than one reason to change is split by them."""
    long = {name: text.count("\n") for name, text in texts().items()}
    assert {name: lines for name, lines in long.items() if lines > 420} == {}


#: A function on each floor, and one that is inline.
HOUSE = {
    "state/a.c": "int pg_a(void)\n{\n    return 0;\n}\n",
    "mechanisms/b.c": "void *pg_b(struct pg_s *s,\n           int x)\n{\n    return s;\n}\n",
    "mechanisms/b.h": "static inline int pg_b_inline(void)\n{\n    return 1;\n}\n",
    "engine/c.h": "struct pg_region {\n    int x;\n};\nextern int pg_count;\n",
    "engine/c.c": "int pg_count;\nvoid pg_c(void)\n{\n}\n",
    "d.c": "__thread struct pg_x *pg_inside;\nvoid pg_d(void)\n{\n    pg_c();\n    pg_a();\n}\n",
}


@pytest.mark.parametrize(
    ("name", "code", "rule", "is_wrong"),
    [
        ("state/x.c", '#include "pager/engine/c.h"', includes, True),
        ("engine/x.h", '#include "pager/life.h"', includes, True),
        ("engine/x.c", '#include "pager/mechanisms/b.h"', includes, False),
        ("engine/x.c", '#include "pager/engine/c.h"', includes, False),
        ("state/x.c", "int f(void)\n{\n    return pg_b(0, 1) != 0;\n}", calls, True),
        ("state/x.c", "int f(void)\n{\n    return pg_b_inline();\n}", calls, True),
        ("state/x.c", "void *pg_b(struct pg_s *s, int x);", calls, True),
        ("engine/x.c", "static void (*f)(void) = pg_d;", calls, True),
        ("engine/x.c", "int f(void)\n{\n    return pg_inside != 0;\n}", calls, True),
        ("mechanisms/x.c", "int f(void)\n{\n    return pg_count;\n}", calls, True),
        ("mechanisms/x.c", 'static const char *name = "pg_c";', calls, False),
        ("engine/x.c", "int f(void)\n{\n    return pg_a();\n}", calls, False),
        ("mechanisms/x.h", "struct pg_region;", structures, True),
        ("engine/x.h", "struct pg_region;", structures, False),
        ("state/x.c", "#include <pthread.h>", outside, True),
        ("state/x.c", "#include <sys/mman.h>", outside, True),
        ("state/x.c", '#include "uapi.h"', outside, True),
        ("state/x.c", "#include <string.h>", outside, False),
        ("mechanisms/x.c", "#include <pthread.h>", outside, False),
    ],
)
def test_what_the_rules_see(name, code, rule, is_wrong):
    assert rule(HOUSE) == []
    assert bool(rule({**HOUSE, name: code})) == is_wrong
