"""The process that runs a store written in Python: what it is to get.

The thread that touches paged memory may hold the GIL, so nothing that brings its block may need
it. The store therefore runs in another process, started by the pager (see
``_native/pager/mechanisms/channel.h``): one thread of it for each lane, a socket for requests and
answers and a buffer in shared memory for the bytes. What that process does is in
`pagemove.paging.helper`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import logging
import multiprocessing.process
import multiprocessing.spawn
import os
import pickle
import pickletools
import shutil
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

from pagemove import limits
from pagemove._native.pager import Host, call_as_own
from pagemove.descriptors import identity_of
from pagemove.errors import StoreError, UnsupportedError
from pagemove.paging import helper, hosts
from pagemove.paging.imports import MAINS, are_installed, folder_of, library_path, program_path
from pagemove.stores.base import Store

# Nothing is imported before the path is ours: also where PYTHONPATH has a relative entry, the pager
# starts the process in the root directory.
_START = "import sys; sys.path[:] = {path}; import pagemove.paging.helper as helper; helper.main()"
_START_ENDS = _START.partition("{path}")[2].encode()

# Programs that run what they are called with: nothing else takes Python's options.
_PYTHONS = ("python", "pypy", "graalpy")
# Stores over stores in processes of their own are fine; a row without an end has to have one.
_DEEPEST = 4


class Helper:
    """What the pager needs to start the process, and start it again; and its log.

    Attributes
    ----------
    argv : list of bytes
        The command. Its last word is the number of this process: ps shows whose helper it is.
    config : int
        Descriptor of the memory that holds the pickled store.
    log : int
        Descriptor that the process writes its log records to.
    payload : bytes
        What `config` holds; until it is closed, `helper.FIRST` follows.
    door : Door or None
        To the process that may run the store besides others; None: it is to have one of its own.
    is_new : bool
        Whether that process has yet to be started.
    identities : tuple
        What the two are, so that nothing is taken for them that has got their numbers; and the end
        of the door.

    Raises
    ------
    TypeError
        The store cannot be pickled, not even by value.
    UnsupportedError
        There is no Python to run.
    OSError
        No descriptors, memory or threads.
    RuntimeError
        This process is such a helper itself, and runs the program's main module again, or a module
        that opens its own store; or the last of a long row of them.
    """

    def __init__(self, store: Store, *, isolated: bool = False) -> None:
        if helper.importing_main:
            raise RuntimeError(
                f"the main module opens {store!r} while the process that runs another store of it "
                'imports it: put what the program does under `if __name__ == "__main__":`'
            )
        if helper.depth >= _DEEPEST:
            raise RuntimeError(
                f"{store!r} would be run by a process that a process runs, {_DEEPEST} deep: "
                "unpickling a store, or a module that it needs, opens the next one; open it on "
                "first use"
            )
        self.argv = _command()
        parts, modules, path = _parts(store)
        self.payload = payload = pickle.dumps(parts, pickle.HIGHEST_PROTOCOL)
        with contextlib.ExitStack() as stack:
            self.config = os.memfd_create("pagemove store")
            config = identity_of(self.config)
            stack.callback(os.close, self.config)
            with open(self.config, "wb", closefd=False) as file:
                file.write(payload + helper.FIRST)
            pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            records, self._log = map(stack.enter_context, pair)
            records = stack.enter_context(_above_standard(records))
            self.log = self._log.fileno()
            self.identities: tuple[tuple[int, int], ...] = config, identity_of(self.log)
            _start_passing_on(records)
            stack.pop_all()
        how = self.argv, sorted(parts[0].items()), path, parts[3]
        key = None if isolated else hosts.key_of(hosts.kind_of(store), how)
        found = None if key is None else hosts.door_for(key, modules)
        self.door: hosts.Door | None = None
        self.is_new = False
        if found is not None:
            self.door, self.is_new = found
        if self.door is not None:
            self._fd, identity = self.door.end(self.is_new)
            self.identities += (identity,)

    @property
    def shared(self) -> tuple[Host, int, bool] | None:
        """The door, for the pager."""
        return None if self.door is None else (self.door.host, self._fd, self.is_new)

    def close(self) -> None:
        """Close what the pager has copies of by now."""
        if self.door is not None and self.is_new:
            self.door.settle()
        if identity_of(self.config) == self.identities[0]:
            # What was the first start is over.
            os.ftruncate(self.config, len(self.payload))
            os.close(self.config)
        self._log.close()


class Log:
    """Where the helpers of a process that was forked write their logs, all to one socket."""

    def __init__(self) -> None:
        self._theirs: socket.socket | None = None

    def socket(self) -> int:
        """Return a descriptor for one more of them."""
        if self._theirs is None:
            records, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            _start_passing_on(_above_standard(records))
        return fcntl.fcntl(self._theirs, fcntl.F_DUPFD_CLOEXEC, 3)

    def close(self) -> None:
        """There will be no more."""
        if self._theirs is not None:
            self._theirs.close()


def again(payload: bytes, log: Log) -> tuple[int, int, tuple[tuple[int, int], tuple[int, int]]]:
    """Return, in a child made by fork, what the pager needs to start a helper there.

    Returns
    -------
    tuple
        Descriptors as `Helper` has them, the caller's to close, and what they are.
    """
    config = os.memfd_create("pagemove store")
    with open(config, "wb", closefd=False) as file:
        file.write(payload)
    record = log.socket()
    return config, record, (identity_of(config), identity_of(record))


def _start_passing_on(records: socket.socket) -> None:
    thread = threading.Thread(
        target=call_as_own, args=(_pass_on, records), name="pagemove-log", daemon=True
    )
    # As those of the pager: what the program blocks, to wait for it, must not find a thread
    # that does not. And a thread has what blocks at its start.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()
    except RuntimeError as error:
        refused = OSError(errno.EAGAIN, f"the helper process's log needs a thread: {error}")
        raise limits.explain(refused) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _above_standard(one: socket.socket) -> socket.socket:
    """Move a long-lived socket away from descriptors that the program may print to."""
    if one.fileno() > 2:
        return one
    with one:
        return socket.socket(fileno=fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 3))


def _command() -> list[bytes]:
    executable = os.fsdecode(multiprocessing.spawn.get_executable() or sys.executable or "")
    # access(2), which which() asks, leaves capabilities out of account.
    is_path = os.path.dirname(executable) and os.path.isfile(executable)
    found = executable if is_path else shutil.which(executable)
    if not found and os.path.dirname(executable):
        _check_reachable(executable)
    if not found or _is_host(executable) or _is_started_instead():
        raise UnsupportedError(
            errno.ENOENT,
            f"no Python to run a store in: sys.executable is {sys.executable!r}, and "
            f"multiprocessing's executable {executable!r}; call multiprocessing.set_executable() "
            "with the path of a Python that has pagemove",
        )
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    start = _START.format(path=ascii(library_path()))
    # -P: else -c has the current directory imported from.
    words = [os.path.abspath(found), *flags, "-P", "-c", start, str(os.getpid())]
    return [os.fsencode(word) for word in words]


def _check_reachable(executable: str) -> None:
    """Raise if it may be there all the same, and it is this user who may not look."""
    try:
        os.stat(executable)
    except PermissionError as error:
        raise UnsupportedError(
            errno.EACCES,
            f"no Python to run a store in: the user {os.geteuid()} cannot reach {executable}: "
            f"{error.strerror}; grant access (chmod o+x for each directory of its real path, "
            f"{os.path.realpath(executable)}), call multiprocessing.set_executable() with the path "
            "of a Python that this user can run and that has pagemove, or open the region before "
            "the change of user",
        ) from error
    except OSError:
        return


def _is_host(executable: str) -> bool:
    """Whether it is a program that Python is part of: started again it would do the same again.

    Not what `multiprocessing.set_executable` was called with: the program knows that.
    """
    if executable != sys.executable:
        return False
    name = os.path.basename(executable).lower()
    return hasattr(sys, "frozen") or not any(python in name for python in _PYTHONS)


def _is_started_instead() -> bool:
    """Whether this process was started to be a helper, and is the program once more.

    So a host has a name like Python's. Without this it would start the next, without an end.
    """
    if helper.depth:
        return False
    try:
        with open("/proc/self/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return False
    return any(word.endswith(_START_ENDS) for word in words)


def _parts(
    store: Store,
) -> tuple[tuple[dict[str, Any], list[str], int, int, bytes], set[str], list[str]]:
    """Return what the process has to know: how to be like this one, then the store, pickled.

    And the modules that it imports for that, and the path without what these need.
    """
    pickled = _pickled(store)
    preparation: dict[str, Any] = {"argv": sys.argv}
    with contextlib.suppress(OSError):  # the current directory may be gone
        preparation["dir"] = os.getcwd()
    modules = _modules(pickled)
    if helper.preparing and (again := sorted(filter(_is_initializing, modules))):
        raise RuntimeError(
            f"the module {again[0]} opens {store!r} when it is imported, and the process that runs "
            "it imports that module: open it in a function, or on first use"
        )
    if modules & MAINS:
        main = _main()
        if isinstance(main, str):
            pickled = _by_value(store, f"its class, or a function of it, is in {main}")
        else:
            preparation |= main
            modules |= set(main.values())
    path = library_path() if are_installed(modules) else program_path()
    # Last: what is there must not pass for anything else.
    more = sorted({each for name in modules if (each := folder_of(name)) and each not in path})
    level = logging.getLogger().getEffectiveLevel()
    return (preparation, path + more, level, helper.depth + 1, pickled), modules, path


def _pickled(store: Store) -> bytes:
    try:
        return pickle.dumps(store, pickle.HIGHEST_PROTOCOL)
    except StoreError:
        raise  # it could be, but must not be handed over
    except Exception as error:
        return _by_value(store, str(error), error)


def _by_value(store: Store, reason: str, cause: Exception | None = None) -> bytes:
    """Pickle it with its classes and functions, which no module has, where that is possible."""
    try:
        import cloudpickle  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        remedy = "install cloudpickle, or define it at the top level of a module"
    else:
        try:
            pickled: bytes = cloudpickle.dumps(store, pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            reason, cause = str(error), error
            remedy = "define it at the top level of a module"
        else:
            return pickled
    raise TypeError(
        f"{store!r} cannot be pickled, so no other process can run it: {reason}; {remedy}, and "
        "open what it needs on first use"
    ) from cause


def _modules(pickled: bytes) -> set[str]:
    """List the modules that a pickle may import: what it has strings of that are names of some."""
    names = set()
    for code, argument, _ in pickletools.genops(io.BytesIO(pickled)):
        if isinstance(argument, str) and len(argument) < 1000:
            names.add(argument.partition(" ")[0] if code.name == "GLOBAL" else argument)
    return {name for name in names if name in sys.modules}


def _is_initializing(name: str) -> bool:
    """Whether a module is being imported, as far as the interpreter says so."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def _main() -> dict[str, str] | str:
    """Return how the main module is imported in another process; if it cannot be, what it is."""
    module = sys.modules["__main__"]
    spec = getattr(module, "__spec__", None)
    if spec is not None:
        # multiprocessing imports none of these: they have no guard, as a rule.
        if spec.name.rpartition(".")[2] == "__main__":
            return "the __main__ of a package, which runs when it is imported"
        return {"init_main_from_name": spec.name}
    path = getattr(module, "__file__", None) or ""
    original = getattr(multiprocessing.process, "ORIGINAL_DIR", None)
    path = os.path.normpath(os.path.join(original or "", path))
    return {"init_main_from_path": path} if os.path.isfile(path) else "no file"


def _pass_on(records: socket.socket) -> None:
    """Handle the log records of the store as if they were made here, until it is done."""
    identity = identity_of(records.fileno())
    while data := records.recv(helper.LOG_RECORD):
        with contextlib.suppress(Exception):
            record = logging.makeLogRecord(pickle.loads(data))
            logging.getLogger(record.name).handle(record)
        # The program may have closed the number, and may have a socket of its own there.
        if identity_of(records.fileno()) != identity:
            break
    if identity_of(records.fileno()) == identity:
        records.close()
    else:
        records.detach()
    hosts.prune()
