"""SIGTERM where the library is to leave it alone: other handlers, switched off, in children."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from pagemove import save_on_sigterm
from support.paging import wrong_words
from support.programs import BEGIN, NBYTES, counted
from support.sigterm import DEADLINE, KILLED, OPEN, ends

pytestmark = pytest.mark.needs("paging")

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
    assert (status, errors) == (KILLED, "")
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
    # From Python 3.12 on os.fork warns in a process that has threads.
    begin = """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
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
            BEGIN + OPEN + textwrap.dedent(script),
            str(path),
        ],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
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
    assert (status, errors) == (KILLED, "")
    assert counted(path) is None
