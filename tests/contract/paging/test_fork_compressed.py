"""Compressed memory, and arrays beyond the limit, in forked children: a copy of the moment."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from typing import Any

import pytest

from pagemove._native import pager
from support.programs import run_paged
from support.slowness import patience

pytestmark = [
    pytest.mark.needs("paging", "fork"),
    pytest.mark.skipif(pager.codec() is None, reason="no liblz4.so.1 nor libzstd.so.1"),
]

_PRELUDE = """
import ctypes, gc, os, resource, signal, sys, threading, time
import numpy as np, pagemove

MIB = 1 << 20

def forked(function, *arguments):
    sys.stdout.flush()  # or the child has what was printed here, and prints it too
    pid = os.fork()
    if not pid:
        status = 99
        try:
            status = function(*arguments) or 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return pid

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

rng = np.random.default_rng(1)
KINDS = (lambda n, i: np.arange(n) + i, lambda n, i: np.full(n, i), lambda n, i: random[i][:n])
random = rng.integers(0, 1 << 62, (8, 1 << 18))

def array_of(i, n=1 << 18):
    return KINDS[i % 3](n, i % 8)

def rss_of(region):
    # Of its mapping, in bytes, without what stays there and counts as stored.
    def stored():
        return region.stats().store["in_place_blocks"] * region.block_size

    total, inside, before = 0, False, stored()
    for line in open("/proc/self/smaps"):
        if line[0] in "0123456789abcdef":
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            inside = start < region.address + region.nbytes and end > region.address
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total - max(before, stored())
"""


def _run(program: str, *arguments: Any, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", _PRELUDE + program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=False,
    )
    assert not check or not done.returncode, done.stderr
    return done


_BOTH = """
from pagemove._native import pager
import warnings
warnings.simplefilter("ignore", pagemove.KernelFaultsWarning)
eval(sys.argv[1])
with pagemove.paged_allocations("8MiB") as arena:
    arrays = [np.array(array_of(i)) for i in range(16)]
    region = arena._arena()[1]

    def work(change, rounds):
        most = 0
        for done in range(rounds):
            for i, each in enumerate(arrays):
                if not (each == array_of(i) + done * change).all():
                    print("wrong", change, done, i)
                    return 1
                each += change
            most = max(most, rss_of(region))
        fresh = [np.full(1 << 18, i) for i in range(4)]
        arrays.extend(fresh)
        right = all((each == i).all() for i, each in enumerate(fresh))
        stats = arena.stats()
        print(right, most <= 8 * MIB, stats.paging.evicted > 100, stats.paging.resident_nbytes > 0)
        return 0

    children = [forked(work, change, 3) for change in (1, 1000)]
    work(-1, 4)
    print(*map(ended, children))
    del arrays[16:]
    print(all((each == array_of(i) - 4).all() for i, each in enumerate(arrays)))
"""


@pytest.mark.parametrize(
    "how", ["None", "pager.set_moves(False)", "pager.set_kernel_faults(False)"]
)
def test_both_have_the_contents_of_the_moment_and_go_on_within_the_limit(how):
    lines = _run(_BOTH, how).stdout.splitlines()
    assert lines.count("True True True True") == 3, lines
    assert lines[-2:] == ["0 0", "True"]


_WRITTEN = """
with pagemove.paged_allocations("4MiB") as arena:
    counters = np.zeros(2 * MIB, np.int64)
    stop = threading.Event()
    def count(first):
        # One after another: of two neighbours the first is ahead, by one at most.
        view = counters[first::4]
        while not stop.is_set():
            for at in range(0, len(view), 4096):
                view[at : at + 4096] += 1
    threads = [threading.Thread(target=count, args=(n,)) for n in range(3)]
    for thread in threads: thread.start()
    time.sleep(0.05)

    def look():
        bad = 0
        for first in range(3):
            view = counters[first::4]
            heads = view[::4096].copy()
            parts = view[: len(view) // 4096 * 4096].reshape(-1, 4096)
            # Writers were in one part each when it was forked.
            torn = int((parts != parts[:, :1]).any(axis=1).sum())
            steps = np.diff(heads)
            bad += torn > 1 or (steps > 0).any() or heads[0] - heads[-1] > 1
        time.sleep(0.05)
        again = int(counters.sum())
        bad += again != int(counters.sum())  # nobody counts here
        return bad
    print([ended(forked(look)) for _ in range(20)])
    stop.set()
    for thread in threads: thread.join()
"""


def test_a_child_forked_under_writers_sees_one_moment():
    assert _run(_WRITTEN).stdout.strip() == str([0] * 20)


_GENERATIONS = """
def right(arrays, change):
    return all((each == array_of(i) + change).all() for i, each in enumerate(arrays))

with pagemove.paged_allocations("4MiB") as arena:
    arrays = [np.array(array_of(i)) for i in range(8)]
    def live(depth):
        if not right(arrays, depth):
            return 1
        for each in arrays:
            each += 1
        if depth < 4 and ended(forked(live, depth + 1)):
            return 2
        if not right(arrays, depth + 1):
            return 3
        # Memory is freed, and used again, here as there.
        kept = arena.stats().nbytes
        while arrays:
            arrays.pop()
        gc.collect()
        again = [np.full(1 << 18, i) for i in range(8)]
        return 0 if kept and all((each == i).all() for i, each in enumerate(again)) else 4
    print(ended(forked(live, 0)), right(arrays, 0))
"""


def test_children_of_children():
    assert _run(_GENERATIONS).stdout.split() == ["0", "True"]


_KILLED = """
def counted():
    lengths = [len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task")]
    return *lengths, len(open("/proc/self/maps").readlines())

with pagemove.paged_allocations("4MiB") as arena:
    arrays = [np.array(array_of(i)) for i in range(8)]
    def die(n):
        if n % 2:
            arrays[n % 8] += 1
        os.kill(os.getpid(), signal.SIGKILL)
    def round():
        print(*{ended(forked(die, n)) for n in range(10)}, end=" ")
        for each in arrays:
            each += 1
            each -= 1
    for _ in range(3):
        round()
    before = counted()
    for _ in range(5):
        round()
    after = counted()
    # A fork may meet the thread that held the region for the last one still at it.
    print(before[0] == after[0], after[1] <= before[1] + 2 and after[2] <= before[2] + 8)
    print(all((each == array_of(i)).all() for i, each in enumerate(arrays)))
    print(arena.stats().paging.resident_nbytes <= 4 * MIB, rss_of(arena._arena()[1]) <= 4 * MIB)
"""


def test_children_that_are_killed_leave_nothing_in_the_parent():
    found = _run(_KILLED).stdout.split()
    assert found == ["-9"] * 8 + ["True"] * 5


_POOL = """
import multiprocessing, os, sys
import numpy as np

table = np.arange(3 << 20, dtype=np.float64)  # 24 MiB
other = np.sqrt(table)

def part(at):
    mine = np.ones(1 << 19)
    other[at : at + 1000] = 0
    return float(table[at : at + (1 << 20)].sum() + mine.sum())

if __name__ == "__main__":
    other += 1
    with multiprocessing.get_context("fork").Pool(3) as pool:
        found = pool.map(part, [n << 18 for n in range(9)])
    assert found == [
        float(np.arange(n << 18, (n << 18) + (1 << 20), dtype=np.float64).sum() + (1 << 19))
        for n in range(9)
    ]
    assert (other == np.sqrt(np.arange(3 << 20)) + 1).all()
    print("right")
"""


def test_a_pool_by_fork_works_in_a_program_that_is_run(tmp_path):
    done = run_paged(tmp_path, _POOL, "--limit", "16MiB")
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr
    assert "SIGSEGV" not in done.stderr


_REGION = """
region = pagemove.PagedMemory(nbytes=16 * MIB, resident_limit="2MiB", **eval(sys.argv[1]))
array = region.asarray(np.int64)
array[:] = np.arange(len(array))
def use():
    if not (array == np.arange(len(array))).all():
        return 1
    array[:] = 7
    stats = region.stats()
    right = (array == 7).all() and stats.evicted > 0 and stats.resident_nbytes <= 2 * MIB
    globals().pop("array")
    region.close()
    return 0 if right and region.closed else 2
print(ended(forked(use)), (array == np.arange(len(array))).all())
"""


_LIMITED = 'resident_limit="2MiB", **eval(sys.argv[1])'
_BUDGETED = "resident_limit=budget"


@pytest.mark.parametrize("limited", [_LIMITED, _BUDGETED])
def test_a_region_of_compressed_memory_is_there_too(limited):
    program = 'budget = pagemove.Budget("2MiB")\n' + _REGION.replace(_LIMITED, limited)
    assert _run(program, {}).stdout.split() == ["0", "True"]


@pytest.mark.parametrize("how", [{"fork": "message"}, {"resident_limit": "shared"}])
def test_what_is_not_inherited_says_so(how):
    program = _REGION
    if "resident_limit" in how:
        # Each would have all of it there.
        program = program.replace(_LIMITED, _BUDGETED)
        program = f"""
budget = pagemove.Budget("2MiB")
other = pagemove.PagedMemory(nbytes=1 << 20, resident_limit=budget)
{program}"""
    done = _run(program, how)
    assert done.stdout.split() == [str(-signal.SIGSEGV), "True"]
    assert "was opened before a fork and is not there in the forked process" in done.stderr


_BY_C = """
with pagemove.paged_allocations("4MiB") as arena:
    arrays = [np.array(array_of(i)) for i in range(8)]
    libc = ctypes.PyDLL(None)
    pid = libc.fork()
    if not pid:
        right = all((each == array_of(i)).all() for i, each in enumerate(arrays))
        os._exit(0 if right else 1)
    print(ended(pid))
    # Without any handler: a child is not to find zeros.
    addresses = [each.ctypes.data for each in arrays]
    pid = libc.syscall(ctypes.c_long(int(sys.argv[1])), signal.SIGCHLD, 0, 0, 0, 0)
    if not pid:
        for address in addresses:
            if ctypes.c_int64.from_address(address + 8).value == 0:
                os._exit(1)
        os._exit(2)
    print(ended(pid))
"""


def test_children_that_c_code_has_forked():
    clone = {"x86_64": 56, "aarch64": 220}.get(os.uname().machine)
    if clone is None:
        pytest.skip("the number of clone(2) here is not known")
    assert _run(_BY_C, clone).stdout.split() == ["0", str(-signal.SIGSEGV)]


_NO_DESCRIPTORS = """
with pagemove.paged_allocations("4MiB") as arena:
    arrays = [np.array(array_of(i)) for i in range(8)]
    taken = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        while True:
            taken.append(os.dup(0))
    except OSError:
        pass
    def touch():
        return int(arrays[0][5])
    def make():
        fresh = np.arange(1 << 18)
        return int(fresh[-1]) != (1 << 18) - 1
    print(ended(forked(touch)), ended(forked(make)))
    print(all((each == array_of(i)).all() for i, each in enumerate(arrays)))
"""


def test_where_a_child_cannot_serve_them_they_are_not_there():
    done = _run(_NO_DESCRIPTORS)
    assert done.stdout.split() == [str(-signal.SIGSEGV), "0", "True"], done.stderr
    assert "the arrays of pagemove.paged_allocations: Too many open files" in done.stderr


_HANDLER = """
with pagemove.paged_allocations("4MiB") as arena:
    arrays = [np.array(array_of(i)) for i in range(24)]
    region = arena._arena()[1]
    children = []
    def on_alarm(number, frame):
        pid = os.fork()
        if not pid:
            # Out of whatever the region was asked for when it was forked.
            raise KeyboardInterrupt
        children.append(pid)
    signal.signal(signal.SIGALRM, on_alarm)
    try:
        for n in range(40):
            signal.setitimer(signal.ITIMER_REAL, 0.0002 * (n % 20 + 1))
            region.evict()
            region.flush()
            for each in arrays[:4]:
                each += 0
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        status = not all((each == array_of(i)).all() for i, each in enumerate(arrays))
        fresh = np.arange(1 << 18)
        os._exit(int(status) + 2 * int(fresh[-1] != (1 << 18) - 1))
    found = {ended(pid) for pid in children}
    print(len(children) > 10, found)
"""


def test_forks_in_signal_handlers_of_calls_under_way():
    assert _run(_HANDLER).stdout.split() == ["True", "{0}"]


_WAITS = """
libc = ctypes.CDLL(None)
with pagemove.paged_allocations("4MiB") as arena:
    arrays = [np.array(array_of(i)) for i in range(8)]
    # A library that waits for its thread before each fork, and that thread for a fault. It was
    # loaded first, so its handler runs last.
    pid = forked(lambda: int(arrays[0][5]))
    status = ended(pid)
    print(status, all((each == array_of(i)).all() for i, each in enumerate(arrays)))
    pid = forked(lambda: int(not (arrays[1] == 1).all()))
    print(ended(pid))
"""

_LIBRARY = """
#include <pthread.h>
static const volatile char *touched;
static void *touch(void *unused)
{
    (void)unused;
    (void)*touched;
    return 0;
}
static void before(void)
{
    pthread_t thread;
    if (touched && !pthread_create(&thread, 0, touch, 0))
        pthread_join(thread, 0);
    touched = 0;
}
__attribute__((constructor)) static void watch(void) { pthread_atfork(before, 0, 0); }
void touch_before_fork(const char *address) { touched = address; }
"""


def test_a_handler_that_waits_for_a_fault_ends_and_the_child_has_nothing(tmp_path):
    source, library = tmp_path / "waits.c", tmp_path / "waits.so"
    source.write_text(_LIBRARY)
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-pthread", "-o", library, source], check=True, timeout=60
    )
    program = _WAITS.replace("libc = ctypes.CDLL(None)", f"library = ctypes.CDLL({str(library)!r})")
    program = program.replace(
        "    pid = forked(lambda: int(arrays[0][5]))",
        "    arena._arena()[1].evict()\n"
        "    library.touch_before_fork(ctypes.c_void_p(arrays[0].ctypes.data))\n"
        "    pid = forked(lambda: int(arrays[0][5]))",
    )
    done = _run(program)
    assert done.stdout.split() == [str(-signal.SIGSEGV), "True", "0"], done.stderr
    assert re.search("paged memory over the arrays .* is not there", done.stderr)


_PINNED = """
class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

def frame(address):
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        return int.from_bytes(os.pread(file.fileno(), 8, address // 4096 * 8), "little")

def mappings():
    start, end = region.address, region.address + region.nbytes
    lines = [line.split()[0].split("-") for line in open("/proc/self/maps")]
    return sum(int(low, 16) < end and int(high, 16) > start for low, high in lines)

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
SETUP, REGISTER = 425, 427
BLOCK = 65536
region = pagemove.PagedMemory(nbytes=64 * BLOCK, resident_limit=32 * BLOCK, block_size=BLOCK)
words = region.asarray(np.uint64)
words[: 8 * BLOCK // 8] = np.arange(8 * BLOCK // 8)
before = mappings()
assert ended(forked(lambda: 0)) == 0
ring = libc.syscall(SETUP, 2, (ctypes.c_char * 120)())
assert ring >= 0
address = region.address + BLOCK + 5 * 4096
vector = Vector(address, 2 * 4096)
assert libc.syscall(REGISTER, ring, 0, ctypes.byref(vector), 1) == 0, ctypes.get_errno()
pinned = frame(address), frame(address + 4096)
try:
    region.evict(0, 8 * BLOCK)
    print("left")
except OSError as error:
    print(type(error).__name__)
print(frame(address) == pinned[0], frame(address + 4096) == pinned[1])
print(region.stats().evicted == 7, mappings() == before)
words[BLOCK // 8 + 3] = 77
print((words[: 8 * BLOCK // 8] == np.arange(8 * BLOCK // 8)).sum() == BLOCK - 1)
assert libc.syscall(REGISTER, ring, 1, None, 0) == 0
os.close(ring)
region.evict(0, 8 * BLOCK)
print(region.stats().evicted, (words[: 8 * BLOCK // 8] == np.arange(8 * BLOCK // 8)).sum())
"""


@pytest.mark.skipif(pager.try_ring() != 0, reason="io_uring is refused here")
def test_a_page_that_is_pinned_for_io_stays_though_a_child_has_had_it():
    found = _run(_PINNED).stdout.split()
    assert found[1:] == ["True"] * 5 + ["15", str(65536 - 1)], found
