"""Point 2 and 5: how a process ends. Normally: what was stored is in the file. By force: what was
flushed is. Never: it does not end.

The ends of a process need a process with an interpreter of its own, so each is a script.
"""

from __future__ import annotations

import os
import select
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

from support.paging import KIB, expected, wrong_words

pytestmark = pytest.mark.needs("paging")

_BLOCK = 64 * KIB
_NBYTES = 16 * _BLOCK

_BEGIN = """
import ctypes, errno, os, signal, sys, threading, time
import numpy as np
import pagemove
from pagemove.stores import FileStore
from pagemove.testing import Fault, FaultyStore

def opened(mode="r+", faults=None, lock=True, **how):
    how = {"resident_limit": 6 * 65536, "block_size": 65536, "store_timeout": 1.0} | how
    if faults is None:
        store = FileStore(sys.argv[1], writable=mode == "r+", lock=lock)
    else:
        store = FaultyStore(sys.argv[1], writable=mode == "r+", faults=faults)
    return pagemove.PagedMemory(store, mode=mode, **how)

def count_up(memory):
    array = memory.asarray(np.uint64)
    array[::64] += np.uint64(1)
    return array
"""


@contextmanager
def running(path: Path, script: str) -> Iterator[subprocess.Popen[str]]:
    """Run a script over a file; whatever happens, it is gone in the end."""
    command = [sys.executable, "-c", _BEGIN + textwrap.dedent(script), str(path)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def run(path: Path, script: str, deadline: float = 20.0) -> tuple[int, str, str]:
    """Run a script to its end: status, stdout, stderr."""
    with running(path, script) as process:
        out, err = process.communicate(timeout=deadline)
        return process.returncode, out, err


def said(process: subprocess.Popen[str], seconds: float = 20.0) -> str:
    """Wait for one line of a script."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    assert ready, "the script has not come so far"
    line = process.stdout.readline()
    assert line, process.communicate()
    return line.strip()


def counted(path: Path, times: int = 1) -> str | None:
    """Check that every 64th word of a file was counted up."""
    found = np.fromfile(path, np.uint64)
    found[::64] -= np.uint64(times)
    return wrong_words(found)


UNFLUSHED = {
    "region in a global": "memory = opened(); array = count_up(memory)",
    "region without an array": "memory = opened(); count_up(memory)",
    "array only": "array = count_up(opened())",
    "open_array": """
        array = pagemove.open_array(sys.argv[1], dtype=np.uint64, mode="r+")
        array[::64] += np.uint64(1)
    """,
    "open_array, dropped": """
        array = pagemove.open_array(sys.argv[1], dtype=np.uint64, mode="r+")
        array[::64] += np.uint64(1)
        del array
    """,
    "a view of a view": "view = count_up(opened()).reshape(8, -1)[3:, ::2]",
    "in a cycle": """
        class Node: pass
        node = Node(); node.me = node; node.array = count_up(opened())
        del node
    """,
    "in a cycle, collected": """
        import gc
        class Node: pass
        node = Node(); node.me = node; node.array = count_up(opened())
        del node; gc.collect()
    """,
    "sys.exit in a function": """
        def main():
            memory = opened(); array = count_up(memory)
            sys.exit(0)
        main()
    """,
    "in a thread that has ended": """
        kept = []
        thread = threading.Thread(target=lambda: kept.append(count_up(opened())))
        thread.start(); thread.join()
    """,
    "in a thread that outlives the main one": """
        def work():
            time.sleep(0.2)
            kept.append(count_up(opened()))
        kept = []
        threading.Thread(target=work).start()
    """,
    "referred to by a module at its end": """
        import builtins
        builtins.kept = count_up(opened())
    """,
    "stored at exit": """
        import atexit
        memory = opened()
        array = memory.asarray(np.uint64)
        def late(): array[::64] += np.uint64(1)
        atexit.register(late)
    """,
    "stored at exit, before the region is opened": """
        import atexit
        def late():
            global kept
            kept = count_up(opened())
        atexit.register(late)
    """,
    "a child that exited before": """
        memory = opened(); array = count_up(memory)
        pid = os.fork()
        if not pid:
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    """,
    "after a child by subprocess": """
        import subprocess
        memory = opened(); array = count_up(memory)
        subprocess.run(["true"], check=True)
    """,
    "sigterm made an exit": """
        memory = opened(); array = count_up(memory)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    """,
    "with daemon threads that read on": """
        memory = opened(); array = count_up(memory)
        def read():
            while True: array.sum()
        for _ in range(2):
            threading.Thread(target=read, daemon=True).start()
        time.sleep(0.2)
    """,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", UNFLUSHED)
def test_a_normal_exit_flushes(file, name):
    path = file(_NBYTES)
    status, _, err = run(path, UNFLUSHED[name])
    assert status == 0, err
    assert counted(path) is None


def test_a_store_by_a_handler_of_exit_that_was_there_before_the_library(file):
    path = file(_NBYTES)
    script = """
        import atexit, sys
        def late(): array[::64] += np.uint64(1)
        atexit.register(late)
        import numpy as np
        import pagemove
        store = pagemove.stores.FileStore(sys.argv[1], writable=True)
        memory = pagemove.PagedMemory(store, mode="r+")
        array = memory.asarray(np.uint64)
        array[::64] += np.uint64(1)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    assert counted(path, 2) is None


def test_an_exception_that_ends_it_flushes(file):
    path = file(_NBYTES)
    status, _, err = run(path, "memory = opened(); array = count_up(memory); 1 // 0")
    assert status == 1
    assert "ZeroDivisionError" in err
    assert counted(path) is None


def test_private_changes_stay_private_at_exit(file):
    path = file(_NBYTES)
    status, _, err = run(path, "memory = opened('c'); array = count_up(memory)")
    assert status == 0, err
    assert counted(path, 0) is None


def test_many_regions_are_all_flushed(file):
    path = file(_NBYTES)
    script = """
        kept = []
        for block in range(16):
            memory = opened(lock=False)
            array = memory.asarray(np.uint64)[block * 8192 : (block + 1) * 8192]
            array[::64] += np.uint64(1)
            kept.append(array)
    """
    status, _, err = run(path, script)
    assert status == 0, err
    assert counted(path) is None


def test_a_store_that_fails_at_exit_is_told_and_does_not_hang(file):
    script = """
        faults = [Fault("write", count=0, errno=errno.ENOSPC)]
        memory = opened(faults=faults, resident_limit=None, store_timeout=0.3)
        array = count_up(memory)
    """
    path = file(_NBYTES)
    _, _, err = run(path, script)
    assert "No space left" in err
    assert str(path) in err


# Blocks that cannot be read hold a thread for as long as the timeout is; exit may wait for that.
STUCK = {
    "a daemon thread": "threading.Thread(target=lambda: array[8192].item(), daemon=True).start()",
    "a daemon thread in a system call": """
        view = memory.asarray(np.uint8)[65536:131072]
        fd = os.memfd_create("out")
        threading.Thread(target=lambda: os.write(fd, view), daemon=True).start()
    """,
    "a prefetch": "memory.prefetch()",
    "a prefetch that waits": "threading.Thread(target=memory.prefetch, kwargs={'wait': True}, "
    "daemon=True).start()",
}


@pytest.mark.parametrize("name", STUCK)
@pytest.mark.parametrize("fault", ["delay=3.0", "errno=errno.EIO", "short=1"])
def test_exit_while_a_read_is_stuck(file, name, fault):
    script = f"""
        memory = opened("r", faults=[Fault("read", count=0, {fault})], store_timeout=1.0)
        array = memory.asarray(np.uint64)
        {{}}
        time.sleep(0.1)
        print("here", flush=True)
        sys.exit(0)
    """
    body = textwrap.indent(textwrap.dedent(STUCK[name]).strip(), " " * 8).strip()
    path = file(_NBYTES)
    # The thread may be struck by SIGBUS before the exit is through; what counts is the end.
    started = time.monotonic()
    status, _, _ = run(path, script.replace("{}", body), deadline=25)
    assert status in (0, -signal.SIGBUS, -signal.SIGSEGV)
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("state", ["idle", "delayed read", "delayed write"])
def test_a_signal_ends_it_at_once(file, number, state):
    script = """
        faults = {
            "idle": [],
            "delayed read": [Fault("read", count=0, delay=30.0)],
            "delayed write": [Fault("write", count=0, delay=30.0)],
        }[state]
        memory = opened(faults=faults, resident_limit=None, store_timeout=60.0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        array = memory.asarray(np.uint64)
        print("here", flush=True)
        if state == "delayed read":
            array.sum()
        elif state == "delayed write":
            array[0] = 1
            memory.flush()
        else:
            time.sleep(60)
    """
    with running(file(_NBYTES), f"state = {state!r}\n" + textwrap.dedent(script)) as process:
        assert said(process) == "here"
        time.sleep(0.2)
        process.send_signal(number)
        assert process.wait(10) == -number


def test_what_was_flushed_outlives_a_sigkill(file):
    script = """
        memory = opened()
        array = memory.asarray(np.uint64)
        for turn in range(1, 5):
            array[::64] += np.uint64(1)
            memory.flush()
            print(turn, flush=True)
        array[::64] += np.uint64(1)
        print("more", flush=True)
        time.sleep(60)
    """
    path = file(_NBYTES)
    with running(path, script) as process:
        while said(process) != "more":
            pass
        process.kill()
        process.wait(10)
    found = np.fromfile(path, np.uint64)
    change = found[::64] - expected(_NBYTES)[::64]
    # Evictions may have stored some of what was not flushed.
    assert set(change.tolist()) <= {4, 5}
    found[::64] -= change
    assert wrong_words(found) is None


@pytest.mark.parametrize("how", ["os._exit(7)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_an_end_by_force_keeps_what_was_flushed(file, how):
    path = file(_NBYTES)
    script = f"""
        memory = opened(); array = count_up(memory); memory.flush()
        {how}
    """
    status, _, _ = run(path, script)
    assert status in (7, -9)
    assert counted(path) is None


def test_exec_ends_it_like_a_kill(file):
    path = file(_NBYTES)
    script = """
        memory = opened(); array = count_up(memory); memory.flush()
        os.execv("/bin/true", ["true"])
    """
    assert run(path, script)[0] == 0
    assert counted(path) is None


def test_exit_in_a_forked_child_leaves_the_store_alone(file):
    """The child's exit runs the same handlers as the parent's; its region is not its own."""
    script = """
        memory = opened(); array = count_up(memory)
        pid = os.fork()
        if not pid:
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        with open(sys.argv[1], "rb") as file:
            print(int.from_bytes(file.read(8), "little"), flush=True)
        array[::64] += np.uint64(1)
    """
    path = file(_NBYTES)
    first = int(expected(8)[0])
    status, out, err = run(path, script)
    assert status == 0, err
    assert int(out) in (first, first + 1)
    assert counted(path, 2) is None


def test_the_descriptor_is_not_inherited_by_a_program(file):
    script = """
        import subprocess
        memory = opened(); count_up(memory)
        print(subprocess.run(["ls", "-l", "/proc/self/fd"], capture_output=True, text=True,
                             close_fds=False).stdout)
    """
    path = file(_NBYTES)
    status, out, err = run(path, script)
    assert status == 0, err
    assert "userfaultfd" not in out
    assert os.path.basename(path) not in out
