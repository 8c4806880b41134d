"""Limits of the process that are met: the message names them, class and errno stay, nothing leaks.

All in children, with their own limits. Descriptors and threads are counted after each refusal,
mappings after each round of refusals. The C library keeps a stack and a heap for as many threads as
have ever run at once, and how many of the pager's do is up to the scheduler: those stop coming,
while a mapping that is lost at each refusal, or at one, is lost in every round.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import gc
import mmap
import os
import re
import resource
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import pagemove
from pagemove import PAGE_SIZE, Memory, PagedMemory, limits
from pagemove.errors import StoreError
from support import child, wait_for
from support.children import newborn
from support.helpers import Reined, helpers, numbered, reined, touch
from support.paging import expected, make_file
from support.threads import passing_threads
from support.trouble import COPY, MOVE_IN, refused

# Each goes through the values that a limit can have.
pytestmark = [pytest.mark.needs("paging", "fork"), pytest.mark.slow]

_NBYTES = 16 * PAGE_SIZE
_LINES = 2
_OPTIONS: dict[str, Any] = {"block_size": PAGE_SIZE, "resident_limit": 8 * PAGE_SIZE}
# Of nobody's, so that its threads are all there are.
_USER = 61_234
#: In so many rounds there is one in which no more threads than ever run at once.
_ROUNDS = 10

_libc = ctypes.CDLL(None, use_errno=True)
_FAILED = 2**64 - 1


class Refused(NamedTuple):
    """What was raised, at which value of the limit."""

    limit: int
    kind: str
    errno: int | None
    text: str


def _file(path: Path, mode: str) -> Callable[[], None]:
    return functools.partial(_open_file, path, mode)


def _open_file(path: Path, mode: str) -> None:
    array = pagemove.open_array(path, dtype=np.uint64, mode=mode, **_OPTIONS)
    assert np.array_equal(array, expected(_NBYTES))


def _helper(store: Reined) -> Callable[[], None]:
    return functools.partial(_open_in_helper, store)


def _open_in_helper(store: Reined) -> None:
    with PagedMemory(store, mode="r+", **_OPTIONS) as region:
        assert np.array_equal(region.asarray(np.uint64), numbered(_NBYTES))


def _counted() -> tuple[int, int]:
    """Count descriptors and threads of this process."""
    return len(os.listdir("/proc/self/fd")), len(passing_threads())


def _mappings() -> int:
    return Path("/proc/self/maps").read_text().count("\n")


def _try(work: Callable[[], None], limit: int) -> Refused | None:
    try:
        work()
    except (OSError, MemoryError) as error:
        return Refused(limit, type(error).__name__, getattr(error, "errno", None), str(error))
    return None


def _round(number: int, work: Callable[[], None], values: list[int]) -> list[Refused]:
    """Do the work at each value of a limit; return the refusals."""
    soft, hard = resource.getrlimit(number)
    before = _counted()
    found = []
    for value in values:
        resource.setrlimit(number, (value, hard))
        refused = _try(work, value)
        resource.setrlimit(number, (soft, hard))
        gc.collect()
        # Those of the log's thread, and its descriptor, which ends by itself.
        wait_for(lambda: _counted() == before)
        if refused:
            found.append(refused)
    return found


def _descend(number: int, work: Callable[[], None], values: list[int]) -> list[Refused]:
    """Do so until mappings are no more than after the round before; return its refusals."""
    work()  # what is made once
    gc.collect()
    _round(number, work, values)
    mappings = [_mappings()]
    for _ in range(_ROUNDS):
        found = _round(number, work, values)
        mappings.append(_mappings())
        if mappings[-1] <= mappings[-2]:
            break
    else:
        raise AssertionError(f"each round leaves mappings: {mappings}")
    assert not helpers()
    work()
    return found


def _every_descriptor(work: Callable[[], None], most: int) -> list[Refused]:
    return _descend(resource.RLIMIT_NOFILE, work, list(range(most, 2, -1)))


class TestDescriptors:
    @pytest.mark.parametrize("mode", ["r", "r+", "c"])
    def test_a_file(self, tmp_path, mode):
        path = make_file(tmp_path / "file", _NBYTES)
        found = newborn(_every_descriptor, _file(path, mode), 20, deadline=60)
        self._check(found, 20)

    def test_a_helper(self, tmp_path):
        with reined(tmp_path, numbered(_NBYTES), concurrency=_LINES) as store:
            found = newborn(_every_descriptor, _helper(store), 16 + 2 * _LINES, deadline=100)
        self._check(found, 16 + 2 * _LINES)
        assert any(f"opens up to {16 + 2 * _LINES}" in each.text for each in found)

    def _check(self, found: list[Refused], most: int) -> None:
        assert 3 <= len(found) < most - 2
        for each in found:
            assert (each.kind, each.errno) == ("OSError", errno.EMFILE), each
            has = re.search(
                r"may have (\d+) descriptors \(RLIMIT_NOFILE\) and has (\d+)", each.text
            )
            assert has, each
            assert int(has[1]) == each.limit
            assert 3 <= int(has[2]) <= each.limit
            assert "ulimit -n 1024" in each.text
            assert "LimitNOFILE=1024" in each.text
        # Once there are enough there are.
        assert [each.limit for each in found] == list(range(found[0].limit, 2, -1))


def _every_address(work: Callable[[], None]) -> list[Refused]:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE_SIZE
    values = [used + extra for extra in range(24 << 20, 256 << 10, -(1 << 20))]
    return _descend(resource.RLIMIT_AS, work, values)


class TestAddresses:
    @pytest.mark.parametrize("mode", ["r", "c"])
    def test_a_file(self, tmp_path, mode):
        path = make_file(tmp_path / "file", _NBYTES)
        found = newborn(_every_address, _file(path, mode), deadline=60)
        assert found
        for each in found:
            # Of a thread whose stack cannot be mapped pthread_create(3) says EAGAIN.
            assert each.errno in (errno.ENOMEM, errno.EAGAIN, None), each
            assert f"may have {each.limit} bytes of addresses (RLIMIT_AS)" in each.text
            assert "ulimit -v unlimited" in each.text
            assert "RLIMIT_NPROC" not in each.text

    def test_plain_memory(self):
        found = newborn(_every_address, _plain, deadline=60)
        assert found
        for each in found:
            assert each.kind == "MemoryError"
            assert each.text.startswith("cannot map 8388608 bytes: Cannot allocate memory; ")
            assert "(RLIMIT_AS)" in each.text


def _plain() -> None:
    with Memory(8 << 20):
        pass


def _every_thread(work: Callable[[], None]) -> list[Refused]:
    os.setresgid(_USER, _USER, _USER)
    os.setresuid(_USER, _USER, _USER)
    _libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE
    return _descend(resource.RLIMIT_NPROC, work, list(range(9, 0, -1)))


class TestThreads:
    @pytest.mark.needs("root")
    def test_a_file(self, shared):
        """The kernel does not count the threads of root."""
        path = make_file(shared / "file", _NBYTES)
        found = child(_every_thread, _file(path, "r"), deadline=60)
        assert 3 <= len(found) < 9
        for each in found:
            assert (each.kind, each.errno) == ("BlockingIOError", errno.EAGAIN), each
            has = re.search(
                r"user may have (\d+) processes and threads \(RLIMIT_NPROC\)", each.text
            )
            assert has, each
            assert int(has[1]) == each.limit
            assert "ulimit -u 4096" in each.text


class TestMappings:
    def test_as_many_as_there_may_be(self, tmp_path):
        path = make_file(tmp_path / "file", _NBYTES)
        code, text, memory = newborn(_full_of_mappings, path, deadline=60)
        # A thread whose stack cannot be mapped fails with EAGAIN, an object with MemoryError.
        assert code in (errno.ENOMEM, errno.EAGAIN, None)
        for said in (text, memory):
            assert "(vm.max_map_count)" in said
            assert "sysctl -w vm.max_map_count=" in said

    def test_without_memory_to_say_so(self):
        """Nor can the interpreter's heap grow, once there are as many as there may be."""
        assert "(vm.max_map_count)" in newborn(_out_of_memory, deadline=60)


def _take_all_mappings() -> tuple[int, int]:
    """Split one mapping until there are as many as there may be; return it, to be unmapped."""
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    if most > 1 << 18:
        pytest.skip("it takes too many mappings")
    mmap_at = _libc.mmap
    mmap_at.restype = ctypes.c_void_p
    size = PAGE_SIZE * 2 * most
    base = mmap_at(None, ctypes.c_size_t(size), 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    protect = _libc.mprotect
    for page in range(1, 2 * most, 2):
        address = ctypes.c_void_p(base + page * PAGE_SIZE)
        if protect(address, ctypes.c_size_t(PAGE_SIZE), mmap.PROT_READ):
            break
    # Splitting takes two: the last is taken by one that shares nothing with its neighbours.
    while mmap_at(
        None, ctypes.c_size_t(PAGE_SIZE), 0, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS, -1, 0
    ) not in (None, _FAILED):
        pass
    return base, size


def _full_of_mappings(path: Path) -> tuple[int | None, str, str]:
    base, size = _take_all_mappings()
    paged = _try(_file(path, "r"), 0)
    plain = _try(_plain, 0)
    _libc.munmap(ctypes.c_void_p(base), ctypes.c_size_t(size))
    assert paged
    assert plain
    return paged.errno, paged.text, plain.text


def _out_of_memory() -> str:
    error = OSError(errno.EAGAIN, "no thread")
    held: list[object] = [None] * (1 << 20)
    base, size = _take_all_mappings()
    at = 0
    for nbytes in (1 << 16, 1 << 12, 1 << 9, 1 << 5):
        with contextlib.suppress(MemoryError):
            while True:
                held[at] = bytes(nbytes)
                at += 1
    limits.explain(error)
    held.clear()
    _libc.munmap(ctypes.c_void_p(base), ctypes.c_size_t(size))
    return str(error)


class TestLater:
    def test_no_descriptor_for_another_helper(self, tmp_path):
        with reined(tmp_path, numbered(_NBYTES), concurrency=_LINES) as store:
            code, notes = child(_no_other_helper, store, deadline=60)
        assert code == errno.EPIPE
        assert "has ended, and cannot be started anew: Too many open files" in notes
        assert "may have 4 descriptors (RLIMIT_NOFILE)" in notes

    @pytest.mark.parametrize("number", [0, 2])
    def test_fewer_descriptors_than_the_pager_polls(self, tmp_path, number):
        """As programs set it that want none opened any more: poll(2) refuses its own then."""
        path = make_file(tmp_path / "file", 64 * PAGE_SIZE)
        assert newborn(_no_more_descriptors, path, number, deadline=60)
        assert np.fromfile(path, np.uint64)[0] == 7

    def test_no_memory_for_a_block(self, tmp_path):
        """As with the memory of a control group that is all used: waited for, not in silence."""
        path = make_file(tmp_path / "file", _NBYTES)
        message, data, errors = child(_no_memory, path, deadline=60)
        (line,) = message.splitlines()
        assert line.startswith(f"pagemove: no memory for {PAGE_SIZE} bytes at offset 0 of {path}: ")
        assert "Cannot allocate memory" in line
        assert f"may have {1 << 40} bytes of addresses (RLIMIT_AS): ulimit -v" in line
        assert line.endswith("; a thread that touches them waits until there is some")
        assert np.array_equal(np.frombuffer(data, np.uint64), expected(PAGE_SIZE))
        assert errors == 0


def _no_other_helper(store: Reined) -> tuple[int | None, str]:
    with PagedMemory(store, mode="r+", store_timeout=0.2, **_OPTIONS) as region:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        (pid,) = helpers()
        resource.setrlimit(resource.RLIMIT_NOFILE, (4, hard))
        os.kill(pid, signal.SIGKILL)
        try:
            region.prefetch(0, PAGE_SIZE, wait=True)
        except StoreError as error:
            return error.errno, " ".join(error.__notes__)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return None, ""


def _no_more_descriptors(path: Path, number: int) -> bool:
    array = pagemove.open_array(path, dtype=np.uint64, mode="r+", **_OPTIONS)
    memory = PagedMemory(nbytes=64 * PAGE_SIZE, **_OPTIONS)
    words = memory.asarray(np.uint64)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    right = np.array_equal(array, expected(64 * PAGE_SIZE))
    words[:] = array
    array[0] = 7
    pagemove.region_of(array).flush()
    right = right and np.array_equal(words, expected(64 * PAGE_SIZE))
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    del array, words
    memory.close()
    return right


def _no_memory(path: Path) -> tuple[str, bytes, int]:
    said = os.memfd_create("stderr")
    os.dup2(said, 2)
    array = pagemove.open_array(path, dtype=np.uint64, store_timeout=0.1, **_OPTIONS)
    region = pagemove.region_of(array)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 40, hard))
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(touch(region.address, PAGE_SIZE)))
    with refused(COPY, MOVE_IN):
        reader.start()
        wait_for(lambda: os.fstat(said).st_size)
    reader.join()
    return os.pread(said, 4096, 0).decode(), found[0], region.stats().errors
