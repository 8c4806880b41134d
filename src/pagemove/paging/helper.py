"""What the process does that runs a store written in Python; see `pagemove.paging.handover`."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import mmap
import os
import pickle
import signal
import socket
import struct
import sys
import traceback
from _thread import start_new_thread
from collections.abc import Callable
from typing import Any

import numpy as np

from pagemove import limits, lowlevel
from pagemove.stores.base import Store, read_whole, write_whole
from pagemove.stores.logs import hidden

#: Bytes of the longest log record.
LOG_RECORD = 1 << 16

#: Whether this is such a process, and imports its parent's main module.
importing_main = False
#: Whether it is still at unpickling its store, and imports what that needs.
preparing = False
#: How many such processes there are between the program and this one, with this one.
depth = 0

# As in channel.c: operation, whether to write-protect, offset, length, address to copy to, if any;
# and error, length of the text that follows.
_REQUEST = struct.Struct("=IIQQQ")
_ANSWER = struct.Struct("=iI")
_NUMBERS = struct.Struct("=QQ")
_READ, _WRITE, _FLUSH = 0, 1, 2
_TEXT = 4000
_LARGEST_ERRNO = 4095
_MOST_DESCRIPTORS = 68
_CONTROL = 3

# From before the program's main module is imported: gevent replaces both by what runs only when a
# thread of this process waits in its way.
_Socket = socket.socket

_DONE = _ANSWER.pack(0, 0)
_NO_MEMORY_TEXT = b"MemoryError, while another error was to be explained"
# Made beforehand: there may be no memory for it when it is needed.
_NO_MEMORY = _ANSWER.pack(errno.EIO, len(_NO_MEMORY_TEXT)) + _NO_MEMORY_TEXT


class _LogToParent(logging.Handler):
    def __init__(self, parent: socket.socket) -> None:
        super().__init__()
        self._parent = parent

    def emit(self, record: logging.LogRecord) -> None:
        """Send it, or drop it: a log that nobody reads must not hold up a store."""
        with contextlib.suppress(Exception):
            state = dict(record.__dict__, msg=record.getMessage(), args=None, exc_info=None)
            if record.exc_info and not record.exc_text:
                state["exc_text"] = logging.Formatter().formatException(record.exc_info)
            for name, value in state.items():
                state[name] = hidden(value) if isinstance(value, str) else value
            self._parent.send(pickle.dumps(state)[:LOG_RECORD], socket.MSG_DONTWAIT)


def main() -> None:
    """Serve a store until the other end of the control socket is gone."""
    # ^C is meant for the program, and who ends all of its processes at once may find it
    # saving: this process ends when that does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.set_inheritable(_CONTROL, False)
    control = socket.socket(fileno=_CONTROL)
    numbers, descriptors, _, _ = socket.recv_fds(control, _NUMBERS.size, _MOST_DESCRIPTORS)
    # What a store starts must not hold any of it: nobody would see this process end. (recv_fds
    # ignores MSG_CMSG_CLOEXEC.)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    if not numbers:
        os._exit(0)
    _, nbytes = _NUMBERS.unpack(numbers)
    config, memory, log, region, *lines = descriptors
    try:
        store = _prepare(config, log)
        buffers = mmap.mmap(memory, nbytes * len(lines))
        for number, line in enumerate(lines):
            view = memoryview(buffers)[number * nbytes : (number + 1) * nbytes]
            _start_thread(_serve, (store, _Socket(fileno=line), view, region))
    except BaseException as error:
        _say(control, _failure(_limited(error)))
        os._exit(1)
    _say(control, _DONE)
    control.recv(1)
    try:
        store.close()
    finally:
        os._exit(0)


def _limited(error: BaseException) -> BaseException:
    """Name the limit that this process has met: inherited, or used up by itself."""
    if isinstance(error, MemoryError):
        return limits.explain(OSError(errno.ENOMEM, str(error) or "out of memory"))
    if isinstance(error, OSError) and error.errno in limits.ALWAYS:
        return limits.explain(error)
    return error


def _start_thread(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    try:
        start_new_thread(function, arguments)
    except RuntimeError as error:
        refused = OSError(errno.EAGAIN, f"a request under way needs a thread: {error}")
        raise limits.explain(refused) from error


def _say(control: socket.socket, answer: bytes) -> None:
    """Say how it went, to a program that may be gone by now, or have given up."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        control.send(answer)


def _prepare(config: int, log: int) -> Store:
    global importing_main, preparing, depth
    with open(config, "rb", closefd=False) as file:
        file.seek(0)
        preparation, sys.path[:], level, depth, pickled = pickle.load(file)
    sys.argv = preparation.pop("argv")
    with contextlib.suppress(OSError):
        os.chdir(preparation.pop("dir", "."))
    root = logging.getLogger()
    root.addHandler(_LogToParent(socket.socket(fileno=log)))
    root.setLevel(level)
    if preparation:
        from multiprocessing import spawn

        importing_main = True
        spawn.prepare(preparation)
        importing_main = False
    preparing = True
    store = pickle.loads(pickled)
    preparing = False
    assert isinstance(store, Store)
    return store


def _serve(store: Store, line: socket.socket, view: memoryview, region: int) -> None:
    """Answer the requests of one line, one after another."""
    source = np.frombuffer(view, np.uint8).ctypes.data
    with line:
        while True:
            try:
                request = line.recv(_REQUEST.size)
            except MemoryError:
                continue
            if not request:
                return
            # Whatever is raised is an answer: without one the parent knows nothing, and this line
            # is lost to it.
            try:
                answer = _answer(store, request, view, region, source)
            except BaseException as error:
                answer = _failure(error)
            with contextlib.suppress(BrokenPipeError):
                line.send(answer)


def _answer(store: Store, request: bytes, view: memoryview, region: int, source: int) -> bytes:
    operation, protect, offset, length, address = _REQUEST.unpack(request)
    if operation == _READ:
        read_whole(store, offset, view[:length])
        if address:
            lowlevel.copy(region, address, source, length, 2 * protect)
    elif operation == _WRITE:
        write_whole(store, offset, view[:length].toreadonly())
    elif operation == _FLUSH:
        store.flush()
    else:
        return _stats(store)
    return _DONE


def _stats(store: Store) -> bytes:
    text = json.dumps(store.stats()).encode()
    # Cut short it would be no JSON: better nothing.
    text = text if len(text) <= _TEXT else b""
    return _ANSWER.pack(0, len(text)) + text


def _failure(error: BaseException) -> bytes:
    """Make the answer of what went wrong, whatever that is: exceptions are other people's code."""
    try:
        text = _attempt(lambda: _text_of(error), _attempt(lambda: type(error).__name__, "an error"))
        # Text ends at a zero byte for the pager.
        encoded = text[:_TEXT].replace("\0", "\\0").encode(errors="backslashreplace")[:_TEXT]
        code = _attempt(lambda: _code_of(error), errno.EIO)
        answer: bytes = _ANSWER.pack(code, len(encoded)) + encoded
        return answer
    except BaseException:
        return _NO_MEMORY


def _attempt(call: Callable[[], Any], otherwise: Any) -> Any:
    try:
        return call()
    except BaseException:
        return otherwise


def _code_of(error: BaseException) -> int:
    """Return its errno, if valid: `socket.gaierror` has negative numbers of another list."""
    code: object = error.errno if isinstance(error, OSError) else None
    return code if type(code) is int and 0 < code <= _LARGEST_ERRNO else errno.EIO


def _text_of(error: BaseException) -> str:
    """Describe what went wrong: the exception first, since a message shows its first line."""
    summary = "".join(traceback.format_exception_only(error)).strip()
    return hidden(f"{summary}\n{''.join(traceback.format_exception(error))}")
