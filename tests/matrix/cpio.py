"""Archives that a kernel unpacks as its initial file system: cpio, of the kind "newc"."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO

#: Directories that are there before anything is mounted on them.
_FOLDERS = ("proc", "sys", "dev", "tmp", "run", "var/tmp", "var")


def write_member(
    out: IO[bytes], number: int, name: str, mode: int, mtime: int, data: bytes
) -> None:
    """Write one member as newc has it (Documentation/driver-api/early-userspace in Linux)."""
    encoded = name.lstrip("/").encode() + b"\0"
    fields = (number, mode, 0, 0, 1, mtime, len(data), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    out.write(header + bytes(-len(header) % 4))
    out.write(data + bytes(-len(data) % 4))


def _of_file(path: Path) -> tuple[int, int, bytes]:
    status = path.lstat()
    if path.is_symlink():
        return status.st_mode, 0, os.fsencode(path.readlink())
    # Compiled files of Python are valid for a source of one very time.
    mode = stat.S_IFREG | 0o444 | (status.st_mode & 0o111)
    return mode, int(status.st_mtime), path.read_bytes()


def write(path: Path, files: Mapping[str, Path], extra: Mapping[str, bytes]) -> int:
    """Write a file system, and give its size in bytes.

    `files` has what to put where (links as links), `extra` what is no file, all of it executable.
    """
    folders = {str(folder) for name in files for folder in PurePosixPath(name).parents}
    folders |= {f"/{name}" for name in _FOLDERS}
    folders -= {name for name, file in files.items() if file.is_symlink()} | {"/", "."}
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as out:
        number = 0
        for name in sorted(folders):
            mode = stat.S_IFDIR | (0o1777 if name.endswith("tmp") else 0o755)
            write_member(out, number := number + 1, name, mode, 0, b"")
        for name in sorted(files):
            write_member(out, number := number + 1, name, *_of_file(files[name]))
        for name, data in extra.items():
            write_member(out, number := number + 1, name, stat.S_IFREG | 0o755, 0, data)
        write_member(out, 0, "TRAILER!!!", 0, 0, b"")
    temporary.rename(path)
    return path.stat().st_size


def extend(path: Path, size: int, extra: Mapping[str, bytes]) -> None:
    """Let `extra` files follow the first `size` bytes of a file system, and nothing else.

    The kernel takes several archives that follow each other for one.
    """
    with path.open("r+b") as out:
        out.truncate(size)
        out.seek(size)
        for number, (name, data) in enumerate(extra.items(), 1):
            write_member(out, number, name, stat.S_IFREG | 0o644, 0, data)
        if extra:
            write_member(out, 0, "TRAILER!!!", 0, 0, b"")
