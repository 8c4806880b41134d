"""`paged_allocations` in programs that fork, or close their descriptors."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.needs("paging", "fork")


def _run(program: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


_FORKED = """
import os, sys
import numpy as np, pagemove
limit = pagemove.Budget(sys.argv[2]) if sys.argv[3:] else sys.argv[2]
other = pagemove.PagedMemory(nbytes=1 << 20, resident_limit=limit) if sys.argv[3:] else None
with pagemove.paged_allocations(limit, spill=sys.argv[1]):
    numbers = np.arange(1 << 20)
    pid = os.fork()
    if not pid:
        fresh = np.arange(1 << 20)
        with pagemove.paged_allocations("8MiB", spill=sys.argv[1]):
            other = np.arange(1 << 20)
        print(int(fresh[-1]), int(other[-1]), flush=True)
        numbers[0] = 1
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), int(numbers[0]))
"""


def test_in_a_forked_child_new_arrays_are_ordinary_and_evicted_ones_end_it(tmp_path):
    done = _run(_FORKED, tmp_path, "7MiB", "shared")
    assert done.stdout.split() == ["1048575", "1048575", "-11", "0"]
    assert "paged memory over the arrays of pagemove.paged_allocations" in done.stderr
    assert "spawn or forkserver" in done.stderr


def test_in_a_forked_child_evicted_ones_are_there_too(tmp_path):
    done = _run(_FORKED, tmp_path, "7MiB")
    assert done.stdout.split() == ["1048575", "1048575", "0", "0"]
    assert not done.stderr


def test_in_a_forked_child_arrays_that_fit_the_limit_are_there(tmp_path):
    done = _run(_FORKED, tmp_path, "8MiB")
    assert done.stdout.split() == ["1048575", "1048575", "0", "0"]
    assert not done.stderr


_FORKED_BEFORE = """
import os, sys
import numpy as np
import pagemove

with pagemove.paged_allocations("8MiB", spill=sys.argv[1]) as arena:
    numbers = np.arange(1 << 19)
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        right = bool((numbers == np.arange(1 << 19)).all())
        numbers.resize(1 << 20, refcheck=False)
        right = right and int(numbers[(1 << 19) - 1]) == (1 << 19) - 1
        os._exit(0 if right else 3)
    os.read(ready[0], 1)
    numbers += 1
    others = [np.full(1 << 19, i) for i in range(4)]
    stats = arena.stats()
    print(stats.paging.evicted > 0, stats.paging.resident_nbytes <= 8 << 20)
    os.write(go[1], b"x")
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    print(all(int(each.sum()) == i << 19 for i, each in enumerate(others)))
    print((numbers == np.arange(1 << 19) + 1).all())
"""


def test_a_child_has_what_was_there_when_it_was_forked_and_the_parent_evicts(tmp_path):
    done = _run(_FORKED_BEFORE, tmp_path)
    assert done.stdout.split() == ["True", "True", "0", "True", "True"], done.stderr


_FORKED_WITHIN = """
import os, sys, threading
import numpy as np
import pagemove
from pagemove.paging import allocations

held, go = threading.Event(), threading.Event()
new_arena = allocations.new_arena
def slow(*arguments):
    held.set()
    go.wait(60)
    return new_arena(*arguments)

arena = pagemove.paged_allocations("8MiB", spill=sys.argv[1])
if sys.argv[2] == "held":
    allocations.new_arena = slow
    thread = threading.Thread(target=arena.__enter__)
    thread.start()
    held.wait(60)
    allocations.new_arena = new_arena
else:
    arena.__enter__()
pid = os.fork()
if not pid:
    with arena:
        numbers = np.arange(1 << 20)
        print(arena.stats().arrays, int(numbers[-1]), flush=True)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
go.set()
"""


@pytest.mark.parametrize("how", ["held", "entered"])
def test_a_child_that_is_forked_meanwhile_has_an_arena_of_its_own(tmp_path, how):
    done = _run(_FORKED_WITHIN, tmp_path, how)
    assert done.stdout.split() == ["1", "1048575", "0"], done.stderr


_DESCRIPTORS_CLOSED = """
import os
import numpy as np, pagemove
with pagemove.paged_allocations("16MiB"):
    first = np.ones(1 << 20)
    os.closerange(3, 1024)
    assert first.sum() == 1 << 20
    others = [np.full(1 << 20, i, np.uint64) for i in range(6)]
    assert first.sum() == 1 << 20
    for i, each in enumerate(others):
        assert (each == i).all()
"""


def test_arrays_below_the_limit_outlive_all_descriptors():
    assert _run(_DESCRIPTORS_CLOSED).stderr == ""


_CLOSED_BEYOND = """
import os, time
import numpy as np, pagemove
with pagemove.paged_allocations("16MiB"):
    arrays = [np.full(1 << 20, i, np.uint64) for i in range(6)]
    os.closerange(3, 1024)
    while arrays[0][0] == 0:
        time.sleep(0.01)
"""


def test_arrays_beyond_it_do_not():
    with pytest.raises(subprocess.CalledProcessError) as found:
        _run(_CLOSED_BEYOND)
    assert found.value.returncode == -signal.SIGSEGV
    assert "the program has closed the descriptors of paged memory" in found.value.stderr
    assert "close only descriptors that the program has opened" in found.value.stderr
    # There is nothing to open, and nothing that could be saved.
    assert "open it" not in found.value.stderr
    assert "saved" not in found.value.stderr


_ABOUT_TO_EXEC = """
import os, subprocess, sys, time
import numpy as np, pagemove
with pagemove.paged_allocations("8MiB"):
    array = np.arange(3 << 20)
for _ in range(20):
    subprocess.run(["true"], preexec_fn=lambda: None, check=True)
print(int(array.sum()), flush=True)
pid = os.fork()
if not pid:
    os.closerange(3, 1024)
    time.sleep(float(sys.argv[1]))
    while True:
        array[::512].sum()
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.parametrize("pause", [0, 0.5])
def test_a_child_that_closes_descriptors_is_warned_only_if_it_goes_on(pause):
    done = _run(_ABOUT_TO_EXEC, str(pause))
    assert done.stdout.split() == [str(sum(range(3 << 20))), str(-signal.SIGSEGV)]
    said = done.stderr.count("the program has closed the descriptors of paged memory")
    assert said == (2 if pause else 1)  # unasked, and by who touches it


_TOUCHED_AT_ONCE = """
import os, sys
import numpy as np, pagemove
with pagemove.paged_allocations("8MiB"):
    array = np.arange(3 << 20)
for n in range(16):
    pid = os.fork()
    if not pid:
        os.dup2(os.open(f"{sys.argv[1]}/{n}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        os.closerange(3, 256)
        while True:
            array[::512].sum()
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_child_that_touches_them_at_once_is_always_told(tmp_path):
    done = _run(_TOUCHED_AT_ONCE, tmp_path)
    assert done.stdout.split() == [str(-signal.SIGSEGV)] * 16
    for said in tmp_path.iterdir():
        line, *_ = said.read_text().splitlines()
        assert "the program has closed the descriptors of paged memory" in line
        assert line.endswith(
            "close only descriptors that the program has opened, or fork before the arrays are "
            "made, or start workers by spawn or forkserver"
        )
    assert len(list(tmp_path.iterdir())) == 16


_MADE_AFTER = """
import os, sys, time
import numpy as np, pagemove
with pagemove.paged_allocations("8MiB") as arena:
    array = np.arange(3 << 20)
    def work():
        os.closerange(3, 256)
        while not arena._arena()[1].lost:
            time.sleep(0.001)
        fresh = np.arange(3 << 20)
        fresh += np.ones(3 << 20, int)
        return int(fresh.sum() - len(fresh) == sum(range(3 << 20)))
    if sys.argv[1] == "child":
        pid = os.fork()
        if not pid:
            os._exit(work())
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    else:
        print(work(), flush=True)
        os._exit(0)
"""


@pytest.mark.parametrize("where", ["child", "here"])
def test_what_is_made_after_that_is_ordinary_memory(where):
    assert _run(_MADE_AFTER, where).stdout.split() == ["1"]
