"""Which helper processes of this one are there to run further stores.

Two regions share one if it would be started alike for both: as the same user, in the same folder,
with the same environment and limits, importing from the same places.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import threading
from collections.abc import Iterable
from typing import Any

from pagemove import children
from pagemove._native.pager import Host
from pagemove.descriptors import identity_of, keep
from pagemove.stores.base import Store

# Of a process: a store would use up what is meant for one.
_EACH = (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_CPU)
_LIMITS = [value for name, value in sorted(vars(resource).items()) if name.startswith("RLIMIT_")]
# Of /proc/self/status: what a process that is started inherits.
_INHERITED = ("Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp", "Umask", "Cpus_allowed:")
# s. Others wait so long for the first region to have its process, before they start their own.
_PATIENCE = 5.0


class Door:
    """By which stores come to a process.

    Attributes
    ----------
    host : Host
        What the pager knows of that process.
    versions : dict
        Of modules, those that it has, as far as stores need them.
    fd : int
        This process's end.
    """

    def __init__(self) -> None:
        self.host = Host()
        self.versions: dict[str, object] = {}
        import socket  # which regions over files do not need

        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.fd, there_fd = keep(here.detach()), keep(there.detach())
        self.identity, self._there = identity_of(self.fd), (there_fd, identity_of(there_fd))
        self._settled = threading.Event()

    def end(self, is_new: bool) -> tuple[int, tuple[int, int]]:
        """Return the end for who knocks, or that of a new process; and what it is."""
        return self._there if is_new else (self.fd, self.identity)

    def settle(self) -> None:
        """Let others come: the process is there, or it will never be."""
        fd, identity = self._there
        if identity_of(fd) == identity:
            os.close(fd)
        self._settled.set()

    def wait(self) -> bool:
        """Wait for the first region; whether that has been opened, or has failed."""
        return self._settled.wait(_PATIENCE)

    def suits(self, versions: dict[str, object]) -> bool:
        """Whether what that process has imported is what there is to import."""
        return all(self.versions.get(name, now) == now for name, now in versions.items())

    def is_needless(self) -> bool:
        """Whether the helper has gone, or cannot be reached."""
        if not self._settled.is_set():
            return False
        if not self.host.members or identity_of(self.fd) != self.identity:
            return True
        import select

        poll = select.poll()
        poll.register(self.fd, 0)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close this process's end."""
        if identity_of(self.fd) == self.identity:
            os.close(self.fd)


_lock = threading.Lock()
_doors: dict[object, Door] = {}


def door_for(key: object, modules: Iterable[str]) -> tuple[Door, bool] | None:
    """Return the door to a process for stores of a key, and whether it has yet to be started.

    `modules` are those that the store is from: one that was changed since that process has imported
    it is another. None: there is no such process in time, or no descriptors for one.
    """
    prune()
    versions = {name: _version(name) for name in modules}
    with _lock:
        door = _doors.get(key)
        if door is not None and not door.suits(versions):
            _doors.pop(key).close()
            door = None
        if door is None:
            with contextlib.suppress(OSError):
                door = _doors[key] = Door()
                door.versions = versions
                return door, True
            return None
        door.versions |= versions
    return (door, False) if door.wait() else None


def forget(host: Host) -> None:
    """Stop using it for new regions: it takes none, or not in time."""
    with _lock:
        for key, door in list(_doors.items()):
            if door.host is host:
                del _doors[key]
                door.close()


def prune() -> None:
    """Forget those who have ended."""
    with _lock:
        for key, door in list(_doors.items()):
            if door.is_needless():
                del _doors[key]
                door.close()


def _forked() -> None:
    # They are the parent's.
    global _lock
    _lock = threading.Lock()
    for door in _doors.values():
        door.close()
    _doors.clear()


children.first_do(_forked)


def kind_of(store: Store) -> str | None:
    """Return with what kind of stores one may share a process; None: with none.

    One that can be started again loses nothing if another ends the process. Of those that lose all
    they have, only the library's own are together: none of them runs code of others.
    """
    if store.restartable:
        return "restartable"
    kind = type(store)
    is_ours = (kind.__module__, kind.__name__) == ("pagemove.stores.compressed", "CompressedStore")
    return "compressed" if is_ours else None


def key_of(kind: str | None, how: Iterable[Any]) -> object | None:
    """Return what has to be the same for two stores to share a process; None: nothing will do.

    Among it is `how` that is started.
    """
    if kind is None or any(resource.getrlimit(each)[0] != resource.RLIM_INFINITY for each in _EACH):
        return None
    return repr(
        (
            kind,
            os.getpid(),
            *how,
            sorted(os.environ.items()),
            [resource.getrlimit(each) for each in _LIMITS],
            os.getpriority(os.PRIO_PROCESS, 0),
            [identity_of(fd) for fd in range(3)],
            *_of_process(),
        )
    )


def _version(module: str) -> object:
    file = getattr(sys.modules.get(module), "__file__", None)
    try:
        found = os.stat(file) if isinstance(file, str) else None
    except OSError:
        found = None
    return found and (found.st_ino, found.st_mtime_ns, found.st_size)


def _of_process() -> Iterable[object]:
    with contextlib.suppress(OSError), open("/proc/thread-self/status") as file:
        yield [line for line in file if line.startswith(_INHERITED)]
    with contextlib.suppress(OSError), open("/proc/self/cgroup") as file:
        yield file.read()
    with contextlib.suppress(OSError):
        root, here = os.stat("/"), os.stat(".")
        yield root.st_dev, root.st_ino, here.st_dev, here.st_ino
    with contextlib.suppress(OSError):
        yield [
            (name, os.readlink(f"/proc/self/ns/{name}"))
            for name in sorted(os.listdir("/proc/self/ns"))
        ]
