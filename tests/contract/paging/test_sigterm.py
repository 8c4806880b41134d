"""SIGTERM with the default action, however it comes: what was changed is in the file, and the
process is ended by it all the same. Programs that handle it themselves notice nothing.

Nothing is written before, by a limit or in the background.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from pagemove import save_on_sigterm
from support.paging import expected, wrong_words
from support.programs import BEGIN, NBYTES, counted, run, running, said

pytestmark = pytest.mark.needs("paging")

_DEADLINE = 60.0
_KILLED = -signal.SIGTERM

_OPEN = """
def changed(**how):
    return count_up(opened(resident_limit=None, writeback_interval=None, **how))

def raise_it():
    os.kill(os.getpid(), signal.SIGTERM)
"""


def ends(path: Path, script: str) -> tuple[int, str, str]:
    return run(path, _OPEN + textwrap.dedent(script), _DEADLINE)


# What is printed is checked by the script's own asserts: a traceback is another status.
SELF = {
    "by itself": """
        array = changed()
        raise_it()
        os._exit(7)
    """,
    "raised": """
        array = changed()
        signal.raise_signal(signal.SIGTERM)
        os._exit(7)
    """,
    "by a thread": """
        array = changed()
        threading.Thread(target=raise_it).start()
        time.sleep(60)
    """,
    "a server that was there first, and raises it again": """
        caught = []
        handler = lambda number, frame: caught.append(number)
        original = signal.signal(signal.SIGTERM, handler)
        array = changed()
        assert signal.getsignal(signal.SIGTERM) == handler
        raise_it()
        assert caught == [signal.SIGTERM], caught
        signal.signal(signal.SIGTERM, original)
        signal.raise_signal(signal.SIGTERM)
        os._exit(7)
    """,
    "a server with a method for a handler": """
        class Server:
            caught = ()
            def stop(self, number, frame): self.caught += number,
        server = Server()
        originals = {n: signal.signal(n, server.stop) for n in (signal.SIGINT, signal.SIGTERM)}
        array = changed()
        raise_it()
        for number, original in originals.items():
            signal.signal(number, original)
        for number in reversed(server.caught):
            signal.raise_signal(number)
        os._exit(7)
    """,
    "a server that comes later": """
        array = changed()
        caught = []
        original = signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
        assert original == signal.SIG_DFL and original in (None, signal.SIG_DFL)
        raise_it()
        assert caught == [signal.SIGTERM], caught
        array[1::64] += np.uint64(1)   # while it shuts down
        array[1::64] -= np.uint64(1)
        signal.signal(signal.SIGTERM, original)
        signal.raise_signal(signal.SIGTERM)
        os._exit(7)
    """,
    "a server that runs the application in a thread": """
        caught = []
        original = signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
        kept = []
        thread = threading.Thread(target=lambda: kept.append(changed()))
        thread.start(); thread.join()
        time.sleep(0)
        raise_it()
        assert caught == [signal.SIGTERM], caught
        signal.signal(signal.SIGTERM, original)
        signal.raise_signal(signal.SIGTERM)
        os._exit(7)
    """,
    "opened in a thread": """
        kept = []
        thread = threading.Thread(target=lambda: kept.append(changed()))
        thread.start(); thread.join()
        raise_it()
        os._exit(7)
    """,
    "the default action, set by the program": """
        array = changed()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise_it()
        os._exit(7)
    """,
    "a handler that cleans up, and raises it again": """
        def handler(number, frame):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            raise_it()
            os._exit(7)
        signal.signal(signal.SIGTERM, handler)
        array = changed()
        raise_it()
    """,
    "asked for, before a handler that ends the process": """
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))
        array = changed()
        pagemove.save_on_sigterm(grace=30)
        raise_it()
        time.sleep(60)
    """,
    "several regions at once": """
        import shutil
        shutil.copy(sys.argv[1], sys.argv[1] + ".2")
        array = changed()
        other = pagemove.open_array(
            sys.argv[1] + ".2", dtype=np.uint64, mode="r+", writeback_interval=0
        )
        other[::64] += np.uint64(1)
        raise_it()
        os._exit(7)
    """,
}


@pytest.mark.parametrize("name", SELF)
def test_everything_is_saved(file, name):
    path = file(NBYTES)
    status, _, errors = ends(path, SELF[name])
    assert (status, errors) == (128 + signal.SIGTERM if "asked" in name else _KILLED, "")
    assert counted(path) is None
    if "several" in name:
        assert counted(Path(f"{path}.2")) is None


BUSY = {
    "asleep": "time.sleep(60)",
    "in C, with the GIL": "ctypes.PyDLL(None).sleep(60)",
    "in C, without the GIL": "ctypes.CDLL(None).sleep(60); ctypes.CDLL(None).sleep(60)",
    "computing": "while True: np.arange(1 << 20).sum()",
    "waiting for a thread": """
        thread = threading.Thread(target=time.sleep, args=[60], daemon=True)
        thread.start(); thread.join()
    """,
    "waiting for a page": """
        array[-1] = 0
    """,
    "storing": """
        while True: array[1::64] ^= array[1::64]
    """,
}


@pytest.mark.parametrize("name", BUSY)
def test_from_outside_whatever_the_main_thread_does(file, name):
    path = file(NBYTES)
    script = """
        faults = [Fault("read", count=0, delay=60.0, first=1)] if {page} else None
        memory = opened(
            faults=faults, resident_limit=None, writeback_interval=None, prefetch="off",
            store_timeout=90.0,
        )
        array = memory.asarray(np.uint64)
        array[0] += np.uint64(1)
        print("here", flush=True)
        {body}
    """
    body = textwrap.indent(textwrap.dedent(BUSY[name]).strip(), " " * 8).strip()
    script = script.replace("{page}", str("page" in name)).replace("{body}", body)
    with running(path, textwrap.dedent(script)) as process:
        assert said(process, _DEADLINE) == "here"
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(_DEADLINE) == _KILLED
    assert np.fromfile(path, np.uint64, 1)[0] == expected(NBYTES)[0] + 1


@contextmanager
def _writing_slowly(path: Path, then: str) -> Iterator[subprocess.Popen[str]]:
    """A program whose first write takes a second, and whose main thread does `then`."""
    script = """
        memory = opened(
            faults=[Fault("write", count=1, delay=1.0)], resident_limit=None,
            writeback_interval=None, store_timeout=30.0,
        )
        array = count_up(memory)
        print("here", flush=True)
    """
    with running(path, textwrap.dedent(script) + then) as process:
        assert said(process, _DEADLINE) == "here"
        yield process
        assert process.wait(_DEADLINE) == _KILLED
    assert counted(path) is None


def test_twice_is_once(file):
    """The second one, as of who signals a group and its leader, does not cut the first short."""
    with _writing_slowly(file(NBYTES), "time.sleep(60)") as process:
        for _ in range(5):
            os.kill(process.pid, signal.SIGTERM)
            time.sleep(0.05)  # not for an order: five of them in the second that the write takes


def test_during_a_flush(file):
    with _writing_slowly(file(NBYTES), "memory.flush(); time.sleep(60)") as process:
        os.kill(process.pid, signal.SIGTERM)


@pytest.mark.parametrize("way", ["default", "restored"])
def test_a_store_that_hangs_has_until_the_grace_is_over(file, way):
    path = file(NBYTES)
    script = f"""
        faults = [Fault("write", count=0, delay=60.0)]
        array = changed(faults=faults, store_timeout=90.0)
        pagemove.save_on_sigterm(grace=0.5)
        if {way == "restored"}:
            original = signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, original)
        raise_it()
        os._exit(7)
    """
    started = time.monotonic()
    status, _, errors = ends(path, script)
    assert status == _KILLED
    assert time.monotonic() - started < 30
    assert errors == (
        f"pagemove: changes of {path} could not be saved within 0.5 seconds: its store takes "
        "longer\n"
    )
    assert wrong_words(np.fromfile(path, np.uint64)) is None


def test_a_store_that_fails_is_told(file):
    path = file(NBYTES)
    script = """
        array = changed(faults=[Fault("write", count=0, errno=errno.ENOSPC)], store_timeout=0.1)
        raise_it()
        os._exit(7)
    """
    status, _, errors = ends(path, script)
    assert status == _KILLED
    assert errors == (f"pagemove: changes of {path} could not be saved: No space left on device\n")


LEFT_ALONE = {
    "ignored": """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        array = changed()
        raise_it()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    """,
    "handled": """
        caught = []
        signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
        array = changed()
        raise_it()
        assert caught == [signal.SIGTERM]
    """,
    "handled later, and called on": """
        array = changed()
        def handler(number, frame):
            caught.append(number)
            if callable(old):
                old(number, frame)
        caught, old = [], signal.signal(signal.SIGTERM, None or handler)
        raise_it()
        assert caught == [signal.SIGTERM]
        assert np.fromfile(sys.argv[1], np.uint64)[0] == array[0]   # the call saves
    """,
    "handled in C": """
        handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: caught.append(number))
        caught = []
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
        libc.signal(signal.SIGTERM, ctypes.cast(handler, ctypes.c_void_p))
        array = changed()
        raise_it()
        assert caught == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL   # as before
    """,
    "for reading only": """
        array = opened("r").asarray(np.uint64); private = opened("c").asarray(np.uint64)
        private[0] += np.uint64(1)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    """,
    "memory that does not outlive the process": """
        memory = pagemove.PagedMemory(nbytes=1 << 20)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        memory.close()
    """,
    "by asyncio": """
        import asyncio
        array = changed()
        async def main():
            stopped = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
            raise_it()
            await stopped.wait()
        asyncio.run(main())
    """,
    "a worker that ends its loop, as gunicorn's": """
        alive = True
        def stop(number, frame):
            global alive
            alive = False
        signal.signal(signal.SIGTERM, stop)
        signal.siginterrupt(signal.SIGTERM, False)
        array = changed()
        threading.Timer(0.1, raise_it).start()
        while alive:
            time.sleep(0.01)
        sys.exit(0)
    """,
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_a_program_that_handles_it_is_left_alone(file, name):
    path = file(NBYTES)
    assert ends(path, LEFT_ALONE[name]) == (0, "", "")
    if "changed()" in LEFT_ALONE[name]:
        assert counted(path) is None  # by its normal exit


OFF = {
    "by the environment": "os.environ['PAGEMOVE_SIGTERM_GRACE'] = '0'; array = changed()",
    "before": "pagemove.save_on_sigterm(None); array = changed()",
    "after": "array = changed(); pagemove.save_on_sigterm(0)",
    "after a handler was replaced": """
        array = changed()
        old = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pagemove.save_on_sigterm(None)
        signal.signal(signal.SIGTERM, old)
    """,
    "with its own handler back": """
        def handler(number, frame):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            raise_it()
        signal.signal(signal.SIGTERM, handler)
        array = changed()
        pagemove.save_on_sigterm(None)
        assert signal.getsignal(signal.SIGTERM) is handler
    """,
}


@pytest.mark.parametrize("name", OFF)
def test_turned_off(file, name):
    path = file(NBYTES)
    status, _, errors = ends(path, textwrap.dedent(OFF[name]) + "\nraise_it()\nos._exit(7)")
    assert (status, errors) == (_KILLED, "")
    assert wrong_words(np.fromfile(path, np.uint64)) is None


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf", "1e9"])
def test_an_environment_that_makes_no_sense(file, value):
    status, _, errors = ends(
        file(NBYTES), f"os.environ['PAGEMOVE_SIGTERM_GRACE'] = {value!r}; changed()"
    )
    assert status == 1
    assert "PAGEMOVE_SIGTERM_GRACE must be seconds from 0 (not to save) to 86400" in errors
    assert f"not '{value}'" in errors


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        *((value, ValueError) for value in (-1, math.nan, math.inf, 1e6)),
        *((value, TypeError) for value in ("5", True, [])),
    ],
)
def test_a_grace_that_makes_no_sense(value, kind):
    with pytest.raises(kind, match="grace must be") as raised:
        save_on_sigterm(value)
    assert repr(value) in str(raised.value) or str(value) in str(raised.value)


CHILDREN = {
    "os.fork": """
        array = changed()
        pid = os.fork()
        if not pid:
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            print("here", flush=True)
            ctypes.PyDLL(None).sleep(60)
            os._exit(7)
        ready()
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    """,
    "fork by C": """
        array = changed()
        pid = ctypes.PyDLL(None).fork()
        if not pid:
            os.write(1, b"here")
            ctypes.PyDLL(None).sleep(60)
            os._exit(7)
        ready()
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    """,
    "clone": """
        array = changed()
        SIGCHLD, SYS_clone = 17, {"x86_64": 56, "aarch64": 220}[os.uname().machine]
        pid = ctypes.PyDLL(None).syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0)
        if not pid:
            libc = ctypes.PyDLL(None)
            libc.write(1, b"here", 4)
            libc.sleep(60)
            libc._exit(7)
        ready()
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    """,
    "multiprocessing": """
        import multiprocessing
        array = changed()
        process = multiprocessing.get_context("fork").Process(
            target=lambda: (print("here", flush=True), ctypes.PyDLL(None).sleep(60))
        )
        process.start()
        ready()
        process.terminate()
        process.join()
        assert process.exitcode == -signal.SIGTERM
    """,
    "of a handler": """
        signal.signal(signal.SIGTERM, handler := lambda number, frame: os._exit(3))
        array = changed()
        pid = os.fork()
        if not pid:
            assert signal.getsignal(signal.SIGTERM) is handler
            raise_it()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    """,
    "with a region of its own": """
        array = changed()
        pid = os.fork()
        if not pid:
            own = changed(lock=False)
            raise_it()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
        assert np.fromfile(sys.argv[1], np.uint64)[0] == array[0]
    """,
}


@pytest.mark.needs("fork")
@pytest.mark.parametrize("name", CHILDREN)
def test_a_child_is_ended_at_once_and_its_parent_stays(file, name):
    path = file(NBYTES)
    # The child says through standard output that it has come so far.
    begin = """
        out, into = os.pipe()
        os.dup2(into, 1)
        def ready():
            assert os.read(out, 4) == b"here"
    """
    script = textwrap.dedent(begin) + textwrap.dedent(CHILDREN[name])
    status, _, errors = ends(path, script)
    assert (status, errors) == (0, "")
    assert counted(path) is None  # by the parent's normal exit


def test_the_first_process_of_a_container_goes_on_and_saves_each_time(file):
    """The kernel does not end it by the default action."""
    path = file(NBYTES)
    script = """
        array = changed()
        def saved():
            return np.fromfile(sys.argv[1], np.uint64)[0] == array[0]
        if os.getpid() == 1:
            for _ in range(3):
                array[0] += np.uint64(1)
                assert not saved()
                raise_it()
                assert saved()
            os._exit(5)
        os._exit(6)
    """
    done = subprocess.run(
        [
            *("unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c"),
            BEGIN + _OPEN + textwrap.dedent(script),
            str(path),
        ],
        capture_output=True,
        text=True,
        timeout=_DEADLINE,
        check=False,
    )
    if "unshare failed" in done.stderr:
        pytest.skip("this process may not make a namespace of processes")
    assert (done.returncode, done.stderr) == (5, "")


def test_a_store_in_a_helper_is_saved_when_all_processes_are_signalled(file, tmp_path):
    """As systemd does: the helper is in the same group."""
    path = file(NBYTES)
    (tmp_path / "filed.py").write_text(
        "from pagemove.stores import FileStore\nclass Filed(FileStore): pass\n"
    )
    script = f"""
        sys.path.insert(0, {str(tmp_path)!r})
        from filed import Filed
        store = Filed(sys.argv[1], writable=True)
        memory = pagemove.PagedMemory(store, mode="r+", writeback_interval=None)
        array = count_up(memory)
        os.setpgid(0, 0)
        helpers = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and is_helper(pid)]
        assert len(helpers) == 1, helpers
        os.kill(helpers[0], signal.SIGTERM)
        raise_it()
        os._exit(7)
    """
    begin = """
        def is_helper(pid):
            try:
                command = open(f"/proc/{pid}/cmdline", "rb").read()
                environment = open(f"/proc/{pid}/environ", "rb").read()
            except OSError:
                return False
            return b"pagemove" in command and mark in environment and int(pid) != os.getpid()
        mark = b"PAGEMOVE_TEST=%d" % os.getpid()
        os.environ["PAGEMOVE_TEST"] = str(os.getpid())
    """
    status, _, errors = ends(path, textwrap.dedent(begin) + textwrap.dedent(script))
    assert (status, errors) == (_KILLED, "")
    assert counted(path) is None
