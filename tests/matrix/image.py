"""The present environment as the initial file system of a kernel.

It holds the interpreter with its standard library, the packages that the tests need, the shared
libraries of all these, and the tests, each at the path that it has here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from support import native

ROOT = Path(__file__).resolve().parents[2]
#: What is in the environment's closure of requirements goes along.
PACKAGES = ("pagemove", "pytest", "pytest-timeout", "hypothesis")
#: Programs that some tests start.
PROGRAMS = ("mkswap", "swapon", "swapoff", "sh", "true")
_NOT_NEEDED = re.compile(
    r"/(test|tests|idlelib|lib2to3|tkinter|turtledemo|ensurepip|config-3[^/]*|site-packages|"
    r"dist-packages)(/|$)"
)


def _closure(names: tuple[str, ...]) -> Iterator[metadata.Distribution]:
    seen: set[str] = set()
    left = list(names)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # required on another platform, or by another Python
        yield found
        wanted = [line for line in found.requires or [] if "extra ==" not in line]
        left += [re.split(r"[\s;<>=!~\[(]", line, maxsplit=1)[0] for line in wanted]


def _of_packages() -> Iterator[Path]:
    for found in _closure(PACKAGES):
        for file in found.files or []:
            path = Path(str(found.locate_file(file)))
            if path.is_file():
                yield path


def _of_python() -> Iterator[Path]:
    yield Path(sys.executable)
    yield Path(sys.prefix, "pyvenv.cfg")
    for name in ("stdlib", "platstdlib"):
        top = Path(sysconfig.get_path(name, vars={"base": sys.base_prefix}))
        for path in top.rglob("*"):
            if not _NOT_NEEDED.search(str(path.relative_to(top.parent))) and path.is_file():
                yield path
    for name in ("libpython3.so", sysconfig.get_config_var("LDLIBRARY") or ""):
        path = Path(sys.base_prefix, "lib", name)
        if path.is_file():
            yield path


def _programs() -> Iterator[Path]:
    for name in PROGRAMS:
        found = shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")
        if found:
            yield Path(found)


def _libraries(paths: set[Path]) -> set[Path]:
    """Return the shared libraries that programs and libraries want, with the loader."""
    objects = [str(p) for p in paths if ".so" in p.name or os.access(p, os.X_OK)]
    objects = [name for name in objects if Path(name).read_bytes()[:4] == b"\x7fELF"]
    text = subprocess.run(["ldd", *objects], check=False, capture_output=True, text=True).stdout
    return {Path(name) for name in re.findall(r"(/\S+) \(0x", text)}


def _with_links(path: Path) -> Iterator[Path]:
    """Return a path and what its links, and those of the directories above it, lead to."""
    while True:
        for above in (*reversed(path.parents), path):
            if above.is_symlink():
                yield above
                target = above.parent / above.readlink()
                rest = path.relative_to(above)
                path = Path(os.path.normpath(target / rest))
                break
        else:
            yield path
            return


def of_project() -> Iterator[Path]:
    """Return the files of the project that the tests need, at the place that they have here."""
    text = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "tests", "docs"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    ).stdout
    for name in (*text.split("\0"), "pyproject.toml"):
        if name and (ROOT / name).is_file():
            yield ROOT / name


def files(built: Path) -> dict[str, Path]:
    """Return what belongs into the file system by the path there; `built` is for libraries in C."""
    native.build_all(built)
    found = {*_of_packages(), *_of_python(), *of_project(), *_programs(), *built.iterdir()}
    found |= _libraries(found)
    return {str(member): member for each in found for member in _with_links(each)}
