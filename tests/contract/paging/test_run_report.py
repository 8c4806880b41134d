"""What `pagemove run --report` says, and `--store-limit`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType

import numpy as np
import pytest

import pagemove
from pagemove.paging.sizes import nbytes_of
from pagemove.program import lines
from pagemove.program.lines import Lines
from support.disks import small_disk
from support.programs import run_paged

pytestmark = pytest.mark.needs("paging")

_MIB = 1 << 20
_COMPRESSED = pytest.mark.skipif(
    pagemove.features().compression is None, reason="neither liblz4 nor libzstd is here"
)


def ran(directory, program, *options):
    return run_paged(directory, program, "--limit", "8MiB", *options, deadline=120)


def test_the_line_that_faulted_most_comes_first(tmp_path):
    done = ran(
        tmp_path,
        """
import numpy as np
def add_up(numbers):
    return sum(int(numbers[i::16].sum()) for _ in range(6) for i in range(16))
numbers = np.ones(4 << 20)
print(add_up(numbers))
""",
        "--report",
        "--spill",
        ".",
    )
    assert int(done.stdout) == 6 * (4 << 20), done.stderr
    found = re.findall(r"about (\d+)% of faults: (.*):(\d+) in (\S+): (.*)", done.stderr)
    assert [each[4] for each in found][:1] == [
        "return sum(int(numbers[i::16].sum()) for _ in range(6) for i in range(16))"
    ]
    assert found[0][1:3] == (str(tmp_path / "program.py"), "4")
    assert "add_up" in found[0][3]
    shares = [int(each[0]) for each in found]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) <= 102


def test_a_program_that_does_not_fault_has_no_such_lines(tmp_path):
    done = ran(tmp_path, "import numpy as np; print(np.arange(10).sum())", "--report")
    assert "pagemove: faults: 0" in done.stderr
    assert "% of faults" not in done.stderr


def test_faults_are_shared_out_by_what_each_thread_has_had():
    """A thread that touches ten times as many pages is charged with most of what was added."""
    count, ready, go, done = [0], *(threading.Barrier(2) for _ in range(3))

    def other():
        fresh = np.zeros(40 * _MIB, np.uint8)
        ready.wait()
        fresh[::4096] = 1
        go.wait()
        done.wait()  # here it is when it is looked at

    looked_at = Lines(lambda: count[0])
    assert not looked_at.look()
    count[0] = 1
    assert looked_at.look()
    thread = threading.Thread(target=other)
    thread.start()
    ready.wait()
    looked_at.look()
    go.wait()
    count[0] += 1_000_000
    assert looked_at.look()
    done.wait()
    thread.join()
    (_, _, function), share = looked_at.most(1)[0]
    assert "other" in function
    assert share > 0.5
    assert sum(share for _, share in looked_at.most(100)) == pytest.approx(1)


def test_a_line_of_the_program_rather_than_of_a_library(tmp_path):
    looked_at, seen = Lines(lambda: 1), []

    def key(value):
        seen.append(looked_at._line_of(sys._getframe()))
        return value

    # It is of the standard library, and calls this.
    json.dumps(object, default=lambda _: key(1))
    assert seen[0][2].endswith("key")
    encoder = json.encoder.__file__
    code = compile("def called(f): return f()", encoder, "exec")
    names: dict = {}
    exec(code, names)
    inner = names["called"](lambda: looked_at._line_of(sys._getframe(1)))
    assert inner[2].endswith("library")


def test_no_frame_is_held_while_other_threads_may_run(monkeypatch):
    """One that has returned would keep its arrays."""
    held = []

    def tasks():
        values = sys._getframe(1).f_locals.values()
        within = [each for value in values if isinstance(value, dict) for each in value.values()]
        held.extend(each for each in (*values, *within) if isinstance(each, FrameType))
        called.append(True)
        return {}

    called: list = []
    monkeypatch.setattr(lines, "tasks", tasks)
    assert Lines(lambda: 1).look()
    assert (called, held) == ([True], [])


def test_how_a_line_is_shown(tmp_path):
    (tmp_path / "some.py").write_text("one = 1\n    two = 2\n")
    path = str(tmp_path / "some.py")
    assert lines.text_of((path, 2, "spam")) == f"{path}:2 in spam: two = 2"
    assert lines.text_of(("<string>", 1, "<module>")) == "<string>:1 in <module>"
    assert lines.faults_of(1 << 30) is None


def test_threads_that_end_while_they_are_looked_at_have_no_share(monkeypatch):
    faults, counts = [0], {1: 100, 2: 50}
    monkeypatch.setattr(lines, "tasks", lambda: dict.fromkeys((1, 2), threading.get_ident()))
    monkeypatch.setattr(lines, "faults_of", counts.get)
    looked_at = Lines(lambda: faults[0])
    # The one of 100 ends; the number of the other is given to a new thread.
    for known in ({1: 100, 2: 50}, {2: 60}, {2: 5}, {}):
        counts.clear()
        counts.update(known)
        faults[0] += 10
        assert looked_at.look()
    shares = [share for _, share in looked_at.most(10)]
    assert min(shares) > 0
    assert sum(shares) == pytest.approx(1)


def test_a_handler_leaves_to_the_sampler_what_it_is_looking_at():
    inner = []

    def faults():
        inner.append(looked_at.look())
        return 1

    looked_at = Lines(faults)
    assert looked_at.look()
    assert inner == [False]


_INCOMPRESSIBLE = """
import numpy as np
random = np.random.default_rng(0)
arrays = [random.integers(0, 256, 4 << 20, np.uint8) for _ in range(8)]
print(sum(int(array.sum()) for array in arrays))
"""


_LARGER = """
import sys
import numpy as np
random = np.random.default_rng(0)
numbers = random.integers(0, 1 << 20, int(sys.argv[1]) << 17)
for _ in range(2):
    numbers += 1
print(int(numbers.sum()))
"""


@pytest.mark.parametrize("where", [[], ["--spill", "."]])
def test_the_whole_process_has_the_limit_and_what_is_compressed_and_no_more(tmp_path, where):
    def sizes(megabytes):
        (tmp_path / "program.py").write_text(_LARGER)
        command = [sys.executable, "-m", "pagemove", "run", "--limit", "24MiB", "--report", *where]
        done = subprocess.run(
            [*command, "program.py", str(megabytes)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        found = re.search(r"process at most (.*)", done.stderr)
        stored = re.search(r"at most (\S+ \w+) of memory", done.stderr)
        return nbytes_of(found[1], "peak"), nbytes_of(stored[1], "store") if stored else 0

    nothing, _ = sizes(0)
    peak, stored = sizes(128)
    assert peak <= nothing + (24 * _MIB) + stored + 32 * _MIB
    assert 0 < stored < (7 * _MIB if where else 100 * _MIB)


@pytest.fixture
def group():
    """Make a control group with a limit of memory, by whichever version is mounted."""
    made = None
    for root, name in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        made = Path("/sys/fs/cgroup", root, f"pagemove-tests-{os.getpid()}")
        try:
            made.mkdir()
        except OSError:
            continue
        if (made / name).exists():
            break
        made.rmdir()
    else:
        pytest.skip("no control group of memory can be made here")
    yield made, made / name
    made.rmdir()


def in_group(made, nbytes, command, directory):
    group, limit = made
    limit.write_text(str(nbytes))
    enter = f'echo $$ >"{group}/cgroup.procs"; exec "$@"'
    return subprocess.run(
        ["sh", "-c", enter, "sh", sys.executable, "-m", "pagemove", "run", *command],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.needs("root")
def test_auto_is_half_of_what_the_control_group_leaves(tmp_path, group):
    command = ["--limit", "auto", "--report", "-c", "import numpy"]
    done = in_group(group, 1 << 30, command, tmp_path)
    found = re.search(r"memory: limit (\S+ \w+),", done.stderr)
    assert found, done.stderr
    assert (1 << 30) * 0.4 < nbytes_of(found[1], "limit") <= 1 << 29


@pytest.mark.needs("root")
def test_the_kernel_kills_nothing_in_a_group_of_limit_and_32_mib(tmp_path, group):
    (tmp_path / "program.py").write_text(_LARGER)
    command = ["--limit", "24MiB", "--spill", ".", "--report", "program.py"]
    nothing = in_group(group, 1 << 30, [*command, "0"], tmp_path)
    beside = nbytes_of(re.search(r"process at most (.*)", nothing.stderr)[1], "peak")
    done = in_group(group, beside + 56 * _MIB, [*command, "160"], tmp_path)
    assert done.returncode == 0, done.stderr
    plain = subprocess.run(
        [sys.executable, tmp_path / "program.py", "160"], capture_output=True, text=True, check=True
    )
    assert done.stdout == plain.stdout


@_COMPRESSED
def test_what_has_no_room_in_the_store_goes_to_the_directory(tmp_path):
    plain = subprocess.run(
        [sys.executable, "-c", _INCOMPRESSIBLE], capture_output=True, text=True, check=True
    )
    options = ("--store-limit", "4MiB", "--spill", ".", "--report")
    done = ran(tmp_path, _INCOMPRESSIBLE, *options)
    assert (done.returncode, done.stdout) == (0, plain.stdout), done.stderr
    assert re.search(r"at most .* of memory", done.stderr)


@_COMPRESSED
def test_a_store_that_is_full_is_said(tmp_path):
    done = ran(tmp_path, _INCOMPRESSIBLE, "--store-limit", "4MiB")
    assert done.returncode == 1
    assert "MemoryError: Unable to allocate" in done.stderr
    note = done.stderr.splitlines()[-1]
    assert "store_limit is full" in note
    assert "--spill" in note


_CAUGHT = """
import numpy as np
random, arrays = np.random.default_rng(0), []
try:
    while True:
        arrays.append(random.random(1 << 18))
except MemoryError:
    arrays.clear()
"""


@_COMPRESSED
@pytest.mark.parametrize("then", ["bytes(1 << 60)", "[0] * (1 << 60)"])
def test_another_memory_error_is_not_of_the_store(tmp_path, then):
    done = ran(tmp_path, _CAUGHT + then, "--store-limit", "4MiB")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "MemoryError"


@_COMPRESSED
def test_what_is_said_of_a_full_store_was_so_when_it_was(tmp_path):
    done = ran(tmp_path, _CAUGHT + "    raise", "--store-limit", "4MiB")
    assert done.returncode == 1
    used = re.search(r"store_limit is full\. ([\d.]+) MiB of arrays were in use", done.stderr)
    assert used is not None, done.stderr
    assert float(used[1]) > 4


@_COMPRESSED
def test_one_array_that_fills_the_store_gets_a_signal_and_a_reason(tmp_path):
    code = "import numpy as np; np.random.default_rng(0).random(1 << 22)"
    done = ran(tmp_path, code, "--store-limit", "4MiB")
    assert done.returncode == -signal.SIGBUS
    assert "store_limit is full" in done.stderr
    assert "the arrays of pagemove.paged_allocations" in done.stderr


@_COMPRESSED
def test_the_store_keeps_to_its_limit(tmp_path):
    random = np.random.default_rng(0)
    with pagemove.paged_allocations("4MiB", store_limit="4MiB", spill=tmp_path) as arena:
        halves = [random.integers(0, 4, 4 * _MIB, np.uint8) for _ in range(6)]
        wholes = [random.integers(0, 256, 4 * _MIB, np.uint8) for _ in range(2)]
    kept = arena.stats().paging.store
    random = np.random.default_rng(0)
    for array in halves:
        assert (array == random.integers(0, 4, 4 * _MIB, np.uint8)).all()
    for array in wholes:
        assert (array == random.integers(0, 256, 4 * _MIB, np.uint8)).all()
    assert kept["memory_nbytes"] <= kept["peak_memory_nbytes"] <= 4 * _MIB
    assert kept["spilled_blocks"] > 0
    assert kept["compressed_blocks"] > 0


@pytest.mark.parametrize(
    ("limit", "kind"), [(0, ValueError), ("-1", ValueError), ("much", ValueError), (1.5, TypeError)]
)
def test_a_wrong_store_limit(limit, kind):
    with pytest.raises(kind, match="store_limit"):
        pagemove.paged_allocations("8MiB", store_limit=limit)


def test_a_limit_beyond_the_memory_is_said(tmp_path):
    done = ran(tmp_path, "print(1)", "--limit", "4TiB")
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert done.stderr.startswith("pagemove: the limit, 4 TiB, is more than the ")


def test_a_limit_on_files_is_said(tmp_path):
    """And nothing more is in the file than it allows."""
    (tmp_path / "program.py").write_text("how = 'empty'\n" + _FILLED)
    command = f"ulimit -f 16384; {sys.executable} -m pagemove run --limit 8MiB --spill . program.py"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert 20 <= int(done.stdout) <= 26
    assert "(or raise RLIMIT_FSIZE, ulimit -f)" in done.stderr


def test_a_directory_that_takes_no_file_is_said(tmp_path):
    done = ran(tmp_path, "print(1)", "--spill", "/proc")
    assert done.returncode == 1
    assert "spill names /proc for what has no room in memory, which takes no" in done.stderr


_FILLED = """
import numpy as np
random, arrays = np.random.default_rng(0), []
try:
    while True:
        arrays.append(np.zeros(1 << 17) if how == "zeros" else np.empty(1 << 17))
        arrays[-1][:] = random.random(1 << 17)
        assert len(arrays) < 100
except MemoryError:
    print(len(arrays))
    del arrays[-8:]  # for what is compared with
    random = np.random.default_rng(0)
    assert all((array == random.random(1 << 17)).all() for array in arrays)
    raise
"""


@pytest.mark.needs("root")
@pytest.mark.parametrize("how", ["zeros", "empty"])
def test_a_directory_without_room_is_a_memory_error(tmp_path, how):
    with small_disk(tmp_path / "small", 32 * _MIB) as small:
        done = ran(tmp_path, f"how = {how!r}" + _FILLED, "--spill", str(small))
    assert done.returncode == 1, done.stderr
    assert 30 <= int(done.stdout) <= 40
    assert f"{small} (spill) is full. " in done.stderr.splitlines()[-1]


_SMALL = """
import numpy as np
random, arrays = np.random.default_rng(0), []
try:
    while len(arrays) < 100:
        arrays.append(random.random(1 << 17))
except MemoryError:
    print(len(arrays))
"""


@pytest.mark.needs("root")
def test_a_directory_with_room_for_less_than_the_limit_is_used(tmp_path):
    with small_disk(tmp_path / "small", 12 * _MIB) as small:
        done = ran(tmp_path, _SMALL, "--limit", "64MiB", "--spill", str(small))
    assert done.returncode == 0, done.stderr
    # Limit, directory, and a quarter of the limit for what has no room there.
    assert 68 < int(done.stdout) <= 92


def test_no_line_of_this_package_is_in_a_report(tmp_path):
    program = "import numpy as np\nx = np.arange(1 << 22)\nfor _ in range(9): x += 1"
    done = ran(tmp_path, program, "--report")
    lines = re.findall(r"of faults: (.*)", done.stderr)
    assert lines
    assert all("program.py" in line for line in lines), lines
