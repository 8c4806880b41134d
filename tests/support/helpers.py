"""Stores that helper processes run while a test holds the reins, and those processes themselves.

A `Reined` store reads and writes a file, by Python. `Reins` are a few numbers in a file that this
process and the helper both see: what is to go wrong there, and what has happened.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pagemove import PagedMemory, StoreError
from pagemove.stores import Store
from support.needs import missing
from support.paging import Struck, load
from support.slowness import patience
from support.threads import wait_for

Words = npt.NDArray[np.uint64]

_FIELDS = (
    *("delay", "delayed", "failing", "hung"),  # what is to go wrong
    *("reads", "writes", "flushes", "failed", "late"),  # what has happened
)
_LOG = 4096


class Reins:
    """Numbers in shared memory, by their names; all 0 at first.

    Attributes
    ----------
    delay : int
        Microseconds that a read takes more, at most until this is 0.
    delayed : int
        Only the read of a block that begins at ``delayed - 1`` takes them; 0: every one.
    failing : int
        Every call fails with this errno, as if the connection were cut.
    hung : int
        Reads and flushes wait until this is 0.
    reads, writes, flushes, failed : int
        Calls so far. Threads of one helper may miss a count, never the first.
    late : int
        Reads that have ended after such a delay.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        if create:
            path.write_bytes(bytes(2 * _LOG * 8))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        numbers = np.frombuffer(self._map, np.int64)
        object.__setattr__(self, "numbers", numbers)
        self.path = path

    def __getattr__(self, name: str) -> int:
        if name not in _FIELDS:
            raise AttributeError(name)
        return int(self.numbers[_FIELDS.index(name)])

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIELDS:
            self.numbers[_FIELDS.index(name)] = value
        else:
            object.__setattr__(self, name, value)

    def note(self, offset: int) -> None:
        """Remember that a read began there."""
        index = min(self.reads, _LOG - 1)
        self.numbers[_LOG + index] = offset
        self.reads += 1

    @property
    def offsets(self) -> list[int]:
        """Where reads began, in order."""
        return [int(offset) for offset in self.numbers[_LOG : _LOG + self.reads]]


class Reined(Store):
    """A file, read and written by Python, that does what its reins say.

    Parameters
    ----------
    path
        Of the file; the reins are beside it.
    """

    writable = True

    def __init__(self, path: Path, *, concurrency: int = 8, restartable: bool = True) -> None:
        self._path = path
        self._nbytes = path.stat().st_size
        self.concurrency, self.restartable = concurrency, restartable
        self._open()

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        self.reins = Reins(self._path.with_suffix(".reins"))

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def read_into(self, offset: int, buffer: Any) -> None:
        reins = self.reins
        late = reins.delay and reins.delayed in (0, offset + 1)
        reins.note(offset)
        self._suffer("read", offset)
        if late:
            self._take_longer(time.monotonic() + reins.delay / 1e6)
        self._hang()
        if os.preadv(self._fd, [buffer], offset) != len(buffer):
            raise StoreError(errno.EIO, "short")
        if late:
            reins.late += 1

    def write(self, offset: int, data: Any) -> None:
        self.reins.writes += 1
        self._suffer("write", offset)
        # In pieces, so that whoever is killed is so in the midst of one.
        view, at = memoryview(data), 0
        while at < len(view):
            at += os.pwrite(self._fd, view[at : at + 4096], offset + at)

    def flush(self) -> None:
        self.reins.flushes += 1
        self._suffer("flush", 0)
        self._hang()
        os.fdatasync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _take_longer(self, until: float) -> None:
        while self.reins.delay and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.005))

    def _hang(self) -> None:
        while self.reins.hung:
            time.sleep(0.005)

    def _suffer(self, operation: str, offset: int) -> None:
        code = self.reins.failing
        if code:
            self.reins.failed += 1
            raise ConnectionError(code, f"the line is cut: {operation} at {offset}")

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_path", "_nbytes", "concurrency", "restartable")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def reined(folder: Path, contents: Words, **how: Any) -> Reined:
    """Make such a store of what is to be in it."""
    count = len(list(folder.glob("*.data")))
    path = folder / f"{count}.data"
    path.write_bytes(contents.tobytes())
    Reins(path.with_suffix(".reins"), create=True)
    return Reined(path, **how)


def reined_region(folder: Path, block: int = 4096, **how: Any) -> tuple[Reined, PagedMemory]:
    """Page a reined store of 16 numbered blocks."""
    store = reined(folder, numbered(16 * block))
    how = {"prefetch": "off", "store_timeout": 20} | how
    return store, PagedMemory(store, block_size=block, **how)


def stored(store: Reined) -> Words:
    """Read what is in the file."""
    return np.fromfile(store._path, np.uint64)


def numbered(nbytes: int) -> Words:
    """Make words that are all different, and none of them zero."""
    return np.arange(1, nbytes // 8 + 1, dtype=np.uint64) * np.uint64(0x9E37_79B9_7F4A_7C15)


def helpers(pid: int | str = "self") -> list[int]:
    """List the helper processes that a process has started and that have not ended."""
    owner = str(os.getpid() if pid == "self" else pid).encode()
    return sorted(
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _owner(int(entry.name)) == owner
    )


def _owner(pid: int) -> bytes | None:
    """Whose helper a process is: no child of that, so its command says so. None: it is none."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return None
    is_one = len(words) > 2 and any(b"pagemove.paging.helper" in word for word in words)
    return words[-2] if is_one else None


def kill_helper() -> int:
    """Kill the only helper of this process; return its number."""
    (pid,) = helpers()
    os.kill(pid, signal.SIGKILL)
    return pid


def stop_helper() -> int:
    """Stop the only helper of this process, and wait until it has; return its number."""
    (pid,) = helpers()
    os.kill(pid, signal.SIGSTOP)
    # Each thread stops when it comes to that: one may still answer while another has stopped.
    wait_for(lambda: all(state_of(thread) == "T" for thread in _threads(pid)))
    return pid


def _threads(pid: int) -> list[int]:
    return [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]


def state_of(pid: int) -> str:
    """Return the letter of what a process does, as in ps; X: it is no more."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "X"
    return text.rpartition(")")[2].split()[0]


def has_ended(pid: int) -> bool:
    """Return whether a process is no more, or a zombie that somebody has yet to collect."""
    return state_of(pid) in "ZX"


_libc = ctypes.CDLL(None, use_errno=True)


def touch(address: int, nbytes: int = 8) -> bytes:
    """Read memory by a system call, without the GIL: OSError (EFAULT) where a plain touch dies.

    By a plain copy where nobody serves the faults of system calls.
    """
    if missing("kernel_faults"):
        try:
            return load(address, nbytes)
        except Struck as struck:
            raise OSError(errno.EFAULT, f"{os.strerror(errno.EFAULT)}: {struck}") from None
    fd = os.memfd_create("touched")
    try:
        put = _libc.write(fd, ctypes.c_void_p(address), ctypes.c_size_t(nbytes))
        if put != nbytes:
            code = ctypes.get_errno() if put < 0 else errno.EFAULT
            raise OSError(code, os.strerror(code))
        return os.pread(fd, nbytes, 0)
    finally:
        os.close(fd)


def touch_at_last(region: PagedMemory, offset: int, nbytes: int = 8) -> bytes:
    """Read memory as `touch` does, until a helper that is being started is there.

    That may take longer than a touch waits: then its block is given up, and asked for again.
    """
    limit = time.monotonic() + patience(20)
    while True:
        try:
            return touch(region.address + offset, nbytes)
        except OSError:
            assert time.monotonic() < limit, "no helper is there"
            region.evict(offset // region.block_size * region.block_size, region.block_size)
