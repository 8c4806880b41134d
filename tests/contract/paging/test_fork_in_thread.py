"""A child that was forked by another thread than the main one ends when its last thread does:
pthread_exit(3). The threads of the pager are none of the program's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.needs("paging", "fork")

_PROGRAM = """
import contextlib, ctypes, mmap, os, signal, sys, threading, time
import numpy as np
import pagemove

libc = ctypes.CDLL(None)
how, path = sys.argv[1:3]
stack = contextlib.ExitStack()
array = None
if how == "read":
    array = pagemove.open_array(path, resident_limit="256KiB")
elif how == "store":
    sys.path.insert(0, os.path.dirname(path))
    from numbers_of_python import Numbers
    memory = pagemove.PagedMemory(Numbers(), resident_limit="256KiB")
    array = memory.asarray(np.int64)
elif how == "compressed":
    memory = pagemove.PagedMemory(nbytes=1 << 20, resident_limit="256KiB")
    array = np.frombuffer(memory, np.int64)
    array[:] = np.arange(1 << 17)
elif how == "arrays":
    stack.enter_context(pagemove.paged_allocations("512KiB"))
    array = np.arange(1 << 17)

total = sum(range(1 << 17))

def say(text):
    os.write(1, text.encode() + bytes([10]))

def wait_for(ready):
    until = time.monotonic() + 20
    while not ready() and time.monotonic() < until:
        time.sleep(0.002)
    return ready()

def has_ended(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "Z"

def status_of(pid):
    found = []
    def look():
        if not found:
            done, status = os.waitpid(pid, os.WNOHANG)
            found.extend([status] if done else [])
        return bool(found)
    if wait_for(look):
        return os.waitstatus_to_exitcode(found[0])
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "never ended"

def fork_in_thread(in_child, in_parent=lambda pid: None):
    def run():
        pid = os.fork()
        if not pid:
            return in_child()
        in_parent(pid)
        say(f"status {status_of(pid)}")
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
"""


def _run(how: str, path: Path, program: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PROGRAM + program, how, path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not done.stderr
    return done.stdout.splitlines()


# It has a helper process, whose log a thread of Python takes.
_STORE = """
import numpy as np
import pagemove.stores

class Numbers(pagemove.stores.Store):
    nbytes = 1 << 20

    def read_into(self, offset, buffer):
        words = np.frombuffer(buffer, np.int64)
        words[:] = np.arange(offset // 8, offset // 8 + len(words))
"""

_REGIONS = ("read", "store", "compressed", "arrays")


@pytest.fixture
def numbers(tmp_path):
    np.save(tmp_path / "numbers.npy", np.arange(1 << 17))
    (tmp_path / "numbers_of_python.py").write_text(_STORE)
    return tmp_path / "numbers.npy"


_RETURNS = """
def touch():
    say(f"right {int(array.sum()) == total}")
fork_in_thread(touch)
fork_in_thread(lambda: None)
def leave():
    touch()
    raise SystemExit(3)
fork_in_thread(leave)
"""


@pytest.mark.parametrize("how", _REGIONS)
def test_a_child_ends_when_the_thread_that_forked_returns(numbers, how):
    found = _run(how, numbers, _RETURNS)
    assert found == ["right True", "status 0", "status 0", "right True", "status 0"]


_LATER = """
reading, writing = os.pipe()
def in_child():
    forker = threading.current_thread()
    def go_on():
        os.read(reading, 1)
        forker.join()
        say(f"right {int(array.sum()) == total}")
    threading.Thread(target=go_on).start()

def in_parent(pid):
    say(f"leader ended {wait_for(lambda: has_ended(pid))}")
    time.sleep(0.3)  # some looks of the pager's
    say(f"{os.waitpid(pid, os.WNOHANG)[0]}")
    os.write(writing, b"x")

fork_in_thread(in_child, in_parent)
"""


@pytest.mark.parametrize("how", _REGIONS)
def test_it_does_not_end_before_its_other_threads_do(numbers, how):
    found = _run(how, numbers, _LATER)
    assert found == ["leader ended True", "0", "right True", "status 0"]


_OF_C = """
shared = mmap.mmap(-1, 4096)
semaphore = ctypes.c_char.from_buffer(shared)
libc.sem_init(ctypes.byref(semaphore), 1, 0)

def in_child():
    array.sum()
    thread = ctypes.c_ulong()
    libc.pthread_create(ctypes.byref(thread), None, libc.sem_wait, ctypes.byref(semaphore))

def in_parent(pid):
    say(f"leader ended {wait_for(lambda: has_ended(pid))}")
    time.sleep(0.3)
    say(f"{os.waitpid(pid, os.WNOHANG)[0]}")
    libc.sem_post(ctypes.byref(semaphore))

fork_in_thread(in_child, in_parent)
"""


def test_it_does_not_end_before_a_thread_of_c_does(numbers):
    assert _run("read", numbers, _OF_C) == ["leader ended True", "0", "status 0"]


_HANDLERS = """
def in_child():
    array.sum()
    libc.puts(b"flushed by exit")
fork_in_thread(in_child)
"""


@pytest.mark.parametrize("how", _REGIONS)
def test_exit_handlers_have_the_programs_files(numbers, how):
    assert _run(how, numbers, _HANDLERS) == ["flushed by exit", "status 0"]


_AGAIN = """
def in_child():
    array.sum()
    fork_in_thread(lambda: say(f"right {int(array.sum()) == total}"))
fork_in_thread(in_child)
"""


@pytest.mark.parametrize("how", _REGIONS)
def test_so_does_the_child_of_a_child(numbers, how):
    assert _run(how, numbers, _AGAIN) == ["right True", "status 0", "status 0"]


_OPENED_THERE = """
kept = []
def in_child():
    def open_it():
        kept.append(pagemove.open_array(path, resident_limit="256KiB"))
        say(f"right {int(kept[0].sum()) == total}")
    thread = threading.Thread(target=open_it)
    thread.start()
    thread.join()
fork_in_thread(in_child)
"""


def test_so_does_one_in_which_the_first_region_is_opened(numbers):
    assert _run("none", numbers, _OPENED_THERE) == ["right True", "status 0"]


_ALONE = """
array.sum()
pid = os.fork()
if not pid:
    libc.pthread_exit(None)
say(f"status {status_of(pid)}")
"""


def test_so_does_one_whose_main_thread_is_ended_by_c(numbers):
    assert _run("read", numbers, _ALONE) == ["status 0"]


_CHAIN = """
def in_child():
    def follow(left):
        if not left:
            time.sleep(0.2)
            return say(f"right {int(array.sum()) == total}")
        if left % 50 == 0:
            array.sum()  # the pager's threads come and go
        threading.Thread(target=follow, args=(left - 1,)).start()
    follow(500)

fork_in_thread(in_child)
"""


@pytest.mark.parametrize("how", _REGIONS)
def test_it_does_not_end_while_each_thread_starts_another_and_ends(numbers, how):
    assert _run(how, numbers, _CHAIN) == ["right True", "status 0"]
