"""Regions of mode "r" in a child made by fork: at the same addresses, opened again when touched."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

pytestmark = pytest.mark.needs("paging", "fork")

_OPENED = """
import os, pathlib, signal, sys, threading, time
import numpy as np, pagemove
path = sys.argv[1]
def child(act):
    pid = os.fork()
    if not pid:
        status = 99
        try:
            status = act()
        except BaseException:
            import traceback
            traceback.print_exc()
        os._exit(int(status))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def opened(**options):
    return pagemove.open_array(path, **{"resident_limit": "1MiB", **options})
array = opened()
COUNT = 500_000
"""


@pytest.fixture
def path(tmp_path):
    np.save(tmp_path / "numbers.npy", np.arange(500_000))
    return tmp_path / "numbers.npy"


def run(path, code, *, timeout=60):
    done = subprocess.run(
        [sys.executable, "-c", _OPENED + textwrap.dedent(code), path],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr


def _touched(folder, made):
    """Have lines of a program that touch numbers of a store, of a class of a module there."""
    module = made.partition(".")[0]
    return (
        f"sys.path.insert(0, {str(folder)!r}); import {module}; "
        f"region = pagemove.PagedMemory({made}(), resident_limit='256KiB'); "
        "numbers = region.asarray(np.int64); numbers[0]"
    )


def test_a_view_shows_the_same_at_the_same_address(path):
    code = """
    view, whole = array[::-3], array.sum()
    print(child(lambda: view[1] == COUNT - 4 and array.sum() == whole), int(view[1]))
    """
    assert run(path, code) == (["1", "499996"], "")


def test_a_system_call_finds_it_untouched(path):
    code = """
    reading, writing = os.pipe()
    print(child(lambda: os.write(writing, array[1000:1010])))
    print(*np.frombuffer(os.read(reading, 80), np.int64) == np.arange(1000, 1010))
    """
    assert run(path, code)[0] == ["80"] + ["True"] * 10


def test_its_statistics_limit_and_budget_are_its_own(path):
    code = """
    budget = pagemove.Budget("512KiB")
    shared = opened(resident_limit=budget)
    array[0], shared[0]
    def act():
        first = array.region.stats()
        assert (first.faults, first.resident_nbytes) == (0, 0), first
        array.sum(), shared.sum()
        assert 0 < array.region.stats().resident_nbytes <= 1 << 20
        counters = budget.stats()
        assert counters.members == 1 and counters.resident_nbytes <= 512 << 10, counters
        return array.region.stats().faults > 0
    print(child(act), budget.stats().members)
    """
    assert run(path, code) == (["1", "1"], "")


def test_it_is_closed_there_touched_or_not(path):
    code = """
    untouched = opened()
    array[5]
    def act():
        global array, untouched
        regions = array.region, untouched.region
        array[7]
        del array, untouched
        for region in regions:
            region.close()
        return all(region.closed for region in regions)
    print(child(act), int(array[5]), int(untouched[5]))
    """
    assert run(path, code) == (["1", "5", "5"], "")


def test_a_child_of_a_child_has_it_too(path):
    code = """
    untouched = opened()
    def grandchild():
        return int(array[5] + untouched[6])
    def act():
        return int(array[4]) + child(grandchild) + child(grandchild)
    print(child(act), child(lambda: child(grandchild)))
    """
    assert run(path, code) == (["26", "11"], "")


def test_a_child_of_one_that_c_code_forked_has_it(path):
    code = """
    import ctypes
    pid = ctypes.PyDLL(None).fork()
    if not pid:
        os._exit(child(lambda: array[COUNT - 5] == COUNT - 5))
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    assert run(path, code) == (["1"], "")


def test_threads_of_the_child_touch_it_first_together(path):
    code = """
    def act():
        start, found = threading.Barrier(4), []
        def touch(at):
            start.wait()
            found.append(int(array[at::4].sum()))
        threads = [threading.Thread(target=touch, args=(at,)) for at in range(4)]
        for one in threads: one.start()
        for one in threads: one.join()
        return sum(found) == COUNT * (COUNT - 1) // 2
    print(child(act))
    """
    assert run(path, code) == (["1"], "")


def test_a_child_that_closes_all_it_knows_has_it(path):
    code = """
    touched = opened()
    def act():
        touched[3]
        os.closerange(3, 1024)
        return int(array[5] + touched[100_000] == 100_005)
    print(child(act))
    """
    assert run(path, code) == (["1"], "")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("os.utime(path, (1, 1))", "is not what it was when it was opened"),
        ("os.replace(path + '2', path)", "is not what it was when it was opened"),
        ("os.unlink(path)", "No such file or directory"),
    ],
)
def test_a_file_that_has_changed_is_an_error(path, change, why):
    np.save(f"{path}2.npy", np.zeros(500_000, int))
    os.rename(f"{path}2.npy", f"{path}2")
    code = f"""
    {change}
    quiet = child(lambda: 3)
    print(quiet, child(lambda: array[5]), int(array[5]))
    """
    said, message = run(path, code)
    assert said == ["3", "-11", "5"]
    assert message.count("\n") == 1
    assert str(path) in message
    assert why in message


def test_a_store_of_another_kind_gets_its_helper_anew(path, tmp_path):
    (tmp_path / "ours.py").write_text(
        "import numpy as np, pagemove\n"
        "class Counting(pagemove.stores.Store):\n"
        "    nbytes = 1 << 20\n"
        "    def read_into(self, offset, buffer):\n"
        "        start = offset // 8\n"
        "        view = np.frombuffer(buffer, np.int64)\n"
        "        view[:] = np.arange(start, start + len(view))\n"
    )
    code = f"""
    {_touched(tmp_path, "ours.Counting")}
    print(child(lambda: numbers[100_000] == 100_000 and array[5] == 5))
    print(child(lambda: child(lambda: numbers[100_000] == 100_000)))
    print(int(numbers[7]))
    """
    assert run(path, code) == (["1", "1", "7"], "")


def test_a_store_that_cannot_be_had_again_is_said_before_the_touch_ends_the_child(path, tmp_path):
    (tmp_path / "once.py").write_text(
        "import pathlib, pagemove\n"
        "class Once(pagemove.stores.Store):\n"
        "    nbytes = 1 << 20\n"
        "    def __init__(self):\n"
        "        self.name = 'once'\n"
        "    def __setstate__(self, state):\n"
        f"        pathlib.Path({str(tmp_path / 'made')!r}).touch(exist_ok=False)\n"
        "    def read_into(self, offset, buffer):\n"
        "        buffer[:] = bytes(len(buffer))\n"
    )
    code = f"""
    {_touched(tmp_path, "once.Once")}
    print(*(child(lambda: numbers[100_000]) for _ in range(6)))
    """
    said, message = run(path, code)
    assert said == ["-11"] * 6
    lines = message.splitlines()
    assert len(lines) == 6, message
    assert all("cannot be opened again: FileExistsError" in line for line in lines)
    assert all(line.endswith("touching it raises SIGSEGV") for line in lines)


def test_a_fork_while_it_is_being_opened(path, tmp_path):
    """The child of the child opens it itself, and finds it in one place only."""
    (tmp_path / "held.py").write_text(
        textwrap.dedent(
            """
            import os, time
            from pagemove.stores import Store
            class Held(Store):
                def __init__(self, path):
                    self.path = path
                @property
                def nbytes(self):
                    return 1 << 20
                def __setstate__(self, state):
                    self.__dict__.update(state)
                    number = len(os.listdir(self.path))
                    open(os.path.join(self.path, str(number)), "w").close()
                    # The second that is started is held until there is a third.
                    while number == 1 and len(os.listdir(self.path)) < 3:
                        time.sleep(0.01)
                def read_into(self, offset, buffer):
                    view = memoryview(buffer).cast("B")
                    view[:] = bytes([5]) * len(view)
            """
        )
    )
    code = f"""
    sys.path.insert(0, {str(tmp_path)!r})
    import ctypes, held
    started = pathlib.Path({str(tmp_path / "started")!r})
    started.mkdir()
    region = pagemove.PagedMemory(held.Held(str(started)), mode="r", store_timeout=60)
    numbers = np.frombuffer(region, np.uint8)
    assert numbers[0] == 5
    libc, address = ctypes.CDLL(None), numbers.ctypes.data
    def touch():
        libc.memchr(ctypes.c_void_p(address + 100), 5, ctypes.c_size_t(1))
    def grandchild():
        assert region.stats().faults == 0
        return numbers[300_000]
    def first():
        thread = threading.Thread(target=touch)
        thread.start()
        while len(list(started.iterdir())) < 2:
            time.sleep(0.01)
        print(child(grandchild), flush=True)
        thread.join()
        return numbers[5]
    print(child(first))
    """
    assert run(path, code)[0] == ["5", "5"]


def test_a_recording_and_other_modes_stay_the_parents(path):
    code = """
    private = opened(mode="c")
    array.region.record(path + ".order")
    array[100_000]
    def act():
        global array
        region = array.region
        array[400_000]
        del array
        region.close()
        return os.path.exists(path + ".order")
    print(child(act), child(lambda: private[0]))
    """
    said, message = run(path, code)
    assert said == ["0", "-11"]
    assert "mode 'c'" in message


def test_a_fork_that_is_no_use_of_memory_costs_little(path):
    """Per region: less than what opening it takes. The figure itself is a benchmark's."""
    code = """
    arrays = [opened() for _ in range(30)]
    def act():
        status = pathlib.Path("/proc/self/status").read_text()
        return int(status.partition("Threads:")[2].split()[0])
    print(child(act))
    """
    # The program's, the voice's, and the one that waits for all of them.
    assert run(path, code) == (["3"], "")


def test_as_a_message_there_is_no_thread(path):
    code = """
    del array
    array = opened(fork="message")
    def act():
        status = pathlib.Path("/proc/self/status").read_text()
        return int(status.partition("Threads:")[2].split()[0])
    print(child(act))
    """
    assert run(path, code) == (["1"], "")


def test_fork_is_one_of_two_words(path):
    import pagemove

    with pytest.raises(ValueError, match="fork must be 'reopen' or 'message', not 'share'"):
        pagemove.open_array(path, fork="share")


def test_a_pool_of_forked_workers(path):
    code = """
    import multiprocessing
    def part(at):
        return int(array[at : at + 1000].sum())
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(sum(pool.map(part, range(0, COUNT, 1000))) == COUNT * (COUNT - 1) // 2)
    """
    assert run(path, code) == (["True"], "")


_APPLICATION = """
import os
import pagemove
array = pagemove.open_array(os.environ["TABLE"], resident_limit="1MiB")
array[0]
def app(environ, start):
    at = int(environ["PATH_INFO"].strip("/"))
    start("200 OK", [])
    return [f"{os.getpid()} {array[at]}".encode()]
"""


def test_gunicorn_that_preloads(path, tmp_path):
    pytest.importorskip("gunicorn")
    import http.client
    import signal
    import socket
    import time

    (tmp_path / "application.py").write_text(_APPLICATION)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "gunicorn", "--preload", "--workers", "2"),
            *("--bind", f"127.0.0.1:{port}", "application:app"),
        ],
        cwd=tmp_path,
        env={**os.environ, "TABLE": str(path)},
        stderr=subprocess.PIPE,
        text=True,
    )

    def get(at):
        one = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        one.request("GET", f"/{at}")
        return one.getresponse().read().decode().split()

    try:
        limit = time.monotonic() + 60
        while True:
            try:
                get(1)
                break
            except OSError:
                assert time.monotonic() < limit
                time.sleep(0.05)
        workers = set()
        for at in range(0, 500_000, 25_000):
            worker, number = get(at)
            workers.add(worker)
            assert number == str(at)
        assert str(server.pid) not in workers
    finally:
        server.send_signal(signal.SIGTERM)
        said = server.communicate(timeout=60)[1]
    assert "SIGSEGV" not in said
