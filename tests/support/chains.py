"""Chains of fsspec's wrappers over what a file, a web server or an object storage has."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

Placed = Callable[[str, bytes], str]
Chain = Callable[[Placed, Path, bytes], str]

_numbers = itertools.count()


def archived(kind: str, contents: bytes) -> bytes:
    """Make an archive whose member ``file`` has these contents, between others."""
    archive = io.BytesIO()
    members = {"before": b"?" * 700, "file": contents, "folder/after": b"!" * 5000}
    if kind.startswith("tar"):
        mode = {"tar": "w", "tar.gz": "w:gz"}[kind]
        with tarfile.open(fileobj=archive, mode=mode) as tar:
            for name, data in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    else:
        how = {"zip": zipfile.ZIP_STORED, "zip, deflated": zipfile.ZIP_DEFLATED}[kind]
        with zipfile.ZipFile(archive, "w", how) as packed:
            for name, data in members.items():
                packed.writestr(name, data)
    return archive.getvalue()


def _plain(prefix: str) -> Chain:
    def made(placed: Placed, _folder: Path, contents: bytes) -> str:
        return prefix + placed("file", contents)

    return made


def _member(kind: str, between: str = "") -> Chain:
    def made(placed: Placed, _folder: Path, contents: bytes) -> str:
        suffix = kind.partition(",")[0]
        url = placed(f"archive.{suffix}", archived(kind, contents))
        return f"{suffix.partition('.')[0]}://file::{between}{url}"

    return made


def _folder(placed: Placed, _folder: Path, contents: bytes) -> str:
    base, _, name = placed("file", contents).rpartition("/")
    return f"dir://{name}::{base}"


def _referenced(placed: Placed, folder: Path, contents: bytes) -> str:
    url = placed("file", b"?" * 333 + contents + b"!" * 99)
    path = folder / f"references-{next(_numbers)}.json"
    parts = {"a/file": [url, 333, len(contents)], "b": "base64:aGk="}
    path.write_text(json.dumps({"version": 1, "refs": parts}))
    return f"reference://a/file::{path}"


def _nested(placed: Placed, _folder: Path, contents: bytes) -> str:
    inner = archived("tar", contents)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
        packed.writestr("inner.tar", inner)
    return f"tar://file::zip://inner.tar::{placed('outer.zip', archive.getvalue())}"


#: By name: gives a URL, of contents that a function puts somewhere and tells the URL of.
CHAINS: dict[str, Chain] = {
    "filecache": _plain("filecache::"),
    "simplecache": _plain("simplecache::"),
    "blockcache": _plain("blockcache::"),
    "dir": _folder,
    "reference": _referenced,
    "zip": _member("zip"),
    "zip, deflated": _member("zip, deflated"),
    "zip in a filecache": _member("zip", "filecache::"),
    "zip, deflated, in a blockcache": _member("zip, deflated", "blockcache::"),
    "tar": _member("tar"),
    "tar.gz": _member("tar.gz"),
    "tar in a zip": _nested,
    "simplecache of a tar": lambda *what: "simplecache::" + _member("tar")(*what),
}
