"""The process that runs a store written in Python.

The thread that touches paged memory may hold the GIL, so nothing that brings its block may need
it. The store therefore runs in another process, started by the pager (see
``_native/pager/channel.h``): one thread of it for each line, a socket for requests and answers and
a buffer in shared memory for the bytes. Here is both sides' Python: what the process is to get, and
what it does.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import mmap
import multiprocessing.spawn
import os
import pickle
import signal
import socket
import struct
import sys
import threading
import traceback

import numpy as np

from pagemove import lowlevel
from pagemove.descriptors import identity_of, keep
from pagemove.errors import StoreError
from pagemove.stores.base import Store

# As in channel.c: operation, whether to write-protect, offset, length, address to copy to, if any;
# and error, length of the text that follows.
_REQUEST = struct.Struct("=IIQQQ")
_ANSWER = struct.Struct("=iI")
_NUMBERS = struct.Struct("=QQ")
_READ, _WRITE, _FLUSH = 0, 1, 2
_TEXT = 4000
_MOST_DESCRIPTORS = 68
_CONTROL = 3
_LOG_RECORD = 1 << 16

_DONE = _ANSWER.pack(0, 0)
_START = "import pagemove.paging.helper as helper; helper.main()"


class Helper:
    """What the pager needs to start the process, and start it again; and its log.

    Attributes
    ----------
    argv : list of bytes
        The command.
    config : int
        Descriptor of the memory that holds the pickled store.
    log : int
        Descriptor that the process writes its log records to.
    """

    def __init__(self, store: Store) -> None:
        self.argv = [os.fsencode(part) for part in (sys.executable, "-c", _START)]
        payload = _payload(store)
        self.config = keep(os.memfd_create("pagemove store"))
        with open(self.config, "wb", closefd=False) as file:
            file.write(payload)
        records, self._log = (
            socket.socket(fileno=keep(end.detach()))
            for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        )
        self.log = self._log.fileno()
        threading.Thread(target=_pass_on, args=(records,), name="pagemove-log", daemon=True).start()

    def close(self) -> None:
        """Let go of what the pager has copies of by now."""
        os.close(self.config)
        self._log.close()


def _payload(store: Store) -> bytes:
    """Pickle what the process has to know: how to import as we do, then the store."""
    preparation = multiprocessing.spawn.get_preparation_data("pagemove helper")
    # A secret of this process's own children, and not to be pickled.
    preparation.pop("authkey", None)
    # A program read from standard input has no file to import.
    if not os.path.isfile(preparation.get("init_main_from_path") or ""):
        preparation.pop("init_main_from_path", None)
    level = logging.getLogger().getEffectiveLevel()
    try:
        pickled = pickle.dumps(store, pickle.HIGHEST_PROTOCOL)
    except StoreError:
        raise  # it could be, but must not be handed over
    except Exception as error:
        raise TypeError(
            f"{store!r} cannot be pickled, so no other process can run it: {error}; define it at "
            "the top level of a module, and open what it needs on first use"
        ) from error
    return pickle.dumps((preparation, level, pickled), pickle.HIGHEST_PROTOCOL)


def _pass_on(records: socket.socket) -> None:
    """Handle the log records of the process as if they were made here."""
    identity = identity_of(records.fileno())
    while data := records.recv(_LOG_RECORD):
        with contextlib.suppress(Exception):
            record = logging.makeLogRecord(pickle.loads(data))
            logging.getLogger(record.name).handle(record)
        # The program may have closed the number, and may have a socket of its own there.
        if identity_of(records.fileno()) != identity:
            records.detach()
            return
    if identity_of(records.fileno()) == identity:
        records.close()
    else:
        records.detach()


# From here on: in the process itself.


class _LogToParent(logging.Handler):
    def __init__(self, parent: socket.socket) -> None:
        super().__init__()
        self._parent = parent

    def emit(self, record: logging.LogRecord) -> None:
        """Send it, or drop it: a log that nobody reads must not hold up a store."""
        state = dict(record.__dict__, msg=record.getMessage(), args=None, exc_info=None)
        if record.exc_info and not record.exc_text:
            state["exc_text"] = logging.Formatter().formatException(record.exc_info)
        with contextlib.suppress(OSError):
            self._parent.send(pickle.dumps(state)[:_LOG_RECORD], socket.MSG_DONTWAIT)


def main() -> None:
    """Serve a store until the other end of the control socket is gone."""
    # Whoever types ^C means the program; this process ends when that does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=_CONTROL)
    numbers, descriptors, _, _ = socket.recv_fds(control, _NUMBERS.size, _MOST_DESCRIPTORS)
    if not numbers:
        os._exit(0)
    _, nbytes = _NUMBERS.unpack(numbers)
    config, memory, log, region, *lines = descriptors
    try:
        store = _prepare(config, log)
        buffers = mmap.mmap(memory, nbytes * len(lines))
    except BaseException as error:
        control.send(_failure(error))
        os._exit(1)
    for number, line in enumerate(lines):
        view = memoryview(buffers)[number * nbytes : (number + 1) * nbytes]
        threading.Thread(
            target=_serve, args=(store, socket.socket(fileno=line), view, region), daemon=True
        ).start()
    control.send(_DONE)
    control.recv(1)
    with contextlib.suppress(Exception):
        store.close()
    os._exit(0)


def _prepare(config: int, log: int) -> Store:
    with open(config, "rb", closefd=False) as file:
        file.seek(0)
        preparation, level, pickled = pickle.load(file)
    multiprocessing.spawn.prepare(preparation)
    root = logging.getLogger()
    root.addHandler(_LogToParent(socket.socket(fileno=log)))
    root.setLevel(level)
    store = pickle.loads(pickled)
    assert isinstance(store, Store)
    return store


def _serve(store: Store, line: socket.socket, view: memoryview, region: int) -> None:
    """Answer the requests of one line, one after another."""
    source = np.frombuffer(view, np.uint8).ctypes.data
    while request := line.recv(_REQUEST.size):
        operation, protect, offset, length, address = _REQUEST.unpack(request)
        try:
            if operation == _READ:
                store.read_into(offset, view[:length])
                if address:
                    lowlevel.copy(region, address, source, length, 2 * protect)
            elif operation == _WRITE:
                store.write(offset, view[:length].toreadonly())
            elif operation == _FLUSH:
                store.flush()
            answer = _stats(store) if operation > _FLUSH else _DONE
        except BaseException as error:
            answer = _failure(error)
        line.send(answer)


def _stats(store: Store) -> bytes:
    text = json.dumps(store.stats()).encode()
    # Cut short it would be no JSON: better nothing.
    text = text if len(text) <= _TEXT else b""
    return _ANSWER.pack(0, len(text)) + text


def _failure(error: BaseException) -> bytes:
    """Tell what went wrong: the exception first, for that is what a line of a message shows."""
    code = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
    summary = "".join(traceback.format_exception_only(error)).strip()
    text = f"{summary}\n{''.join(traceback.format_exception(error))}".encode()[:_TEXT]
    return _ANSWER.pack(code, len(text)) + text
