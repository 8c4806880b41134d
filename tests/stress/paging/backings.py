"""Every kind of store with trouble around it: how it is made, and what is in it."""

from __future__ import annotations

import contextlib
import errno
import functools
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pagemove import StoreError
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
from support.helpers import Words
from support.servers import Process, Redis, Web, free_ports
from support.stores import BytesStore
from support.unruly import Disk, Plan, Unruly


@dataclass
class Backing:
    """A store for one region.

    Attributes
    ----------
    store : Store
        That is paged.
    unruly : Unruly, optional
        Who makes the trouble.
    durable : callable, optional
        Reads what a crash would leave, at any moment.
    kept : callable, optional
        Reads what is in it when the region is closed.
    server : Process, optional
        That can be frozen.
    """

    store: Store
    unruly: Unruly | None = None
    durable: Callable[[], Words] | None = None
    kept: Callable[[], Words] | None = None
    server: Process | None = None
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


def _read(store: Unruly, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    store.read_into(offset, buffer)
    # One that has nothing of what was asked for, and says so by what it gives.
    return bytes(buffer[: length - 8] if store.whims.calls % 97 == 96 else buffer)


def _write(store: Unruly, offset: int, data: memoryview) -> None:
    store.write(offset, data)


def _contents_of(make: Callable[[], Store]) -> Words:
    """Read a whole store; the process that had it may not have ended yet."""
    limit = time.monotonic() + 20
    while True:
        try:
            with make() as store:
                buffer = np.zeros(store.nbytes // 8, np.uint64)
                store.read_into(0, buffer)
                return buffer
        except StoreError as error:
            if time.monotonic() > limit or error.errno == errno.ENOENT:
                raise
            time.sleep(0.05)


@dataclass(frozen=True)
class Order:
    """What is asked for: contents, and what is to go wrong."""

    folder: Path
    contents: Words
    mode: str
    block: int
    plan: Plan
    seconds: float  # that the region waits

    def file(self, name: str) -> Path:
        """Make a file with the contents."""
        path = self.folder / name
        path.write_bytes(self.contents.tobytes())
        return path

    def unruly(self, inner: Store) -> Unruly:
        """Put the trouble around a store."""
        return Unruly(inner, self.folder, self.plan)

    @property
    def writable(self) -> bool:
        """Whether the region will write."""
        return self.mode == "r+"


def _words(path: Path) -> Words:
    return np.fromfile(path, np.uint64)


def _file(order: Order) -> Backing:
    chance, path = random.Random(order.plan.seed), order.file("file")
    troubles = order.plan.troubles
    operations = ("read", "write", "flush") if "lost" in troubles else ("read", "write")
    outcomes = ({"errno": errno.EIO}, {"errno": errno.EINTR}, {"delay": 0.01}, {"short": 8})
    faults = []
    for operation in operations * 10 if troubles else ():
        outcome = chance.choice(outcomes[:3] if operation == "flush" else outcomes)
        calls = {"first": chance.randrange(400), "count": chance.randint(1, 9)}
        faults.append(Fault(operation, **calls, **outcome))
    store = FaultyStore(path, writable=order.writable, faults=faults)
    read = functools.partial(_words, path)
    return Backing(store, durable=read, kept=read)


def _disk(order: Order) -> Backing:
    disk = Disk(order.file("disk"))
    unruly = order.unruly(disk)
    return Backing(unruly, unruly, disk.durable, disk.cached)


def _callable(order: Order) -> Backing:
    path = order.file("file")
    unruly = order.unruly(FileStore(path, writable=True))
    write = functools.partial(_write, unruly) if order.writable else None
    store = CallableStore(functools.partial(_read, unruly), order.contents.nbytes, write)
    read = functools.partial(_words, path)
    return Backing(store, unruly, read, read)


def _compressed(order: Order, *, in_file: bool) -> Backing:
    path = order.folder / "compressed" if in_file else None
    inner = CompressedStore(order.contents.nbytes, path=path, block_size=order.block)
    inner.write(0, order.contents)
    unruly = order.unruly(inner)
    if path is None:
        return Backing(unruly, unruly)
    kept = functools.partial(_contents_of, lambda: CompressedStore(path=path))
    return Backing(unruly, unruly, kept=kept)


def _layered(order: Order, *, compressed: bool) -> Backing:
    """The trouble is at the bottom, and around all of it."""
    nbytes, path = order.contents.nbytes, order.folder / "top"
    bottom = BytesStore(order.contents.tobytes())

    def make() -> Store:
        if compressed:
            top: Store = CompressedStore(nbytes, path=path, block_size=order.block)
        else:
            path.touch()
            with path.open("r+b") as file:
                file.truncate(nbytes)
            top = FileStore(path, writable=True)
        return LayeredStore(top, bottom, block_size=order.block)

    unruly = order.unruly(make())
    return Backing(unruly, unruly, kept=functools.partial(_contents_of, make))


def _fsspec(order: Order, protocol: str) -> Backing:
    path = order.file("file")
    url, server, stack = f"file://{path}", None, contextlib.ExitStack()
    if protocol == "memory":
        import fsspec

        url = f"memory://{order.folder.name}"
        fsspec.filesystem("memory").pipe(f"/{order.folder.name}", path.read_bytes())
    elif protocol == "http":
        server = stack.enter_context(Web(order.folder, free_ports(1)[0]))
        shutil.copy(path, server.root / "file")
        url = f"{server.url}/file"
    store: Store = FsspecStore(url, timeout=order.seconds / 2)
    unruly = order.unruly(store)
    return Backing(unruly, unruly, functools.partial(_words, path), server=server, stack=stack)


def _redis(order: Order) -> Backing:
    stack = contextlib.ExitStack()
    server = stack.enter_context(Redis(order.folder / "redis", free_ports(1)[0]))
    nbytes, block = order.contents.nbytes, order.block
    with RedisStore(server.url, "array", nbytes=nbytes, create=True, block_size=block) as made:
        made.write(0, order.contents)
    how = {"writable": order.writable, "timeout": order.seconds / 2}
    unruly = order.unruly(RedisStore(server.url, "array", block_size=block, **how))
    kept = functools.partial(_contents_of, lambda: RedisStore(server.url, "array"))
    return Backing(unruly, unruly, kept=kept, server=server, stack=stack)


@dataclass(frozen=True)
class Kind:
    """A kind of store: how it is made, what it needs (`support.needs`), in which modes."""

    make: Callable[[Order], Backing]
    needs: tuple[str, ...] = ()
    modes: tuple[str, ...] = ("r", "r+", "c")


def _of_fsspec(protocol: str) -> Kind:
    return Kind(functools.partial(_fsspec, protocol=protocol), ("fsspec",), ("r", "c"))


KINDS: dict[str, Kind] = {
    "file": Kind(_file),
    "disk": Kind(_disk),
    "callable": Kind(_callable),
    "compressed": Kind(functools.partial(_compressed, in_file=False), ("zstandard",)),
    "compressed file": Kind(functools.partial(_compressed, in_file=True), ("zstandard",)),
    "layered": Kind(functools.partial(_layered, compressed=False)),
    "layered compressed": Kind(functools.partial(_layered, compressed=True), ("zstandard",)),
    "fsspec file": _of_fsspec("file"),
    "fsspec memory": _of_fsspec("memory"),
    "fsspec http": _of_fsspec("http"),
    "redis": Kind(_redis, ("redis",)),
}
