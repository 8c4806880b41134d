"""What the process does that runs a store written in Python; see `pagemove.paging.handover`."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import pickle
import signal
import socket
import sys
import traceback
from _thread import allocate_lock, get_ident
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from pagemove import limits
from pagemove.paging import own
from pagemove.paging.tenants import ANSWER as _ANSWER
from pagemove.paging.tenants import DONE as _DONE
from pagemove.paging.tenants import OF_THREADS, House, Tenant, say
from pagemove.stores.base import Store, check_count, read_whole, write_whole
from pagemove.stores.logs import hidden

#: Bytes of the longest log record.
LOG_RECORD = 1 << 16

#: Whether this is such a process, and imports its parent's main module.
importing_main = False
#: Whether it is still at unpickling its store, and imports what that needs.
preparing = False
#: How many such processes there are between the program and this one, with this one.
depth = 0

#: Follows what is handed over as long as the region is being opened.
FIRST = b"first"

# Of Desk.serve: what was read is in its place, and that is to be said.
_PLACED = 2
# As in store.h.
_READ, _WRITE, _FLUSH = 0, 1, 2
_TEXT = 4000
_LARGEST_ERRNO = 4095
_CONTROL = 3

_NO_MEMORY_TEXT = b"MemoryError, while another error was to be explained"
# Made beforehand: there may be no memory for it when it is needed.
_NO_MEMORY = _ANSWER.pack(errno.EIO, len(_NO_MEMORY_TEXT)) + _NO_MEMORY_TEXT


class _LogToParent(logging.Handler):
    def __init__(self, house: House) -> None:
        super().__init__()
        self._house = house

    def emit(self, record: logging.LogRecord) -> None:
        """Send it, or drop it: a log without a reader must not block a store."""
        with contextlib.suppress(Exception):
            # A thread that the store started belongs to no region in particular.
            tenant = OF_THREADS.get(get_ident()) or self._house.anyone
            if tenant is None or not tenant.is_whole():
                return
            state = dict(record.__dict__, msg=record.getMessage(), args=None, exc_info=None)
            if record.exc_info and not record.exc_text:
                state["exc_text"] = logging.Formatter().formatException(record.exc_info)
            for name, value in state.items():
                state[name] = hidden(value) if isinstance(value, str) else value
            tenant.log.send(pickle.dumps(state)[:LOG_RECORD], socket.MSG_DONTWAIT)


def main() -> None:
    """Serve a store, and those that come by the door, until the last region has ended."""
    # ^C is meant for the program, and who ends all of its processes at once may find it
    # saving: this process ends when that does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.set_inheritable(_CONTROL, False)
    own.begin()
    control = own.as_socket(_CONTROL)
    house = House()
    house.enter()
    try:
        tenant = Tenant(control)
    except EOFError:
        os._exit(0)
    except OSError as error:
        say(control, _failure(error))
        os._exit(1)
    try:
        tenant.furnish()
        _prepare(tenant, house)
        _open(tenant)
    except BaseException as error:
        tenant.check_whole()
        say(control, _failure(_limited(error)))
        os._exit(1)
    tenant.check_whole()
    if tenant.door is not None:
        try:
            _let_in(house, tenant)
        except OSError:
            house.check_whole()
            raise
    say(control, _DONE)
    tenant.wait_for_end()
    try:
        tenant.close_store(waiting=False)
    finally:
        os._exit(0)


def _let_in(house: House, first: Tenant) -> NoReturn:
    """Serve others besides. Here, since what they import may want the main thread."""
    assert first.store is not None
    assert first.door is not None
    house.stay(first)
    say(first.control, _DONE)
    door = own.as_socket(first.door)
    while True:
        message, descriptors = own.receive(door, 1)
        house.check_whole()
        if not message:
            break
        house.enter()
        control = own.as_socket(descriptors[0]) if descriptors else None
        if control is None or house.is_full():
            house.leave(control, None)
            break
        if first.store.restartable:
            house.watch()
        _take(house, control)
    # A region that asks from now on finds no helper, and starts a process of its own.
    own.close(door)
    forever = allocate_lock()
    while True:
        forever.acquire()


def _take(house: House, control: socket.socket) -> None:
    tenant = None
    try:
        # Of the region nothing is there before it knows which process has it.
        process = os.pidfd_open(os.getpid())
        try:
            socket.send_fds(control, [b"x"], [process])
        finally:
            os.close(process)
        tenant = Tenant(control)
        OF_THREADS[get_ident()] = tenant
        tenant.furnish()
        (_, path, level, _, pickled), is_first = _handed(tenant)
        # All but where its own modules are is as it was for the first.
        sys.path += [entry for entry in path if entry not in sys.path]
        logging.getLogger().setLevel(level)
        _unpickle(tenant, pickled, is_first)
        _open(tenant)
        house.stay(tenant)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        own.end_if_forked(None)
        house.leave(control, tenant)
    except BaseException as error:
        if tenant is not None:
            tenant.check_whole()
        say(control, _failure(_limited(error)))
        house.leave(control, tenant)
    else:
        tenant.check_whole()
        say(control, _DONE)
    finally:
        OF_THREADS.pop(get_ident(), None)


def _limited(error: BaseException) -> BaseException:
    """Name the limit that this process has met: inherited, or used up by itself."""
    if isinstance(error, MemoryError):
        return limits.explain(OSError(errno.ENOMEM, str(error) or "out of memory"))
    if isinstance(error, OSError) and error.errno in limits.ALWAYS:
        return limits.explain(error)
    return error


def _handed(tenant: Tenant) -> tuple[tuple[dict[str, Any], list[str], int, int, bytes], bool]:
    with open(tenant.config, "rb", closefd=False) as file:
        file.seek(0)
        parts: tuple[dict[str, Any], list[str], int, int, bytes] = pickle.load(file)
        return parts, file.read() == FIRST


def _prepare(tenant: Tenant, house: House) -> None:
    """Become like the program, and take the first store."""
    global importing_main, depth
    (preparation, sys.path[:], level, depth, pickled), is_first = _handed(tenant)
    sys.argv = preparation.pop("argv")
    with contextlib.suppress(OSError):
        os.chdir(preparation.pop("dir", "."))
    root = logging.getLogger()
    root.addHandler(_LogToParent(house))
    root.setLevel(level)
    OF_THREADS[get_ident()] = tenant
    if preparation:
        from multiprocessing import spawn

        importing_main = True
        spawn.prepare(preparation)
        importing_main = False
        tenant.check_whole()
    _unpickle(tenant, pickled, is_first)


def _unpickle(tenant: Tenant, pickled: bytes, is_first: bool) -> None:
    global preparing
    preparing = True
    try:
        store = pickle.loads(pickled)
    finally:
        preparing = False
        own.end_if_forked(None)
    assert isinstance(store, Store)
    # A start has more time than a request has. What fails now fails the first request as well, and
    # is reported there, unless the program is at opening the region: it had better know at once.
    try:
        store._get_ready()
    except Exception:
        if is_first:
            raise
    finally:
        own.end_if_forked(store)
    tenant.store = store


def _open(tenant: Tenant) -> None:
    tenant.open(_serve)


def _serve(tenant: Tenant, number: int, view: memoryview) -> None:
    """Answer the requests of one lane, one after another."""
    source = np.frombuffer(view, np.uint8).ctypes.data
    desk, store = tenant.desk, tenant.store
    assert desk is not None
    assert store is not None
    while True:
        # Whatever is raised is an answer: without one the parent knows nothing, and this lane
        # is lost to it.
        try:
            found = desk.serve(number, source, view, store, check_count)
            if not found:
                return
            answer = _DONE if found == _PLACED else _answer(store, view, *desk.request(number))
        except BaseException as error:
            tenant.check_whole()
            answer = _failure(error)
        tenant.answer(number, answer)


def _answer(store: Store, view: memoryview, operation: int, offset: int, length: int) -> bytes:
    if operation == _READ:
        read_whole(store, offset, view[:length])
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
