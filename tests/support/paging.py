"""Paged regions over files with known contents, and threads in C that use them and know it.

A file begins as the pattern of a tag (`make_file`). `Worker` is a thread of workers.c; `Peak` is a
thread that watches how much of the process is resident; `load` and `store` touch memory that may be
poisoned, and say so instead of dying.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import mmap
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.random  # whose own arrays are in no arena then: NumPy imports it when it is first used
import numpy.typing as npt

from pagemove import PAGE_SIZE, PagedMemory
from pagemove.stores import FileStore
from pagemove.testing import Fault, FaultyStore
from support import native
from support.pages import pattern
from support.slowness import patience

KIB, MIB = 1 << 10, 1 << 20
#: Every size that a block may have.
BLOCKS = [size for shift in range(10) if (size := 4096 << shift) >= PAGE_SIZE]
MODES = ["r", "r+", "c"]
#: What a region may take besides what its limit counts: stacks, tables, buffers.
SLACK = MIB

READ, COUNT, VERSION, DISCARD, ADVISE = range(5)
RANDOM, SEQUENTIAL, STRIDED = range(3)

Words = npt.NDArray[np.uint64]


_patterns: dict[int, bytes] = {}


def contents_of(nbytes: int, tag: int = 0) -> memoryview:
    """Return the first bytes of the pattern of a tag, made once and kept."""
    made = _patterns.get(tag, b"")
    if len(made) < nbytes:
        made = _patterns[tag] = pattern(tag, -(-nbytes // 4096) * 4096)
    return memoryview(made)[:nbytes]


def noise(nbytes: int, seed: int = 0) -> Words:
    """Return bytes that do not shrink."""
    return np.random.default_rng(seed).integers(0, 2**64, nbytes // 8, np.uint64)


def make_file(path: Path, nbytes: int, tag: int = 0, *, cold: bool = False) -> Path:
    """Write a file with the pattern of a tag; `cold`: none of it stays in the page cache."""
    with path.open("wb") as file:
        file.write(contents_of(nbytes, tag))
    if cold:
        chill(path)
    return path


def chill(path: Path) -> None:
    """Write back what the page cache has of a file, and drop it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def expected(nbytes: int, tag: int = 0) -> Words:
    """Return what `make_file` has written, as words."""
    return np.frombuffer(contents_of(nbytes, tag), np.uint64)


@contextmanager
def paged(
    path: Path,
    mode: str = "r",
    *,
    faults: Sequence[Fault] | None = None,
    lock: bool = True,
    **paging: Any,
) -> Iterator[PagedMemory]:
    """Open a region over a file, and close it: the block must leave no array of it behind."""
    writable = mode == "r+"
    if faults is None:
        source: FileStore = FileStore(path, writable=writable, lock=lock)
    else:
        source = FaultyStore(path, writable=writable, faults=faults)
    with source, PagedMemory(source, mode=mode, **paging) as memory:
        try:
            yield memory
        finally:
            gc.collect()  # an exception on its way keeps frames, and with them arrays


def words(memory: PagedMemory) -> Words:
    """View all whole words of a region."""
    return memory.asarray(np.uint64)


def contents(memory: PagedMemory) -> bytes:
    """Read all of a region."""
    with memoryview(memory) as view:
        return bytes(view)


@functools.cache
def _library() -> ctypes.CDLL:
    here = Path(__file__).parent
    library = native.load(here / "guard.c", here / "workers.c")
    pointer, word = ctypes.c_void_p, ctypes.c_uint64
    library.guarded_copy.argtypes = [pointer, pointer, ctypes.c_size_t, pointer]
    library.move_word.argtypes, library.move_word.restype = [pointer, pointer], None
    library.sampler_start.restype = pointer
    for name in ("sampler_peak", "sampler_samples"):
        getattr(library, name).argtypes = [pointer]
        getattr(library, name).restype = word
    library.sampler_stop.argtypes, library.sampler_stop.restype = [pointer], None
    library.work_start.argtypes = [pointer]
    library.work_stop.argtypes, library.work_stop.restype = [pointer], None
    library.work_join.argtypes = [pointer, ctypes.c_double]
    library.words_wrong.argtypes = [pointer, word, word, word, pointer, pointer]
    library.words_outside.argtypes = [
        *(pointer, word, word, pointer, pointer, word),
        *(ctypes.c_int, pointer),
    ]
    library.words_wrong.restype = library.words_outside.restype = word
    return library


def build() -> None:
    """Build the C parts here, so that the children of the tests find them built."""
    _library()


@functools.cache
def _holding_the_gil() -> ctypes.PyDLL:
    library = ctypes.PyDLL(None, handle=_library()._handle)
    pointer = ctypes.c_void_p
    library.guarded_copy.argtypes = [pointer, pointer, ctypes.c_size_t, pointer]
    library.move_word.argtypes, library.move_word.restype = [pointer, pointer], None
    return library


class Struck(Exception):  # noqa: N818 (what a test expects)
    """A touch was answered with a signal."""

    def __init__(self, number: int, address: int, code: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"{name} at {address:#x}, si_code {code}")
        self.signal, self.address, self.code = signal.Signals(number), address, code


def _copy(to: int, of: int, nbytes: int, *, gil: bool) -> None:
    library = _holding_the_gil() if gil else _library()
    assert library.guard_install() == 0
    where = (ctypes.c_uint64 * 2)()
    number = library.guarded_copy(to, of, nbytes, where)
    if number:
        raise Struck(number, where[0], ctypes.c_int64(where[1]).value)


def load(address: int, nbytes: int = 8, *, gil: bool = False) -> bytes:
    """Read memory by a plain copy in C, with the GIL or without; `Struck` if that is a signal."""
    buffer = ctypes.create_string_buffer(nbytes)
    _copy(ctypes.addressof(buffer), address, nbytes, gil=gil)
    return buffer.raw


def store(address: int, data: bytes, *, gil: bool = False) -> None:
    """Write memory by a plain copy in C; `Struck` if that is a signal."""
    buffer = ctypes.create_string_buffer(data, len(data))
    _copy(address, ctypes.addressof(buffer), len(data), gil=gil)


def move_word(to: int, of: int) -> None:
    """Move one word by one instruction, where the machine has one."""
    _library().move_word(to, of)


def wrong_words(
    found: Words, tag: int = 0, *, first: int = 0, shadow: npt.NDArray[np.uint32] | None = None
) -> str | None:
    """Compare words with the pattern plus what was counted; None if all agree."""
    assert found.flags.c_contiguous
    where = (ctypes.c_uint64 * 3)()
    counted = None if shadow is None else shadow.ctypes.data
    number = _library().words_wrong(found.ctypes.data, first, len(found), tag, counted, where)
    if not number:
        return None
    return f"{number} words wrong, first {where[0]}: {where[1]:#x} instead of {where[2]:#x}"


def outside(
    found: Words,
    low: npt.NDArray[np.uint32],
    high: npt.NDArray[np.uint32],
    *,
    per: int = 1,
    whole: bool = False,
) -> str | None:
    """Compare words with what was counted at an earlier moment, and what is counted by now.

    None if each is no older than the one and no newer than the other. One counter counts for `per`
    words; `whole` if these must be as they were at one moment.
    """
    where = (ctypes.c_uint64 * 3)()
    number = _library().words_outside(
        found.ctypes.data, len(found), 0, low.ctypes.data, high.ctypes.data, per, whole, where
    )
    if not number:
        return None
    return f"{number} words lost or mixed, first {where[0]}: {where[1]:#x} after {where[2]:#x}"


class Peak:
    """How much anonymous memory the process has had more than at the start of the block.

    Sampled some ten thousand times a second by a thread in C. No Python in between: what it
    allocates counts too.
    """

    def __enter__(self) -> Peak:
        self._sampler = _library().sampler_start()
        assert self._sampler
        return self

    @property
    def nbytes(self) -> int:
        """The most until now."""
        return int(_library().sampler_peak(self._sampler))

    @property
    def samples(self) -> int:
        """How often it looked."""
        return int(_library().sampler_samples(self._sampler))

    def __exit__(self, *exception: object) -> None:
        self.last = self.nbytes
        _library().sampler_stop(self._sampler)
        self._sampler = None


class _Work(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int) for name in ("kind", "order")],
        ("words", ctypes.c_void_p),
        *[(n, ctypes.c_uint64) for n in ("origin", "count", "block", "tag", "number", "of")],
        ("shadow", ctypes.c_void_p),
        ("steps", ctypes.c_uint64),
        *[(name, ctypes.c_int) for name in ("fd", "advice")],
        *[(n, ctypes.c_uint64) for n in ("done", "wrong", "first", "seen", "wanted", "address")],
        *[(name, ctypes.c_int) for name in ("signal", "stop")],
        ("thread", ctypes.c_uint64),
        *[(name, ctypes.c_uint64) for name in ("seed", "at")],
    ]


_abandoned: list[object] = []


class Worker:
    """A thread of workers.c over the words of a region, from one block of Python to its end.

    The region's pages are used by their address: nothing here keeps the region alive.
    """

    def __init__(
        self,
        memory: PagedMemory,
        kind: int = READ,
        order: int = RANDOM,
        *,
        tag: int = 0,
        number: int = 0,
        of: int = 1,
        shadow: npt.NDArray[np.uint32] | None = None,
        steps: int = 0,
        seed: int = 1,
        advice: int = 0,
        span: tuple[int, int] | None = None,
    ) -> None:
        address, nbytes = span or (memory.address, memory.nbytes)
        self._shadow = shadow
        self._fd = os.memfd_create("stores") if kind == COUNT else -1
        self.work = _Work(
            kind=kind,
            order=order,
            words=address,
            origin=(address - memory.address) // 8,
            count=nbytes // 8,
            block=memory.block_size // 8,
            tag=tag,
            number=number,
            of=of,
            shadow=None if shadow is None else shadow.ctypes.data,
            steps=steps,
            fd=self._fd,
            advice=advice,
            seed=seed,
        )
        self._running = False

    def start(self) -> Worker:
        """Start it."""
        library = _library()
        assert library.guard_install() == 0
        assert library.work_start(ctypes.byref(self.work)) == 0
        self._running = True
        return self

    @property
    def done(self) -> int:
        """Steps made until now."""
        return int(self.work.done)

    def join(self, seconds: float = 20.0) -> None:
        """Wait for its last step; fail if it is stuck, was struck, or has seen a wrong word."""
        if not self._running:
            return
        code = _library().work_join(ctypes.byref(self.work), patience(seconds))
        self._running = False
        if code:
            _abandoned.append((self.work, self._shadow))
            raise AssertionError(f"a thread is stuck after {self.done} steps")
        if self._fd >= 0:
            os.close(self._fd)
        self.check()

    def check(self) -> None:
        """Fail if it was struck by a signal or has seen a wrong word."""
        work = self.work
        struck = f"signal {work.signal} at {work.address - work.words:#x}"
        assert not work.signal, f"{struck} of the region, after {work.done} steps"
        assert not work.wrong, (
            f"{work.wrong} words wrong, first {work.first}: {work.seen:#x} "
            f"instead of {work.wanted:#x}, after {work.done} steps"
        )

    def stop(self, seconds: float = 20.0) -> None:
        """Let it end, and wait for it."""
        _library().work_stop(ctypes.byref(self.work))
        self.join(seconds)

    def __enter__(self) -> Worker:
        return self.start()

    def __exit__(self, kind: object, *exception: object) -> None:
        if kind is None:
            self.stop()
        elif self._running:
            # The first failure is what the test is to tell.
            _library().work_stop(ctypes.byref(self.work))
            if _library().work_join(ctypes.byref(self.work), 5.0):
                _abandoned.append((self.work, self._shadow))


def shared_zeros(count: int) -> npt.NDArray[np.uint32]:
    """Make counters in shared memory: seen by a parent, and no anonymous memory for `Peak`."""
    return np.frombuffer(mmap.mmap(-1, max(4 * count, 1)), np.uint32)
