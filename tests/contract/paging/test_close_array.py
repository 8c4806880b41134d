"""`PagedArray.close`: all is saved and freed, and whoever is late learns what has happened."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import itertools
import mmap
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import pagemove
from pagemove.errors import StoreError
from pagemove.paging import closing
from pagemove.stores import CallableStore, FileStore
from pagemove.testing import Fault, FaultyStore
from support.children import child, fork
from support.helpers import has_ended, helpers
from support.paging import Struck, load, store
from support.slowness import patience
from support.threads import thread_names, wait_for

pytestmark = pytest.mark.needs("paging")

ITEMS = 100_000
_BEGIN = """
import ctypes, os, pickle, signal, sys, threading
import numpy as np, pagemove
path, mode = sys.argv[1:3]
array = pagemove.open_array(path, mode=mode, resident_limit="1MiB")
part, plain, odd = array[7:], np.asarray(array), array[::-1][:10]
bytes_of = memoryview(plain)
assert array[50_000] == 50_000
def status_of(function):
    pid = os.fork()
    if not pid:
        function()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.save(tmp_path / "numbers.npy", np.arange(ITEMS))
    return tmp_path / "numbers.npy"


def ran(path: Path, code: str, mode: str = "r", *options: str) -> tuple[int, str, str]:
    """Run it with an array open; return the status, and what it prints."""
    done = subprocess.run(
        [sys.executable, *options, "-c", _BEGIN + code, path, mode],
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=False,
    )
    return done.returncode, done.stdout.strip(), done.stderr


def said_of(path: Path, mode: str) -> str:
    return f"paged memory over {path}, mode '{mode}', was closed by PagedArray.close()"


class TestWhoeverIsLate:
    """Touches memory that is not there, and is told why."""

    @pytest.mark.parametrize("mode", ["r", "r+", "c"])
    @pytest.mark.parametrize(
        "touch", ["array[3]", "part[50_000]", "plain.sum()", "odd[2]", "bytes_of[5]"]
    )
    def test_by_any_view(self, path: Path, mode: str, touch: str) -> None:
        status, printed, message = ran(path, f"array.close()\nprint(1, flush=True)\n{touch}", mode)
        assert (status, printed) == (-11, "1")
        assert message.count("pagemove: ") == 1
        assert said_of(path, mode) in message
        assert "copy what is needed" in message

    def test_a_handler_that_was_there_has_its_turn(self, path: Path) -> None:
        status, _, message = ran(path, "array.close()\npart[5]", "r", "-X", "faulthandler")
        assert status == -11
        assert message.index(said_of(path, "r")) < message.index("Fatal Python error")

    def test_a_system_call_fails(self, path: Path) -> None:
        code = """
array.close()
try:
    os.write(os.open(os.path.dirname(path), os.O_TMPFILE | os.O_RDWR), bytes_of)
except OSError as error:
    print(error.errno)
"""
        assert ran(path, code)[:2] == (0, str(errno.EFAULT))

    def test_in_a_forked_child(self, path: Path) -> None:
        code = "array.close()\nprint(status_of(lambda: part[5]), array.closed)"
        status, printed, message = ran(path, code, "r+")
        assert (status, printed) == (0, "-11 True")
        assert message.count(said_of(path, "r+")) == 1

    def test_in_a_forked_child_that_has_the_arrays_only(self, path: Path) -> None:
        """Its addresses are reserved there too, after the parent has given them back."""
        code = """
array.close()
import mmap
def touch():
    for _ in range(64):
        mmap.mmap(-1, array.nbytes)
    part[5]
print(status_of(touch))
"""
        assert ran(path, code)[:2] == (0, "-11")

    def test_of_several_the_right_one(self, path: Path, tmp_path: Path) -> None:
        np.save(tmp_path / "other.npy", np.arange(ITEMS))
        code = """
other = pagemove.open_array(path.replace("numbers", "other"))
third = pagemove.open_array(path)
other.close(), array.close()
del array, part, plain, odd, bytes_of
third.close()
other[5]
"""
        status, _, message = ran(path, code)
        assert status == -11
        assert message.count("was closed by") == 1
        assert said_of(tmp_path / "other.npy", "r") in message

    def test_a_thread_that_waits_for_its_block(self, path: Path) -> None:
        """It ends by the message, and nothing hangs."""
        code = """
from pagemove.testing import Fault, FaultyStore
slow = FaultyStore(path, faults=[Fault("read", first=1, count=0, delay=2.0)])
late = pagemove.PagedMemory(slow, prefetch="off", name="late").asarray("u1")
late = late.view(pagemove.PagedArray)
late[0]
to = ctypes.create_string_buffer(8)
copy = ctypes.CDLL(None).memcpy
copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
waiting = threading.Thread(target=copy, args=(to, late.ctypes.data + (1 << 18), 8))
waiting.start()
while late.region.stats().faults < 2:
    pass
late.close()
waiting.join()
print("not reached")
"""
        status, printed, message = ran(path, code)
        assert (status, printed) == (-11, "")
        assert said_of(path, "r") in message


def mapped_at(address: int) -> str | None:
    """Return the permissions of what is mapped there."""
    for each in pagemove.vmas():
        if each.start <= address < each.end:
            return each.permissions
    return None


def handler() -> int:
    """Return what SIGSEGV does, as the kernel has it."""
    found = (ctypes.c_uint64 * 32)()
    assert ctypes.CDLL(None).sigaction(11, None, found) == 0
    return found[0]


def freed(path: Path, mode: str) -> None:
    before = set(os.listdir("/proc/self/fd")), sorted(thread_names().values()), handler()
    array = pagemove.open_array(path, mode=mode, resident_limit="512KiB")  # type: ignore[arg-type]
    region, address, total = array.region, array.ctypes.data, int(array.sum())
    assert region is not None
    assert total == ITEMS * (ITEMS - 1) // 2
    assert sorted(thread_names().values()) != before[1]
    array.close()
    # That of SIGTERM is of the process.
    wait_for(
        lambda: (
            [name for name in sorted(thread_names().values()) if name != "pagemove-ending"]
            == before[1]
        )
    )
    assert set(os.listdir("/proc/self/fd")) == before[0]
    assert mapped_at(address) == "---p"
    assert handler() != before[2]
    array.close()
    assert array.closed
    assert region.closed
    assert array[5:].closed
    del array  # though somebody has the region still
    assert mapped_at(address) is None
    assert handler() == before[2]


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_everything_is_freed(path: Path, mode: str) -> None:
    child(freed, path, mode, deadline=60)


def reserved(path: Path) -> None:
    array = pagemove.open_array(path)
    view, address, length = array[-5:], array.ctypes.data & -4096, array.nbytes & -4096
    array.close()
    del array
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    fixed = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x100000  # MAP_FIXED_NOREPLACE
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    for _ in range(20):  # nor does anything that chooses its own address land there
        other = pagemove.open_array(path)
        assert not np.shares_memory(other, view)
        del other
    failed = ctypes.c_void_p(-1).value
    assert libc.mmap(address, length, protection, fixed, -1, 0) == failed
    assert ctypes.get_errno() == errno.EEXIST
    del view
    assert libc.mmap(address, length, protection, fixed, -1, 0) == address


def test_the_addresses_stay_reserved_as_long_as_there_is_a_view(path: Path) -> None:
    child(reserved, path)


def stored_meanwhile(path: Path, number: int) -> tuple[list[int], list[int]]:
    """Threads store ascending numbers until they are told; return the last, and what is saved."""
    array = pagemove.open_array(path, mode="r+", resident_limit="512KiB", writeback_interval=None)
    address, last = array.ctypes.data, [0] * number
    struck_by: list[int] = []

    def write(which: int) -> None:
        for value in itertools.count(1):
            try:
                store(address + which * 80_000, value.to_bytes(8, "little"))
            except Struck as struck:
                struck_by.append(struck.signal)
                return
            last[which] = value

    with pytest.raises(IndexError):
        _ = array[ITEMS]
    writers = [threading.Thread(target=write, args=(which,)) for which in range(number)]
    for writer in writers:
        writer.start()
    while min(last) < 100:
        time.sleep(0)
    array.close()
    for writer in writers:
        writer.join()
    assert struck_by == [11] * number
    saved = np.load(path)
    return last, [int(saved[which * 10_000]) for which in range(number)]


@pytest.mark.parametrize("again", range(5))
def test_what_was_stored_before_the_signal_is_saved(path: Path, again: int) -> None:
    last, saved = child(stored_meanwhile, path, 2, deadline=60)
    assert last == saved


class TestSaving:
    """Nothing is closed that cannot be saved."""

    def test_changes_are_in_the_file(self, path: Path) -> None:
        array = pagemove.open_array(path, mode="r+", resident_limit="512KiB")
        array[:] = -1
        array.close()
        assert (np.load(path) == -1).all()
        # The file is not locked any more.
        pagemove.open_array(path, mode="r+").close()

    def test_private_changes_are_not(self, path: Path) -> None:
        array = pagemove.open_array(path, mode="c", resident_limit="512KiB")
        array[:] = -1
        array.close()
        assert int(np.load(path)[5]) == 5

    @pytest.mark.parametrize("operation", ["write", "flush"])
    def test_a_store_that_fails_leaves_it_open(self, path: Path, operation: str) -> None:
        faulty = FaultyStore(
            path, writable=True, faults=[Fault(operation, count=3, errno=errno.ENOSPC)]
        )
        array = pagemove.open_array(
            faulty, mode="r+", store_timeout=0.0001, writeback_interval=None
        )
        array[5] = -1
        with pytest.raises(StoreError) as failed:
            array.close()
        assert failed.value.errno == errno.ENOSPC
        assert not array.closed
        array[6] = -2  # it is there as before
        while not array.closed:
            with contextlib.suppress(StoreError):
                array.close()
        assert np.load(path)[4:8].tolist() == [4, -1, -2, 7]
        faulty.close()

    def test_what_is_stored_while_it_closes_and_cannot_be_saved(self, path: Path) -> None:
        assert child(failed_late, path) == [-1, -2]


def failed_late(path: Path) -> list[int]:
    # More often than one saves in so short a time.
    faulty = FaultyStore(path, writable=True, faults=[Fault("write", count=50, errno=errno.ENOSPC)])
    array = pagemove.open_array(faulty, mode="r+", store_timeout=0.0001, writeback_interval=None)
    region = array.region
    assert region is not None
    array[5], array[50_000], address = -1, -2, array.ctypes.data
    # As if both had been stored after the first flush.
    region._save_before_close = lambda: None  # type: ignore[method-assign]
    with pytest.raises(StoreError) as failed:
        array.close()
    assert failed.value.errno == errno.ENOSPC
    assert not array.closed
    with pytest.raises(Struck):
        load(address)
    with pytest.raises(ValueError, match=r"closed by PagedArray.close\(\).*close it again"):
        pagemove.prefetch(array, wait=True)
    while not array.closed:
        with contextlib.suppress(StoreError):
            array.close()
    return [int(each) for each in np.load(path)[[5, 50_000]]]


class TestWhoIsInTheWay:
    """Is named."""

    def test_pins(self, path: Path) -> None:
        array = pagemove.open_array(path, dtype=None)
        start = array[1000:].ctypes.data - array.region.address  # type: ignore[union-attr]
        with pagemove.pinned(array[1000:2000]):
            with pytest.raises(BufferError, match=f"bytes {start} to {start + 8000} of the region"):
                array.close()
            assert int(array[1500]) == 1500
        array.close()
        assert array.closed

    def test_a_hand_over(self, path: Path) -> None:
        array = pagemove.open_array(path)
        with pagemove.serve(array, ("127.0.0.1", 0)) as served:
            with pytest.raises(BufferError, match=f"handed over at {served.url}"):
                array.close()
            assert int(array[1500]) == 1500
        array.close()


OF_ARRAYS = {
    "tofile": lambda array: array.tofile(array.filename.with_name("other")),
    "dumps": lambda array: array.dumps(),
    "dump": lambda array: array.dump(io.BytesIO()),
    "save": lambda array: pagemove.save(array.filename.with_name("other.npy"), array),
    "pinned": lambda array: pagemove.pinned(array[5:]).__enter__(),
    "pinned memoryview": lambda array: pagemove.pinned(memoryview(array)).__enter__(),
    "prefetch": lambda array: pagemove.prefetch(array[::2]),
    "prefetch rows": lambda array: pagemove.prefetch(array, [5]),
    "take": lambda array: pagemove.take(np.asarray(array), [5]),
    "copy": lambda array: pagemove.reference(array, copy=True),
}


def once_closed(array: pagemove.PagedArray, method: str) -> str:
    array.close()
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the caller looks at it)
        OF_ARRAYS[method](array)
    return str(caught.value)


class TestWhatStays:
    """Copies, results, references."""

    def test_results_and_pickles(self, path: Path) -> None:
        array = pagemove.open_array(path)
        doubled, pickled, text = array * 2, pickle.dumps(array[5:]), repr(array)
        array.close()
        assert int(doubled[7]) == 14
        assert "99999" in text
        there = pickle.loads(pickled)
        assert int(there[0]) == 5
        with pytest.raises(ValueError, match="closed"):
            pickle.dumps(array)
        with pytest.raises(ValueError, match="closed"):
            pagemove.reference(array)

    def test_what_it_says_of_itself(self, path: Path) -> None:
        array = pagemove.open_array(path)
        matrix = array[:99_999].reshape(3, -1)
        assert not array.closed
        array.close()
        assert repr(array) == str(array) == f"<closed PagedArray, shape ({ITEMS},), int64>"
        assert f"{matrix}" == "<closed PagedArray, shape (3, 33333), int64>"
        assert array.filename == path
        assert "closed PagedMemory" in repr(array.region)
        for method in (array.flush, array.prefetch):
            with pytest.raises(ValueError, match="closed"):
                method()

    @pytest.mark.parametrize("method", OF_ARRAYS)
    def test_what_needs_items_raises(self, path: Path, method: str) -> None:
        array = pagemove.open_array(path)
        assert "closed" in child(once_closed, array, method)

    def test_a_copy_has_nothing_to_close(self, path: Path) -> None:
        copy = np.array(pagemove.open_array(path), subok=True)
        assert isinstance(copy, pagemove.PagedArray)
        copy.close()
        assert not copy.closed
        assert int(copy[5]) == 5

    def test_arrays_that_were_unpickled_share_a_region(self, path: Path) -> None:
        array = pagemove.open_array(path)
        one, other = (pickle.loads(pickle.dumps(array[at:])) for at in (5, 50_000))
        assert (int(one[0]), int(other[0])) == (5, 50_000)
        one.close()
        assert not one.closed
        assert (int(one[0]), int(other[0])) == (5, 50_000)


def test_a_context_manager_closes(path: Path) -> None:
    with pagemove.open_array(path, mode="r+") as array:
        array[5] = -1
    assert array.closed
    with pytest.raises(KeyError), pagemove.memmap(path, "i8", "r") as mapped:
        raise KeyError
    assert mapped.closed
    assert int(np.load(path)[5]) == -1


def test_other_regions_over_the_file_are_untouched(path: Path) -> None:
    budget = pagemove.Budget("4MiB")
    one, other = (pagemove.open_array(path, resident_limit=budget) for _ in range(2))
    assert int(one[5] + other[5]) == 10
    one.close()
    assert int(other[ITEMS - 1]) == ITEMS - 1
    assert len(budget.stats().regions) == 1


class TestOfOneFile:
    """Arrays that share a region: it ends with the last of them that was taken."""

    @pytest.fixture
    def arrays(self, tmp_path: Path) -> Iterator[pagemove.PagedArrays]:
        names = {name: np.arange(ITEMS) + at for at, name in enumerate("abc")}
        np.savez(tmp_path / "three.npz", **names)  # type: ignore[arg-type]
        with pagemove.open_arrays(tmp_path / "three.npz", prefetch="off") as arrays:
            yield arrays

    def test_others_stay(self, arrays: pagemove.PagedArrays) -> None:
        a, b = arrays["a"], arrays["b"]
        assert int(a.sum() - b.sum()) == -ITEMS
        region = b.region
        assert region is not None
        before = region.stats().resident_nbytes
        a.close()
        assert (a.closed, b.closed) == (True, False)
        assert region.stats().resident_nbytes <= before - a.nbytes + 2 * region.block_size
        a.close()  # which takes nothing from b
        assert int(b[5]) == 6
        assert int(a[5]) == 5  # its own data still, read again
        b[5:].close()
        assert (a.closed, b.closed, region.closed) == (True, True, True)

    def test_it_can_be_taken_again(self, arrays: pagemove.PagedArrays) -> None:
        a = arrays["a"]
        a.close()
        again = arrays["a"]
        assert (a.closed, again.closed) == (True, False)
        assert int(again[5]) == 5
        again.close()
        arrays.close()

    def test_one_that_was_closed_and_taken_again_is_open(
        self, arrays: pagemove.PagedArrays
    ) -> None:
        a, b = arrays["a"], arrays["b"]
        a.close()
        assert not arrays["a"].closed
        b.close()
        assert int(arrays["a"][5]) == 5

    def test_one_without_bytes(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "some.npz", a=np.arange(ITEMS), empty=np.empty((0, 3)), b=np.ones(9))
        arrays = pagemove.open_arrays(tmp_path / "some.npz")
        a, empty, b = arrays["a"], arrays["empty"], arrays["b"]
        assert not empty.closed
        empty.close()
        assert [array.closed for array in (a, empty, b)] == [False] * 3
        a.close()
        b.close()
        assert [array.closed for array in (a, empty, b)] == [True] * 3

    def test_taken_twice_it_is_one(self, arrays: pagemove.PagedArrays) -> None:
        a, again, _b = arrays["a"], arrays["a"], arrays["b"]
        a.close()
        assert again.closed

    def test_pins_of_others_are_not_in_the_way(self, arrays: pagemove.PagedArrays) -> None:
        a, b = arrays["a"], arrays["b"]
        with pagemove.pinned(b[:10]):
            a.close()
            with pytest.raises(BufferError, match="pinned"):
                b.close()
            assert not b.closed
        assert int(b[0]) == 1


def counted(offset: int, length: int) -> bytes:
    return bytes(index % 251 for index in range(offset, offset + length))


def of_a_helper() -> tuple[list[int], list[int]]:
    array = pagemove.open_array(CallableStore(counted, 1 << 20), dtype="u1")
    found = [int(array[at]) for at in (5, 600_000)]
    (process,) = helpers()
    array.close()
    wait_for(lambda: has_ended(process))
    with pytest.raises(Struck):
        load(array.ctypes.data)
    return found, helpers()


def test_a_helper_process_ends() -> None:
    assert child(of_a_helper, deadline=60) == ([5, 600_000 % 251], [])


def in_children(path: Path) -> dict[str, int]:
    """Close an inherited array in a child, and one in the parent while a child has it."""
    array = pagemove.open_array(path)
    found = {}
    for touched in (False, True):
        pid = fork()
        if not pid:
            ok = not touched or int(array[5]) == 5
            array.close()
            ok &= array.closed
            try:
                load(array.ctypes.data)
                ok = False
            except Struck:
                pass
            os._exit(0 if ok else 1)
        found[f"child, touched {touched}"] = os.waitpid(pid, 0)[1]
    assert int(array[7]) == 7
    ready, go = os.pipe(), os.pipe()
    pid = fork()
    if not pid:
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        os._exit(0 if int(array[9]) == 9 and not array.closed else 1)
    os.read(ready[0], 1)
    array.close()
    os.write(go[1], b"x")
    found["parent"] = os.waitpid(pid, 0)[1]
    return found


@pytest.mark.needs("fork")
def test_forked_children_have_arrays_of_their_own(path: Path) -> None:
    assert set(child(in_children, path, deadline=60).values()) == {0}


def by_many_threads(path: Path) -> int:
    arrays: list[npt.NDArray[np.int64]] = [
        pagemove.open_array(path, resident_limit="512KiB") for _ in range(8)
    ]
    begin = threading.Barrier(8)

    def end(first: int) -> None:
        begin.wait()
        for at in range(8):
            arrays[(first + at) % 8].close()  # type: ignore[attr-defined]

    many = [threading.Thread(target=end, args=(first,)) for first in range(8)]
    for each in many:
        each.start()
    for each in many:
        each.join()
    return sum(each.closed for each in arrays)  # type: ignore[attr-defined]


def test_closed_by_many_threads_at_once(path: Path) -> None:
    assert child(by_many_threads, path, deadline=60) == 8


class Late:
    """Has a thread that closes go on when another thread has closed it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waits, self.go_on = threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None
        save = pagemove.PagedMemory._save_before_close

        def late(region: pagemove.PagedMemory) -> None:
            if threading.current_thread() is self.thread:
                self.waits.set()
                self.go_on.wait(0.5)  # in vain where the other waits for this one
            save(region)

        monkeypatch.setattr(pagemove.PagedMemory, "_save_before_close", late)

    def close(self, one: Any) -> list[BaseException]:
        """Close it by two threads; return what the late one has raised."""
        raised: list[BaseException] = []

        def run() -> None:
            try:
                one.close()
            except BaseException as error:
                raised.append(error)

        self.thread = threading.Thread(target=run)
        self.thread.start()
        assert self.waits.wait(30)
        one.close()
        self.go_on.set()
        self.thread.join()
        return raised


def test_closed_by_another_thread_meanwhile(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = pagemove.open_array(path, mode="r+")
    array[5] = -5
    assert Late(monkeypatch).close(array) == []
    assert array.closed
    assert np.load(path)[5] == -5


def with_locks_held(path: Path) -> int:
    """Fork while a thread has the locks; return the status of a child that needs them."""
    budget = pagemove.Budget("8MiB")
    np.savez(path.with_name("two.npz"), a=np.arange(ITEMS), b=np.arange(ITEMS))
    arrays = pagemove.open_arrays(path.with_name("two.npz"), resident_limit="1MiB")
    array = arrays["a"]
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with budget._setting, closing._sharing:
            held.set()
            done.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30)
    pid = fork()
    if not pid:
        budget.resize("16MiB")
        array.close()
        os._exit(7 if budget.limit == 16 << 20 and array.closed else 1)
    done.set()
    holder.join()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_fork_while_a_thread_has_the_locks(path: Path) -> None:
    assert child(with_locks_held, path, deadline=30) == 7


def test_a_store_of_ones_own_stays_open(path: Path) -> None:
    with FileStore(path) as source:
        pagemove.open_array(source).close()
        magic = bytearray(6)
        source.read_into(0, magic)
        assert magic == b"\x93NUMPY"
