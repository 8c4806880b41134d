"""What is the helper process's own: a process that a store forks there neither has it nor serves.

A copy of a descriptor in a forked process would keep a socket open when the helper has ended, and
the region could not notice that.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import weakref

# From before the program's main module is imported: gevent replaces some of them.
from _thread import RLock
from select import POLLIN, POLLOUT, poll
from typing import Any

from pagemove.descriptors import identity_of

#: Of one message, which are those of one region.
MOST_DESCRIPTORS = 69

_Socket = socket.socket

# The helper. 0 in its children; None where this process is no helper.
_process: int | None = None
# By number: what it was, and the socket that closes it, which is not kept. A store may close any
# number, and open something else under it.
_known: dict[int, tuple[tuple[int, int], weakref.ref[socket.socket] | None]] = {}
# Held while descriptors come and go, and during a fork. By one thread more than once: the handler
# of a signal may fork.
_changing = RLock()


def begin() -> None:
    """Have nothing of this process in those that a store forks from now on."""
    global _process
    _process = os.getpid()
    os.register_at_fork(
        before=_changing.acquire, after_in_parent=_changing.release, after_in_child=_in_child
    )


def _in_child() -> None:
    global _process
    if _process:
        # Also where another PID namespace has the number again.
        _process = 0
        for fd, (known, reference) in _known.items():
            owner = reference() if reference else None
            if owner is not None:
                owner.detach()
            if identity_of(fd) == known:
                os.close(fd)
        _known.clear()
    _changing.release()


def add(fd: int) -> None:
    """Count a descriptor among those of this process alone."""
    _known[fd] = identity_of(fd), None


def as_socket(fd: int) -> socket.socket:
    """Make a socket of such a descriptor."""
    made = _Socket(fileno=fd)
    known, _ = _known.get(fd) or (identity_of(fd), None)
    _known[fd] = known, weakref.ref(made)
    return made


def as_common_socket(fd: int) -> socket.socket:
    """Make a socket that forked processes have as well."""
    _known.pop(fd, None)
    return _Socket(fileno=fd)


def close(one: socket.socket | int) -> None:
    """Close one of them."""
    with _changing:
        _known.pop(one if isinstance(one, int) else one.fileno(), None)
        if isinstance(one, int):
            os.close(one)
        else:
            one.close()


def receive(sender: socket.socket, nbytes: int) -> tuple[bytes, list[int]]:
    """Receive a message with descriptors, none of which a program that a store starts gets."""
    room = socket.CMSG_SPACE(MOST_DESCRIPTORS * 4)
    # socket.recv_fds ignores its flags.
    flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
    ready = poll()
    ready.register(sender.fileno(), POLLIN)
    while True:
        ready.poll()
        # A thread of a store may fork between their arrival and their entry here.
        with _changing:
            try:
                message, ancillary, _, _ = sender.recvmsg(nbytes, room, flags)
            except BlockingIOError:
                continue
            found = array.array("i")
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    found.frombytes(data[: len(data) // found.itemsize * found.itemsize])
            for fd in found:
                add(fd)
            return message, list(found)


def is_forked() -> bool:
    """Whether this is a process that a store has forked, by whatever means."""
    return _process is not None and os.getpid() != _process


def end_if_forked(store: Any) -> None:
    """End such a process: only the helper answers, and only it may go on to serve.

    Of the store only its class is named. Anything else could wait for a lock that a thread of the
    helper had during the fork.
    """
    if not is_forked():
        return
    kind = type(store)
    what = f"store {kind.__module__}.{kind.__qualname__}" if store is not None else "store's module"
    message = (
        f"pagemove: a process that the {what} forked in its helper process has returned, or "
        "raised, out of what the helper had called, which only the helper may do: that process "
        f"({os.getpid()}) ends; call os._exit() in it when its work is done\n"
    )
    try:
        ready = poll()
        ready.register(2, POLLOUT)
        # A pipe that has room for anything has room for this.
        if ready.poll(0):
            with contextlib.suppress(OSError):
                os.write(2, message.encode(errors="backslashreplace"))
    finally:
        os._exit(1)
