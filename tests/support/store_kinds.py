"""Every kind of store there is, and what each needs: servers among them, which are real."""

from __future__ import annotations

import contextlib
import functools
import itertools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pagemove.stores import (
    CallableStore,
    CompressedStore,
    FileStore,
    FsspecStore,
    LayeredStore,
    RedisStore,
    Store,
)
from pagemove.testing import Fault, FaultyStore
from support.chains import CHAINS, Chain
from support.servers import Moto, Redis, Web, free_ports, redis_cluster
from support.stores import BytesStore

CONTENTS = np.random.default_rng(3).bytes(10_007)
N = len(CONTENTS)

Make = Callable[..., Store]
_numbers = itertools.count()


def load_libraries() -> None:
    """Have libraries open what they keep open, which is then no leak of a test."""
    with contextlib.suppress(ImportError):
        from fsspec.asyn import get_loop

        get_loop()
    with contextlib.suppress(ImportError):
        from obstore.store import MemoryStore

        MemoryStore().put("x", b"")


class Servers:
    """Servers that run from when they are first asked for until the last test."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder = folder
        self._stack = stack

    def _empty(self, name: str) -> Path:
        folder = self._folder / name
        folder.mkdir()
        return folder

    @functools.cached_property
    def redis(self) -> str:
        return self._stack.enter_context(Redis(self._empty("redis"), free_ports(1)[0])).url

    @functools.cached_property
    def cluster(self) -> str:
        return self._stack.enter_context(redis_cluster(self._empty("cluster")))[0].url

    @functools.cached_property
    def s3(self) -> Moto:
        import s3fs

        server = self._stack.enter_context(Moto(self._empty("s3"), free_ports(1)[0]))
        s3fs.S3FileSystem(**server.options).mkdir("bucket")
        return server

    @functools.cached_property
    def web(self) -> Web:
        return self._stack.enter_context(Web(self._empty("web"), free_ports(1)[0]))


def _file(kind: type[FileStore], folder: Path, _servers: Servers, **options: object) -> Make:
    def make(contents: bytes = CONTENTS, *, writable: bool = False) -> Store:
        path = folder / "store"
        path.write_bytes(contents)
        return kind(path, writable=writable, **options)

    return make


def _mapped(path: str, offset: int, length: int) -> bytes:
    return Path(path).read_bytes()[offset : offset + length]


def _store_mapped(path: str, offset: int, data: memoryview) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def _function(folder: Path, _servers: Servers) -> Make:
    def make(contents: bytes = CONTENTS, *, writable: bool = False) -> Store:
        path = folder / "store"
        path.write_bytes(contents)
        write = functools.partial(_store_mapped, str(path)) if writable else None
        return CallableStore(functools.partial(_mapped, str(path)), len(contents), write)

    return make


def _compressed(folder: Path, _servers: Servers, *, in_file: bool = False) -> Make:
    def make(contents: bytes = CONTENTS, *, writable: bool = True) -> Store:
        path = folder / f"store-{next(_numbers)}" if in_file else None
        store = CompressedStore(len(contents), path=path, block_size=4096)
        store.write(0, contents)
        return store

    return make


def _layered(folder: Path, _servers: Servers, *, in_file: bool = False) -> Make:
    def make(contents: bytes = CONTENTS, *, writable: bool = True) -> Store:
        below = BytesStore(contents)
        if not in_file:
            top: Store = CompressedStore(len(contents))
            return LayeredStore(top, below, block_size=4096, cache=False)
        path = folder / f"top-{next(_numbers)}"
        path.write_bytes(b"?" * len(contents))
        return LayeredStore(FileStore(path, writable=True), below, block_size=4096)

    return make


def _redis(_folder: Path, servers: Servers, *, cluster: bool = False, nbytes: int = N) -> Make:
    url = servers.cluster if cluster else servers.redis

    def make(contents: bytes = CONTENTS, *, writable: bool = False) -> Store:
        key = f"array-{next(_numbers)}"
        with RedisStore(url, key, nbytes=len(contents), create=True, block_size=4096) as store:
            store.write(0, contents)
        return RedisStore(url, key, writable=writable)

    return make


def _fsspec(protocol: str, folder: Path, servers: Servers) -> Make:
    def make(contents: bytes = CONTENTS, *, writable: bool = False) -> Store:
        name = f"file-{next(_numbers)}"
        path = folder / name
        path.write_bytes(contents)
        if protocol == "file":
            return FsspecStore(f"file://{path}")
        if protocol == "zip":
            with zipfile.ZipFile(folder / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                archive.write(path, name)
            return FsspecStore(f"zip://{name}::{folder}/archive.zip")
        if protocol == "memory":
            import fsspec

            fsspec.filesystem("memory").pipe(f"/{name}", contents)
            return FsspecStore(f"memory://{name}")
        if protocol == "http":
            (servers.web.root / name).write_bytes(contents)
            return FsspecStore(f"{servers.web.url}/{name}")
        import s3fs

        options = servers.s3.options
        s3fs.S3FileSystem(**options).pipe(f"bucket/{name}", contents)
        return FsspecStore(f"s3://bucket/{name}", timeout=30, **options)

    return make


@dataclass(frozen=True)
class Kind:
    """A kind of store.

    Attributes
    ----------
    maker : callable
        Takes a folder and the servers, gives a function of contents and `writable`.
    needs : tuple of str
        As of `pytest.mark.needs`.
    modes : tuple of bool
        What `writable` may be.
    reopens : bool
        Whether a pickle finds what was written later.
    """

    maker: Callable[[Path, Servers], Make]
    needs: tuple[str, ...] = ()
    modes: tuple[bool, ...] = (False, True)
    reopens: bool = True


def chained(origin: str, chain: Chain, folder: Path, servers: Servers) -> Make:
    def make(contents: bytes = CONTENTS, *, writable: bool = False) -> Store:
        options: dict[str, object] = {}

        def placed(name: str, data: bytes) -> str:
            name = f"{next(_numbers)}-{name}"
            if origin == "file":
                (folder / name).write_bytes(data)
                return f"file://{folder}/{name}"
            if origin == "http":
                (servers.web.root / name).write_bytes(data)
                return f"{servers.web.url}/{name}"
            import s3fs

            s3fs.S3FileSystem(**servers.s3.options).pipe(f"bucket/{name}", data)
            options["s3"] = servers.s3.options
            return f"s3://bucket/{name}"

        url = chain(placed, folder, contents)
        if origin == "s3" and url.startswith("reference"):
            options = {"remote_protocol": "s3", "remote_options": servers.s3.options}
        return FsspecStore(url, timeout=30, **options)

    return make


def _kinds_of_fsspec() -> dict[str, Kind]:
    needs = {"http": ("fsspec", "web"), "s3": ("fsspec", "s3")}
    makers = {
        name: functools.partial(_fsspec, name) for name in ("file", "zip", "memory", "http", "s3")
    }
    makers |= {
        f"{name} over {origin}": functools.partial(chained, origin, CHAINS[name])
        for name, origin in (("tar", "file"), ("filecache", "http"), ("blockcache", "http"))
    }
    return {
        f"FsspecStore, {name}": Kind(
            maker, needs.get(name.rpartition(" ")[2], ("fsspec",)), (False,)
        )
        for name, maker in makers.items()
    }


_delayed = functools.partial(_file, FaultyStore, faults=[Fault("read", count=0, delay=1e-6)])

KINDS: dict[str, Kind] = {
    "FileStore": Kind(functools.partial(_file, FileStore)),
    "FaultyStore": Kind(functools.partial(_file, FaultyStore)),
    "FaultyStore, delayed": Kind(_delayed),
    "a store of twenty lines": Kind(lambda _folder, _servers: BytesStore, reopens=False),
    "CallableStore": Kind(_function),
    "CompressedStore": Kind(_compressed, ("zstandard",), (True,), reopens=False),
    "CompressedStore, file": Kind(
        functools.partial(_compressed, in_file=True), ("zstandard",), (True,)
    ),
    "LayeredStore": Kind(_layered, ("zstandard",), (True,), reopens=False),
    "LayeredStore, file": Kind(functools.partial(_layered, in_file=True), (), (True,)),
    "RedisStore": Kind(_redis, ("redis",)),
    "RedisStore, cluster": Kind(functools.partial(_redis, cluster=True), ("redis",)),
    **_kinds_of_fsspec(),
}


def params(*modes: bool, reopens: bool = False) -> list[object]:
    """Return the kinds that can be opened so, for a fixture."""
    return [
        pytest.param(kind, id=name, marks=pytest.mark.needs(*kind.needs))
        for name, kind in KINDS.items()
        if set(modes) <= set(kind.modes) and (kind.reopens or not reopens)
    ]
