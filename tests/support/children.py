"""Code in a child process. A child that outlives its deadline is killed: no test can hang here."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
import textwrap
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from support.slowness import SLOWNESS, patience

_PR_SET_PDEATHSIG = 1
_CHUNK = 1 << 16


class ChildFailed(AssertionError):  # noqa: N818 (a failure of the test, not an error in it)
    """A child raised, was killed by a signal (then with its traceback), or did not end in time."""

    def __init__(self, message: str, *, signal: int = 0, timed_out: bool = False) -> None:
        super().__init__(message)
        self.signal = signal
        self.timed_out = timed_out


def fork() -> int:
    """os.fork without the warning of Python 3.12 that other threads run.

    They do (a timer that watches the test); the children of tests run Python code only, and take
    no lock that such a thread might hold.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*multi-threaded.*fork.*", DeprecationWarning)
        return os.fork()


class Child:
    """A forked child that runs functions one after another when asked, until it is ended.

    The function and its result travel differently: the function is there by the fork if it is
    passed to `living_child`; those passed to `run`, and all results, are pickled.
    """

    def __init__(self, pid: int, orders: int, answers: int, crash: int) -> None:
        self.pid = pid
        self._orders = orders
        self._answers = answers
        self._crash = crash
        self.status: int | None = None

    def run(self, function: Callable[..., Any], *args: Any, deadline: float = 20.0) -> Any:
        """Call a module-level function in the child; return its result, raise its exception."""
        _send(self._orders, pickle.dumps((function, args)))
        return self.result(deadline)

    def result(self, deadline: float = 20.0) -> Any:
        """Wait for one answer of the child."""
        answer = _receive(self._answers, time.monotonic() + patience(deadline))
        if isinstance(answer, bytes):
            ok, value = pickle.loads(answer)
            if ok:
                return value
            raise ChildFailed(f"exception in the child:\n{value}")
        if answer is None:
            self.kill()
            raise ChildFailed(f"the child did not answer within {deadline} s", timed_out=True)
        code = os.waitstatus_to_exitcode(self._wait())
        if code < 0:
            name = signal.Signals(-code).name
            text = os.pread(self._crash, _CHUNK, 0).decode(errors="replace")
            raise ChildFailed(f"the child was killed by {name}\n{text}", signal=-code)
        raise ChildFailed(f"the child ended with status {code} and without an answer")

    def end(self) -> None:
        """Let the child end normally, and wait for it."""
        self._close()
        if self.status is None:
            limit = time.monotonic() + patience(20)
            while not self._ended():
                if time.monotonic() > limit:
                    self.kill()
                    raise ChildFailed("the child did not end", timed_out=True)
                time.sleep(0.001)

    def kill(self) -> None:
        """End it whatever it does."""
        self._close()
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self._wait()

    def _ended(self) -> bool:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.status = status
        return bool(pid)

    def _wait(self) -> int:
        if self.status is None:
            self.status = os.waitpid(self.pid, 0)[1]
        return self.status

    def _close(self) -> None:
        for name in ("_orders", "_answers", "_crash"):
            fd = getattr(self, name)
            if fd >= 0:
                os.close(fd)
                setattr(self, name, -1)


def _send(fd: int, message: bytes) -> None:
    data = memoryview(len(message).to_bytes(8, "little") + message)
    while data:
        data = data[os.write(fd, data) :]


def _receive(fd: int, limit: float) -> bytes | bool | None:
    """One message; False at the end of the stream; None when the time is up."""
    data, length = b"", 8
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while len(data) < length:
        left = limit - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return None
        piece = os.read(fd, min(_CHUNK, length - len(data)))
        if not piece:
            return False
        data += piece
        if len(data) >= 8:
            length = 8 + int.from_bytes(data[:8], "little")
    return data[8:]


def _answer(fd: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        message = pickle.dumps((True, function(*args)))
    except BaseException:
        message = pickle.dumps((False, traceback.format_exc()))
    _send(fd, message)


def _serve(
    orders: int, answers: int, crash: int, first: Callable[..., Any] | None, args: tuple[Any, ...]
) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A crash that a test wants must not fill the terminal; one that it does not want is told.
    faulthandler.enable(crash, all_threads=False)
    if first is not None:
        _answer(answers, first, args)
    while isinstance(order := _receive(orders, time.monotonic() + 600 * SLOWNESS), bytes):
        function, order_args = pickle.loads(order)
        _answer(answers, function, order_args)


@contextmanager
def living_child(first: Callable[..., Any] | None = None, *args: Any) -> Iterator[Child]:
    """Fork a child that stays alive until the block ends; `first` runs in it, see `Child.result`.

    Without `first` it does nothing but hold what it has inherited.
    """
    orders_out, orders_in = os.pipe()
    answers_out, answers_in = os.pipe()
    crash = os.memfd_create("crash")
    sys.stdout.flush()
    sys.stderr.flush()
    pid = fork()
    if not pid:
        try:
            os.close(orders_in)
            os.close(answers_out)
            _serve(orders_out, answers_in, crash, first, args)
        finally:
            os._exit(0)
    os.close(orders_out)
    os.close(answers_in)
    one = Child(pid, orders_in, answers_out, crash)
    try:
        yield one
    finally:
        one.kill()


def fresh_interpreter(code: str, *arguments: str) -> str:
    """Run code in an interpreter of its own, to its end without an error; return what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


_CALL = """
import pickle, sys
sys.path[:0] = sys.argv[1:]
function, arguments = pickle.load(sys.stdin.buffer)
result = function(*arguments)
sys.stdout.buffer.write(pickle.dumps(result))
"""


def newborn(function: Callable[..., Any], *args: Any, deadline: float = 60.0) -> Any:
    """Run ``function(*args)``, all pickled, in an interpreter of its own; return its result.

    Unlike a forked child it has none of the tests' descriptors, mappings, and memory to reuse.
    """
    done = subprocess.run(
        [sys.executable, "-c", _CALL, *sys.path],
        input=pickle.dumps((function, args)),
        capture_output=True,
        timeout=patience(deadline),
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return pickle.loads(done.stdout)


def child(function: Callable[..., Any], *args: Any, deadline: float = 20.0) -> Any:
    """Run ``function(*args)`` in a forked child; return its result (pickled).

    Raises `ChildFailed` with the child's traceback, with the signal that killed it (`.signal`), or
    when it has not ended within `deadline` seconds (`.timed_out`).
    """
    with living_child(function, *args) as one:
        result = one.result(deadline)
        one.end()
    return result
