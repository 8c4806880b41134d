"""The present environment as the initial file system of a kernel: a cpio archive.

It holds the interpreter with its standard library, the packages that the tests need, the shared
libraries of all these, and the tests, each at the path that it has here.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import IO

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


def _of_project() -> Iterator[Path]:
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


def _programs() -> Iterator[Path]:
    for name in PROGRAMS:
        found = shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")
        if found:
            yield Path(found)


def _libraries(paths: set[Path]) -> set[Path]:
    """Give the shared libraries that programs and libraries want, with the loader."""
    objects = [str(p) for p in paths if ".so" in p.name or os.access(p, os.X_OK)]
    objects = [name for name in objects if Path(name).read_bytes()[:4] == b"\x7fELF"]
    text = subprocess.run(["ldd", *objects], check=False, capture_output=True, text=True).stdout
    return {Path(name) for name in re.findall(r"(/\S+) \(0x", text)}


def _with_links(path: Path) -> Iterator[Path]:
    """Give a path and what its links, and those of the directories above it, lead to."""
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


def _write(out: IO[bytes], name: str, mode: int, mtime: int, data: bytes) -> None:
    """Write one member as newc has it (Documentation/driver-api/early-userspace in Linux)."""
    _write.number += 1  # type: ignore[attr-defined]
    encoded = name.lstrip("/").encode() + b"\0"
    fields = (_write.number, mode, 0, 0, 1, mtime, len(data), 0, 0, 0, 0, len(encoded), 0)  # type: ignore[attr-defined]
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    out.write(header + bytes(-len(header) % 4))
    out.write(data + bytes(-len(data) % 4))


_write.number = 0  # type: ignore[attr-defined]


def _end(out: IO[bytes]) -> None:
    _write(out, "TRAILER!!!", 0, 0, b"")


def extend(path: Path, size: int, extra: dict[str, bytes]) -> None:
    """Let `extra` files follow the first `size` bytes of a file system, and nothing else.

    The kernel takes several archives that follow each other for one.
    """
    with path.open("r+b") as out:
        out.truncate(size)
        out.seek(size)
        for name, data in extra.items():
            _write(out, name, stat.S_IFREG | 0o644, 0, data)
        if extra:
            _end(out)


def build(path: Path, extra: dict[str, bytes]) -> int:
    """Write the file system to `path`, with `extra` files in it; give its size in bytes."""
    built = path.parent / "native"
    native.build_all(built)
    found = {*_of_packages(), *_of_python(), *_of_project(), *_programs(), *built.iterdir()}
    found |= _libraries(found)
    members = {member for each in found for member in _with_links(each)}
    folders = {folder for member in members for folder in member.parents}
    folders |= {Path("/", name) for name in ("proc", "sys", "dev", "tmp", "run", "var/tmp", "var")}
    folders -= {folder for folder in folders if folder.is_symlink()}
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as out:
        for folder in sorted(folders):
            sticky = 0o1777 if folder.name == "tmp" else 0o755
            _write(out, str(folder), stat.S_IFDIR | sticky, 0, b"")
        for member in sorted(members):
            status = member.lstat()
            if member.is_symlink():
                _write(out, str(member), status.st_mode, 0, os.fsencode(member.readlink()))
            else:
                mode = stat.S_IFREG | 0o444 | (status.st_mode & 0o111)
                # Compiled files of Python are valid for a source of one very time.
                _write(out, str(member), mode, int(status.st_mtime), member.read_bytes())
        for name, data in extra.items():
            _write(out, name, stat.S_IFREG | 0o755, 0, data)
        _end(out)
    temporary.rename(path)
    return path.stat().st_size
