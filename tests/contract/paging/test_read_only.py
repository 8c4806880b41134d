"""Read-only means it: a store into a region of mode ``r`` never happens, whoever makes it."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pagemove import PagedMemory
from support import ChildFailed, child, fresh_interpreter
from support.paging import (
    KIB,
    MIB,
    Struck,
    load,
    paged,
    store,
    words,
    wrong_words,
)
from support.trouble import MOVE_IN, refused

pytestmark = pytest.mark.needs("paging")

_WORD = b"stored!!"
# Block size, length, limit: moved and copied blocks, huge pages, few frames.
_KINDS = [
    (64 * KIB, 2 * MIB, 512 * KIB),
    (64 * KIB, 2 * MIB, None),
    (4 * KIB, 256 * KIB, None),
    (4 * KIB, 256 * KIB, 64 * KIB),
    (2 * MIB, 16 * MIB, 12 * MIB),
]


def _touch(memory: PagedMemory, state: str, at: int) -> None:
    """Bring the block at an offset into a state that a store can find it in."""
    if state == "resident":
        load(memory.address + at)
    elif state == "read ahead":
        memory.prefetch(0, at + 1, wait=True)
    elif state == "standby":
        for each in range(0, memory.nbytes, memory.block_size):
            load(memory.address + each)
    elif state == "discarded":
        load(memory.address + at)
        ctypes.CDLL(None).madvise(ctypes.c_void_p(memory.address + at), 4096, 4)


STATES = ["absent", "resident", "read ahead", "standby", "discarded"]


def _stored(path: Path, kind: tuple[int, int, int | None], state: str) -> tuple[int, int]:
    block, _, limit = kind
    with paged(path, "r", block_size=block, resident_limit=limit) as memory:
        at = block + 4096 * (block > 4096)
        _touch(memory, state, at)
        with pytest.raises(Struck) as caught:
            store(memory.address + at, _WORD)
        assert wrong_words(_contents(memory)) is None
        return caught.value.signal, caught.value.address - memory.address - at


def _read_when_given_back(address: int) -> None:
    """Read what was refused, once the poison is gone: a system call does not die of it."""
    out, into = os.pipe()
    while True:
        try:
            os.write(into, (ctypes.c_char * 8).from_address(address))
            break
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
    os.close(out)
    os.close(into)


def _contents(memory: PagedMemory) -> np.ndarray:
    """Read all of it by system calls, which do not die of a page that is poisoned for a while."""
    fd = os.memfd_create("read")
    with memoryview(memory) as view:
        at = 0
        while at < len(view):
            try:
                at += os.pwrite(fd, view[at : at + 4096], at)
            except OSError as error:
                if error.errno != errno.EFAULT:
                    raise
    found = np.frombuffer(os.pread(fd, memory.nbytes, 0), np.uint64)
    os.close(fd)
    return found


@pytest.mark.needs("kernel_faults")
@pytest.mark.parametrize("kind", _KINDS, ids=lambda kind: f"{kind[0] >> 10}K-{kind[2]}")
@pytest.mark.parametrize("state", STATES)
def test_a_store_is_sigbus_and_changes_nothing(file, kind, state):
    path = file(kind[1])
    assert child(_stored, path, kind, state) == (signal.SIGBUS, 0)


@pytest.mark.needs("kernel_faults")
def test_the_message_says_where_and_what_to_do(file):
    path = file(16 * 64 * KIB)
    code = """
        import ctypes, os, sys
        import pagemove
        a = pagemove.open_array(sys.argv[1], dtype="u1")
        out, into = os.pipe()
        os.write(into, b"12345678")
        libc = ctypes.CDLL(None, use_errno=True)
        a[70_000]
        got = libc.read(out, ctypes.c_void_p(a.ctypes.data + 70_000), 8)
        print(got, ctypes.get_errno())
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["-1", str(errno.EFAULT)]
    for part in (str(path), "bytes 69632 to 73728", "read-only", "'r+'", "'c'"):
        assert part in done.stderr


@pytest.mark.needs("kernel_faults")
def test_advice_that_would_write_is_refused(file):
    with paged(file(64 * 64 * KIB), "r") as memory:
        libc = ctypes.CDLL(None, use_errno=True)
        populate_write = 23
        address = ctypes.c_void_p(memory.address)
        assert libc.madvise(address, ctypes.c_size_t(MIB), populate_write) == -1
        # What the kernel calls it depends on whether it meets the poison itself.
        ehwpoison = 133  # which errno has no name for before Python 3.14
        assert ctypes.get_errno() in (errno.EFAULT, ehwpoison)
        _read_when_given_back(memory.address)
        assert wrong_words(words(memory)) is None


@pytest.mark.needs("kernel_faults")
def test_a_system_call_is_efault_and_readers_go_on(file):
    assert child(_called, file(64 * 64 * KIB), deadline=40) is None


def _called(path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    zero = os.open("/dev/zero", os.O_RDONLY)
    with paged(path, "r", block_size=64 * KIB, resident_limit=MIB) as memory:
        array = words(memory)
        stop = threading.Event()
        wrong: list[str] = []
        right = np.fromfile(path, np.uint64)

        def read() -> None:
            # Not the page that is stored to: that one is poisoned for a moment.
            while not stop.is_set():
                if not np.array_equal(words(memory)[8192 * 2 :], right[8192 * 2 :]):
                    wrong.append("wrong")

        reader = threading.Thread(target=read)
        reader.start()
        for at in range(100):
            place = ctypes.c_void_p(memory.address + at % 32 * 4096)
            assert libc.read(zero, place, 64) == -1
            assert ctypes.get_errno() == errno.EFAULT
        stop.set()
        reader.join()
        assert not wrong
        memory.evict()
        for at in range(32):
            _read_when_given_back(memory.address + at * 4096)
        assert np.array_equal(array, right)
        del array
    os.close(zero)


@pytest.mark.needs("kernel_faults")
def test_more_pages_are_refused_at_once_than_are_remembered(file):
    """Each is given back, also those that make place for others."""
    assert child(_refused_at_once, file(64 * 64 * KIB), deadline=60) == []


def _refused_at_once(path: Path) -> list[int]:
    count = 48
    zero = os.open("/dev/zero", os.O_RDONLY)
    libc = ctypes.CDLL(None)
    with paged(path, "r", block_size=64 * KIB) as memory:
        start = threading.Barrier(count)

        def trespass(page: int) -> None:
            place = ctypes.c_void_p(memory.address + page * 4096)
            for _ in range(20):
                start.wait()
                assert libc.read(zero, place, 8) == -1

        threads = [threading.Thread(target=trespass, args=(page,)) for page in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        limit = time.monotonic() + 5
        pages = list(range(count))
        while pages and time.monotonic() < limit:
            pages = [page for page in pages if not _is_readable(memory.address + page * 4096)]
        return pages


def _is_readable(address: int) -> bool:
    try:
        load(address)
    except Struck:
        return False
    return True


@pytest.mark.needs("kernel_faults", "paging_by_move")
@pytest.mark.parametrize("kind", _KINDS, ids=lambda kind: f"{kind[0] >> 10}K-{kind[2]}")
def test_when_one_was_refused_no_store_can_come_in_between(file, kind):
    """Blocks are not moved in any more, which protects them an instant later only."""
    assert child(_wary, file(kind[1]), kind, deadline=40) is None


def _wary(path: Path, kind: tuple[int, int, int | None]) -> str | None:
    block, _, limit = kind
    how = {"block_size": block, "resident_limit": limit, "store_timeout": 0.5}
    with paged(path, "r", **how) as memory:
        with pytest.raises(Struck):
            store(memory.address + block, _WORD)
        _read_when_given_back(memory.address + block)
        memory.evict()
        with refused(MOVE_IN, code=errno.EIO):
            return wrong_words(words(memory)) or wrong_words(words(memory))


def test_a_program_that_does_not_expect_it_dies(file):
    def scribble(path: Path) -> None:
        with paged(path, "r") as memory:
            ctypes.memset(memory.address + 100, 7, 8)

    path = file(4 * 64 * KIB)
    before = path.read_bytes()
    with pytest.raises(ChildFailed) as caught:
        child(scribble, path)
    assert caught.value.signal == signal.SIGBUS
    assert path.read_bytes() == before


def test_it_is_so_without_moves(file):
    path = file(16 * 64 * KIB)
    printed = fresh_interpreter(
        """
        import ctypes, os, sys
        import numpy as np, pagemove
        from pagemove._native import pager
        pager.set_moves(False)
        a = pagemove.open_array(sys.argv[1], dtype="u1", resident_limit="256KiB")
        libc = ctypes.CDLL(None, use_errno=True)
        zero = os.open("/dev/zero", os.O_RDONLY)
        for at in (0, 70_000, 300_000):
            a[at - at % 65536]
            print(libc.read(zero, ctypes.c_void_p(a.ctypes.data + at), 8))
        pagemove.region_of(a).evict()
        print(all(
            np.array_equal(a[at : at + 65536], np.fromfile(sys.argv[1], "u1", 65536, offset=at))
            for at in range(2 * 65536, len(a) - 12 * 65536, 65536)
        ))
        """,
        str(path),
    )
    assert printed.split() == ["-1", "-1", "-1", "True"]
