"""`pagemove run`: a program under a limit, and otherwise as the interpreter runs it."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs("paging")

_PAGED = [sys.executable, "-m", "pagemove", "run", "--limit", "8MiB", "--spill", "."]


def ran(command, directory, **options):
    return subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=120, check=False, **options
    )


#: What a program sees of how it was started, and what becomes of it.
_PROGRAMS = {
    "seen": """
import sys, __main__
print(__name__, __file__, __spec__, __package__, sys.argv, sys.path[0], __main__.__doc__)
print(sorted(set(vars(__main__)) - {"sys"}), "typer" in sys.modules)
""",
    "status": "import sys; print('out'); sys.exit(3)",
    "message": "raise SystemExit('a message')",
    "raises": """
def inner():
    raise KeyError("spam") from ValueError("egg")
inner()
""",
    "hook": """
import sys, traceback
def hook(kind, error, trace):
    print("hooked", kind.__name__, len(traceback.extract_tb(trace)))
sys.excepthook = hook
1 / 0
""",
    "syntax": "print(1)\ndef broken(:\n",
    "interrupted": "import os, signal; os.kill(os.getpid(), signal.SIGINT)\nwhile True: pass",
    "terminated": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)\nwhile True: pass",
    "at_exit": "import atexit; atexit.register(print, 'bye'); raise ValueError",
    "pickles": """
import pickle
class Spam:
    value = 5
print(pickle.loads(pickle.dumps(Spam())).value)
""",
    "reads": "import sys; print(sys.stdin.read().upper())",
}


@pytest.mark.parametrize("name", _PROGRAMS)
def test_a_script_is_run_as_without(tmp_path, name):
    (tmp_path / "program.py").write_text(_PROGRAMS[name])
    words = ["program.py", "--limit", "x", "-m", "--", "y"]
    plain = ran([sys.executable, *words], tmp_path, input="spam")
    paged = ran([*_PAGED, *words], tmp_path, input="spam")
    assert (paged.returncode, paged.stdout) == (plain.returncode, plain.stdout)
    assert paged.stderr == plain.stderr


@pytest.mark.parametrize(
    "words", [["-", "1", "-x"], ["--", "program.py", "--"], ["--", "-", "2"], ["archive.zip", "3"]]
)
def test_other_ways_to_name_a_script(tmp_path, words):
    program = "import sys; print(__name__, sys.argv, sys.path[0], globals().get('__file__'))"
    (tmp_path / "program.py").write_text(program)
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("__main__.py", program)
    plain = ran([sys.executable, *words], tmp_path, input=program)
    paged = ran([*_PAGED, *words], tmp_path, input=program)
    assert (paged.stdout, paged.returncode) == (plain.stdout, 0), paged.stderr


@pytest.mark.parametrize("line", ["1 / 0", "import no_such_module", "raise SystemExit(7)"])
@pytest.mark.parametrize("module", ["package", "package.part"])
def test_a_package_that_cannot_be_imported_ends_as_without(tmp_path, module, line):
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").write_text(line)
    for name in ("__main__", "part"):
        (tmp_path / f"package/{name}.py").touch()
    plain = ran([sys.executable, "-m", module], tmp_path)
    paged = ran([*_PAGED, "-m", module], tmp_path)
    assert paged.returncode == plain.returncode
    # Of the standard library's own frames there are none here.
    shown = re.sub(r'  File "<frozen runpy>".*\n', "", plain.stderr)
    assert paged.stderr == shown


@pytest.mark.parametrize("words", [["-mshows", "1", "-x"], ["-m", "shows", "1"]])
def test_arguments_of_a_module_however_it_is_named(tmp_path, words):
    (tmp_path / "shows.py").write_text("import sys; print(sys.argv[1:])")
    done = ran([*_PAGED, *words], tmp_path)
    assert done.stdout == ran([sys.executable, *words], tmp_path).stdout, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "package", "-x", "--report"],
        ["-m", "package.part", "1"],
        ["-c", "import sys; print(sys.argv, __name__, repr(sys.path[0]))", "--limit"],
        ["package", "1"],
    ],
)
def test_modules_code_and_folders(tmp_path, words):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "part.py").write_text("import sys; print(sys.argv, __name__, __package__)")
    (package / "__main__.py").write_text(
        "import sys; print(sys.argv, __name__, __package__, sys.path[0], __file__)"
    )
    plain, paged = ran([sys.executable, *words], tmp_path), ran([*_PAGED, *words], tmp_path)
    assert (paged.stdout, paged.returncode) == (plain.stdout, 0), paged.stderr


def test_its_arrays_are_under_the_limit_in_all_threads(tmp_path):
    (tmp_path / "program.py").write_text("""
import threading
import numpy as np
from pagemove.paging.registry import region_at
early = np.arange(2_000_000)
def work():
    global late
    late = early * 2
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(region_at(early.ctypes.data, 8) is region_at(late.ctypes.data, 8) is not None)
print(int(late.sum()), region_at(early.ctypes.data, 8).stats().resident_nbytes <= 8 << 20)
""")
    paged = ran([*_PAGED, "--report", "program.py"], tmp_path)
    assert paged.stdout.split() == ["True", "3999998000000", "True"]
    lines = paged.stderr.splitlines()
    assert lines[0].startswith("pagemove: arrays: at most 30.8 MiB at a time, now 30.8 MiB in 2")
    assert "limit 8 MiB" in lines[1]
    assert "written" in lines[3]


def test_a_report_on_sigusr1(tmp_path):
    code = "import sys; print('ready', flush=True); sys.stdin.readline()"
    with subprocess.Popen(
        [*_PAGED, "--report", "-c", code],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        running.stdout.readline()
        running.send_signal(signal.SIGUSR1)
        _, said = running.communicate("\n", timeout=60)
    assert running.returncode == 0
    assert said.count("pagemove: arrays: at most 0 B at a time") == 2


_CALLS = """
import mmap, os, pickle, socket, threading
from multiprocessing import Pipe
import numpy as np
from pagemove.paging.registry import region_at

numbers = np.arange(1_000_000)
whole, count = numbers.nbytes, numbers.size

def paged():
    array = np.zeros(count, np.int64)
    assert region_at(array.ctypes.data, array.nbytes) is not None
    return array

def evicted(array):
    region_at(array.ctypes.data, array.nbytes).evict()
    return array

def check(found):
    assert (found == numbers).all()

def beside(work):
    thread = threading.Thread(target=work)
    thread.start()
    return thread

# NumPy's own files.
np.save("numbers.npy", evicted(numbers))
np.savez("both.npz", numbers=numbers, half=numbers[::2])
check(np.load("numbers.npy"))
check(np.load("both.npz")["numbers"])
check(np.fromfile("numbers.npy", np.int64, offset=128))
check(np.fromfile(open("numbers.npy", "rb"), np.int64, count=2_000_000, offset=128))
assert np.fromfile("numbers.npy", np.int64, count=5, offset=128).tolist() == [0, 1, 2, 3, 4]
evicted(numbers).tofile("numbers.raw")
assert os.stat("numbers.raw").st_size == whole
check(np.fromfile("numbers.raw", np.int64))

# Files of Python: buffered and not, vectors, at an offset, past the page cache.
with open("file", "wb") as file:
    assert file.write(evicted(numbers)) == whole
with open("file", "rb") as file:
    array = paged()
    assert file.readinto(evicted(array)) == whole
    check(array)
with open("file", "rb", buffering=0) as file:
    array = paged()
    assert file.readinto(evicted(array)) == whole
    check(array)
    assert file.readinto(array) == 0
descriptor = os.open("file", os.O_RDWR)
parts = evicted(numbers)[: count // 2], evicted(numbers)[count // 2 :]
assert os.writev(descriptor, parts) == whole
assert os.lseek(descriptor, 0, os.SEEK_CUR) == whole
array = paged()
assert os.preadv(descriptor, [evicted(array)[:10], array[10:]], 0) == whole
check(array)
assert os.pwritev(descriptor, [evicted(numbers)], 8) == whole
assert os.pread(descriptor, 8, 8) == bytes(8)
assert os.pwrite(descriptor, evicted(numbers), 0) == whole
array = paged()
os.lseek(descriptor, 0, os.SEEK_SET)
assert os.readv(descriptor, [evicted(array)]) == whole
check(array)
os.close(descriptor)
try:
    os.write(descriptor, evicted(numbers))
except OSError as error:
    assert error.errno == 9
else:
    raise AssertionError
with open("pickled", "wb") as file:
    pickle.dump(evicted(numbers), file, protocol=5)
with open("pickled", "rb") as file:
    check(pickle.load(file))

# Sockets and pipes: all of it, what is there, messages as they are.
ours, theirs = socket.socketpair()
thread = beside(lambda: ours.sendall(evicted(numbers)))
array = paged()
assert theirs.recv_into(evicted(array), whole, socket.MSG_WAITALL) == whole
check(array)
thread.join()
ours.sendall(b"12345678")
assert theirs.recv_into(evicted(array)) == 8
assert bytes(array[:1]) == b"12345678"
beside_it = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"\\0" * 4)]
assert ours.sendmsg([b"", evicted(numbers)[:1000]], beside_it) == 8000
got, beside_it, flags, _ = theirs.recvmsg_into([evicted(array)], 64)
assert (array[:1000] == numbers[:1000]).all()
assert (got, len(beside_it)) == (8000, 1)
ours.close(), theirs.close()
ours, theirs = socket.socketpair(type=socket.SOCK_DGRAM)
for size in (1, 1000, 100_000):
    ours.send(evicted(numbers)[:size].view("u1")[:size])
    array = paged()
    assert theirs.recv_into(evicted(array)) == size
    assert bytes(array.view("u1")[:size]) == bytes(numbers.view("u1")[:size])
a, b = Pipe()
thread = beside(lambda: a.send_bytes(evicted(numbers)))
array = paged()
assert b.recv_bytes_into(evicted(array)) == whole
check(array)
thread.join()
print("all", os.environ.get("LD_PRELOAD"), os.environ.get("PAGEMOVE_PRELOAD_BEFORE"))
"""


@pytest.mark.parametrize("before", [None, "/no/such/library.so"])
def test_files_and_sockets_work_where_system_calls_do_not_reach_arrays(
    tmp_path, monkeypatch, before
):
    if before is None:
        monkeypatch.delenv("LD_PRELOAD", raising=False)
    else:
        monkeypatch.setenv("LD_PRELOAD", before)
    (tmp_path / "program.py").write_text(_CALLS)
    code = """
import sys
from pagemove._native.pager import set_kernel_faults
set_kernel_faults(False)
sys.argv[1:] = ["run", "--limit", "4MiB", "--spill", ".", "program.py"]
from pagemove.cli import main
main()
"""
    paged = ran([sys.executable, "-c", code], tmp_path)
    assert paged.stdout.split() == ["all", str(before), "None"], paged.stderr
    assert "other calls than reads and writes of files and sockets need" in paged.stderr


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--limit", "lots", "x.py"], 2, "not a number of bytes"),
        (["--limit", "8MiB", "--spill", "nowhere", "x.py"], 2, "spill must be a directory"),
        (["--limit", "8MiB", "--spill", ".", "x.py"], 2, "can't open file"),
        (["--limit", "8MiB", "--spill", ".", "-m", "no_such"], 1, "No module named no_such"),
        (["--limit", "8MiB", "--spill", ".", "."], 1, "can't find '__main__' module"),
        (["--limit", "8MiB", "--spill", ".", ""], 1, "can't find '__main__' module"),
        (["--limit", "8MiB"], 2, "a program is needed"),
        (["-X", "dev", "x.py"], 2, "python -X ... -m pagemove run"),
        (["-u", "x.py"], 2, "python -u ... -m pagemove run"),
        (["--limit", "4MiB", "--report", "-u", "x.py"], 2, "python -u ... -m pagemove run"),
        (["--limit=4MiB", "-Xdev", "x.py"], 2, "python -Xdev ... -m pagemove run"),
        (["--limit", "8MiB", "-m"], 2, "argument -m: expected one argument"),
    ],
)
def test_what_cannot_be_run(tmp_path, words, status, message):
    paged = ran([sys.executable, "-m", "pagemove", "run", *words], tmp_path)
    assert paged.returncode == status
    assert message in paged.stderr
    assert "Traceback" not in paged.stderr


def test_no_memory_is_said(tmp_path):
    paged = ran([*_PAGED, "-c", "import numpy; numpy.empty(1 << 50, 'u1')"], tmp_path)
    assert paged.returncode == 1
    assert "Unable to allocate" in paged.stderr
    assert "address space for 1 TiB of arrays" in paged.stderr


_LIMITED = """
import resource, sys, numpy as np
most = int(sys.argv[2])
resource.setrlimit(getattr(resource, "RLIMIT_" + sys.argv[1]), (most, most))
arrays = [np.ones(1 << 17) for _ in range(40)]
print(int(sum(array.sum() for array in arrays)))
"""


@pytest.mark.parametrize("limit", ["8MiB", "1GiB"])
@pytest.mark.parametrize("name", ["AS", "DATA"])
def test_a_program_that_limits_its_own_memory_hears_of_it(tmp_path, name, limit):
    """Beyond what it has: every allocation of the C library fails from then on."""
    (tmp_path / "limited.py").write_text(_LIMITED)
    command = [*_PAGED[:-3], limit, "limited.py", name, str(16 << 20)]
    done = ran(command, tmp_path)
    assert done.stdout == "" or done.returncode == 0
    if done.returncode:
        assert "MemoryError" in done.stderr or f"RLIMIT_{name}" in done.stderr, done


def test_the_console_script_does_the_same(tmp_path):
    script = Path(sys.executable).with_name("pagemove")
    if not os.access(script, os.X_OK):
        pytest.skip("the console script is not beside the interpreter")
    paged = ran([script, "run", "--limit", "8MiB", "--spill", ".", "-c", "1/0"], tmp_path)
    plain = ran([sys.executable, "-c", "1/0"], tmp_path)
    assert (paged.returncode, paged.stderr) == (plain.returncode, plain.stderr)


def test_code_that_is_indented_is_what_the_interpreter_makes_of_it(tmp_path):
    """An error before Python 3.14, which removes what all lines begin with."""
    code = "\n    print(1)\n    print(2)\n"
    paged = ran([*_PAGED, "-c", code], tmp_path)
    plain = ran([sys.executable, "-c", code], tmp_path)
    assert (paged.returncode, paged.stdout) == (plain.returncode, plain.stdout)
    assert plain.stdout == ("1\n2\n" if sys.version_info >= (3, 14) else "")


@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize("option", ["--report", "--limit=1TiB"])
def test_a_program_runs_whether_anybody_can_be_told_or_not(tmp_path, redirected, option):
    """At the start, that the limit is more than there is; at the end, the report."""
    command = shlex.join([*_PAGED, option, "-c", "print(5)"])
    paged = ran(["sh", "-c", f"{command} {redirected}"], tmp_path)
    assert (paged.returncode, paged.stdout) == (0, "5\n")


def test_without_an_interpreter_to_start_again_it_goes_on_and_says_what_fails(tmp_path):
    code = """
import sys
from pagemove._native.pager import set_kernel_faults
set_kernel_faults(False)
sys.executable = "/no/such/python"
sys.argv[1:] = ["run", "--limit", "4MiB", "--spill", ".", "-c", "print(5)"]
from pagemove.cli import main
main()
"""
    paged = ran([sys.executable, "-c", code], tmp_path)
    assert (paged.returncode, paged.stdout) == (0, "5\n"), paged.stderr
    assert "on large arrays they need pagemove.pinned(array), or fail" in paged.stderr
