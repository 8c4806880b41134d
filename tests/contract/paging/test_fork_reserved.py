"""What a child does not inherit is nobody's there: its own arrays are never at those addresses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pagemove._native import pager
from support.slowness import patience

pytestmark = pytest.mark.needs("paging", "fork")
compressed = pytest.mark.skipif(pager.codec() is None, reason="no liblz4.so.1 nor libzstd.so.1")

_COUNT = 500_000  # 4,000,000 bytes: malloc maps it apart

_PRELUDE = f"""
import ctypes, os, resource, sys
import numpy as np, pagemove

COUNT = {_COUNT}
LIMIT = "1MiB"
how, kind = sys.argv[1:]
file = lambda mode, **options: pagemove.open_array(
    "kept.npy", mode=mode, resident_limit=LIMIT, **options
)

def memory(**options):
    region = pagemove.PagedMemory(nbytes=COUNT * 8, **{{"resident_limit": LIMIT, **options}})
    array = region.asarray(np.int64)
    array[:] = 7
    return array

def empty():
    array = pagemove.empty(COUNT, np.int64)
    array[:] = 7
    return array

def budget():
    shared = pagemove.Budget("2MiB")
    return memory(resident_limit=shared), pagemove.open_array("kept.npy", resident_limit=shared)

def arena():
    shared = pagemove.Budget("2MiB")
    with pagemove.paged_allocations(shared) as made:
        array = np.full(COUNT, 7)
    return array, made, memory(resident_limit=shared)

def handed():
    giver = pagemove.open_array("kept.npy", mode="r+", resident_limit=LIMIT)
    handover = pagemove.serve(giver, os.path.abspath("socket"))
    taken = pagemove.open_array(handover.url, resident_limit=LIMIT, mode="r+")
    assert (taken == 7).all()
    handover.wait(30)
    return taken, giver, handover

MAKE = {{
    "r": lambda: file("r", fork="message"),
    "r+": lambda: file("r+"),
    "c": lambda: file("c"),
    "message": lambda: memory(fork="message"),
    "descriptors": memory,
    "budget": budget,
    "arena": arena,
    "handed": handed,
    "empty": empty,
}}

made = MAKE[kind]()
array = made[0] if isinstance(made, tuple) else made
assert array[3] == array[-3] == 7

def in_child():
    # Of the same size, so that the kernel would choose the same addresses.
    regions = [
        pagemove.open_array("others.npy", mode="r+", lock=False, resident_limit=LIMIT)
        for _ in range(6)
    ]
    arrays = [np.full(COUNT, 99) for _ in range(6)] + [pagemove.empty(COUNT) for _ in range(6)]
    for each in regions:
        assert each[5] == 5
    for each in arrays:
        each[0] = 99
    return regions, arrays

def forked(act):
    sys.stdout.flush()
    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    if kind == "descriptors":
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, most))
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass
    pid = ctypes.PyDLL(None).fork() if how == "c" else os.fork()
    resource.setrlimit(resource.RLIMIT_NOFILE, (least, most))
    for each in taken:
        os.close(each)
    if not pid:
        status = 99
        try:
            status = act() or 0
        finally:
            sys.stdout.flush()
            os._exit(status & 0xFF)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def touch(what):
    def act():
        own = in_child()
        what()
    return act

def read():
    array[3]

def write():
    ctypes.memset(array.ctypes.data + (COUNT - 3) * 8, 0xFF, 8)

def of_all(what):
    return forked(lambda: -forked(touch(what))) if how == "twice" else -forked(touch(what))
"""

_SHARED = "compressed memory is inherited if it has a resident_limit of its own, and fork="
_REMEDIES = {
    "r": "fork='reopen' before the fork",
    "r+": "flush it in the parent and open it here",
    "c": "open it here without them",
    "message": _SHARED,
    "budget": _SHARED,
    "descriptors": "): Too many open files",
    "arena": "make arrays here",
    "handed": "hand it over again, by pagemove.serve in the parent",
    "empty": "make a new one here",
}
_COMPRESSED = {"message", "budget", "descriptors", "arena"}


def _run(program: str, how: str, kind: str, folder: Path) -> subprocess.CompletedProcess[str]:
    np.save(folder / "kept.npy", np.full(_COUNT, 7))
    np.save(folder / "others.npy", np.arange(_COUNT))
    return subprocess.run(
        [sys.executable, "-c", _PRELUDE + program, how, kind],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=False,
    )


@pytest.mark.parametrize("how", ["python", "c", "twice"])
@pytest.mark.parametrize(
    "kind",
    [pytest.param(each, marks=compressed if each in _COMPRESSED else ()) for each in _REMEDIES],
)
def test_a_touch_is_sigsegv_whatever_the_child_has_made(kind, how, tmp_path):
    done = _run("print(of_all(read), of_all(write), array[-3])", how, kind, tmp_path)
    assert (done.returncode, done.stdout) == (0, "11 11 7\n"), done.stderr
    said = [line for line in done.stderr.splitlines() if "raises SIGSEGV on access" in line]
    assert len(said) == 2
    assert all(_REMEDIES[kind] in line for line in said)
    wrong = {_REMEDIES[other] for other in _REMEDIES} - {_REMEDIES[kind]}
    assert not any(other in line for other in wrong for line in said)
    assert (np.load(tmp_path / "kept.npy") == 7).all()
    assert (np.load(tmp_path / "others.npy") == np.arange(_COUNT)).all()


_OF_CALLS = """
def call():
    try:
        pagemove.region_of(array).stats()
    except ValueError as error:
        print(error)
forked(call)
"""


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        pytest.param("budget", "if it has a resident_limit of its own", marks=compressed),
        ("handed", "hand it over again"),
    ],
)
def test_a_call_names_the_remedy_that_there_is(kind, remedy, tmp_path):
    done = _run(_OF_CALLS, "python", kind, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "belongs to the parent process" in done.stdout
    assert remedy in done.stdout
    assert "flush" not in done.stdout


def test_children_keep_what_they_have_closed_and_collected(tmp_path):
    program = """
import gc
address = array.ctypes.data
def act():
    global array, made
    array = made = None
    gc.collect()
    own = in_child()
    ctypes.memset(address + 24, 0xFF, 8)
print(-forked(act))
"""
    for kind in ("r+", "empty"):
        done = _run(program, "python", kind, tmp_path)
        assert (done.returncode, done.stdout) == (0, "11\n"), done.stderr
        assert "raises SIGSEGV on access" in done.stderr


_GIVEN_BACK = """
def is_reserved():
    for line in open("/proc/self/maps"):
        span, rights = line.split()[:2]
        start, end = (int(part, 16) for part in span.split("-"))
        if start <= address < end:
            return rights == "---p"
    return False

address = array.ctypes.data
print(forked(is_reserved))
array = made = None
print(forked(is_reserved))
"""


@pytest.mark.parametrize("kind", ["r+", "empty"])
def test_what_the_parent_has_freed_is_not_reserved(kind, tmp_path):
    done = _run(_GIVEN_BACK, "python", kind, tmp_path)
    assert (done.returncode, done.stdout) == (0, "1\n0\n"), done.stderr
