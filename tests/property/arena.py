"""The kernel's side of the state machine: real areas, and real ways to change and to see them."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import pagemove
from model import HUGE, PAGE, Vma
from pagemove import lowlevel
from support.children import fork

#: Below everything the kernel hands out by itself, so that nothing moves into a gap made here.
_ARENA = 0x2000_0000_0000
_GAP = 4
_PROT = {"": 0, "r": mmap.PROT_READ, "rw": mmap.PROT_READ | mmap.PROT_WRITE}
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_MLOCK_ONFAULT = 1
_SYS_MLOCK2 = {"x86_64": 325}.get(os.uname().machine, 284)

_MAPS_LINE = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) (\S{3})", re.MULTILINE)

_libc = ctypes.CDLL(None, use_errno=True)


def _words(first: int, count: int) -> npt.NDArray[np.uint64]:
    raw = (ctypes.c_uint64 * (count * PAGE // 8)).from_address(first * PAGE)
    return np.frombuffer(memoryview(raw), np.uint64).reshape(count, PAGE // 8)


@dataclass(frozen=True, slots=True)
class Area:
    """Pages of the machine: foreign memory in the arena, or a `Memory`."""

    first: int
    count: int
    memory: pagemove.Memory | None

    @property
    def address(self) -> int:
        """Where it begins."""
        return self.first * PAGE

    def words(self) -> npt.NDArray[np.uint64]:
        """View it, one row a page."""
        return _words(self.first, self.count)

    def buffer(self, offset: int = 0, count: int | None = None) -> Any:
        """Return pages of it as an object with a writable buffer."""
        pages = self.count - offset if count is None else count
        if self.memory is None:
            where = self.address + offset * PAGE
            return (ctypes.c_char * (pages * PAGE)).from_address(where)
        if not offset and pages == self.count:
            return self.memory
        return memoryview(self.memory)[offset * PAGE : (offset + pages) * PAGE]


@dataclass(frozen=True, slots=True)
class Child:
    """A child that does nothing but live."""

    pid: int
    orders: int

    def end(self) -> None:
        """Let it exit, and wait for it: its memory is gone then."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self.orders, b"x")
        os.close(self.orders)
        assert os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) == 0


class Arena:
    """Areas of the sizes asked for (in pages), the foreign ones between gaps of shared memory.

    The gaps are of another kind than anything mapped in an area, so that no area is merged with
    one, whatever its protection.
    """

    def __init__(self, foreign: list[int], owned: list[int], *, huge: bool = False) -> None:
        step = HUGE if huge else 1
        sizes = [-(-(count + _GAP) // step) * step for count in foreign]
        self.first, self.count = 0, _GAP + sum(sizes) + step
        shared = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._address = lowlevel.mmap(_ARENA, self.count * PAGE, 0, shared)
        self.first = self._address // PAGE
        self.areas: list[Area] = []
        at = -(-(self.first + _GAP) // step) * step
        for count, size in zip(foreign, sizes, strict=True):
            self.areas.append(Area(at, count, None))
            self.map(at, count, "rw")
            at += size
        for count in owned:
            memory = pagemove.Memory(count * PAGE)
            self.areas.append(Area(memory.address // PAGE, count, memory))
        self.children: list[Child] = []
        self._other: int | None = None

    def close(self) -> None:
        """End the children, and give everything back."""
        while self.children:
            self.children.pop().end()
        if self._other is not None:
            os.close(self._other)
        for area in self.areas:
            if area.memory is not None:
                area.memory.close()
        lowlevel.munmap(self._address, self.count * PAGE)

    # Changes; pages are numbered by address.

    def map(self, first: int, count: int, prot: str, kind: str = "anonymous") -> None:
        """Map over pages of the arena."""
        assert self.first <= first < first + count <= self.first + self.count
        flags, fd = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1
        if kind == "shared":
            flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
        elif kind == "file":
            flags = mmap.MAP_PRIVATE
            fd = os.memfd_create("pagemove-test")
            os.ftruncate(fd, count * PAGE)
        try:
            lowlevel.mmap(first * PAGE, count * PAGE, _PROT[prot], flags | _MAP_FIXED, fd)
        finally:
            if fd >= 0:
                os.close(fd)
        if kind == "anonymous":
            self.allow_huge(first, count, allowed=False)

    def allow_huge(self, first: int, count: int, *, allowed: bool) -> None:
        """Let memory have huge pages, or not: then khugepaged has nothing to do there either."""
        with contextlib.suppress(OSError):  # EINVAL: a kernel without them
            self.advise(first, count, mmap.MADV_HUGEPAGE if allowed else mmap.MADV_NOHUGEPAGE)

    def unmap(self, first: int, count: int) -> None:
        """munmap(2)."""
        lowlevel.munmap(first * PAGE, count * PAGE)

    def protect(self, first: int, count: int, prot: str) -> None:
        """mprotect(2)."""
        lowlevel.mprotect(first * PAGE, count * PAGE, _PROT[prot])

    def lock(self, first: int, count: int) -> None:
        """mlock2(2) with MLOCK_ONFAULT."""
        where = (ctypes.c_void_p(first * PAGE), ctypes.c_size_t(count * PAGE))
        if _libc.syscall(ctypes.c_long(_SYS_MLOCK2), *where, ctypes.c_int(_MLOCK_ONFAULT)):
            raise OSError(ctypes.get_errno(), "mlock2")

    def unlock(self, first: int, count: int) -> None:
        """munlock(2)."""
        if _libc.munlock(ctypes.c_void_p(first * PAGE), ctypes.c_size_t(count * PAGE)):
            raise OSError(ctypes.get_errno(), "munlock")

    def advise(self, first: int, count: int, advice: int) -> None:
        """madvise(2)."""
        lowlevel.madvise(first * PAGE, count * PAGE, advice)

    def _elsewhere(self) -> int:
        if self._other is None:
            flags = os.O_CLOEXEC | lowlevel.UFFD_USER_MODE_ONLY
            self._other = lowlevel.userfaultfd(flags)
            lowlevel.api(self._other)
        return self._other

    def register_elsewhere(self, first: int, count: int) -> None:
        """Let a userfaultfd of somebody else know the pages."""
        mode = lowlevel.UFFDIO_REGISTER_MODE_WP
        lowlevel.register(self._elsewhere(), first * PAGE, count * PAGE, mode)

    def unregister(self, first: int, count: int) -> None:
        """Take the pages from that userfaultfd."""
        lowlevel.unregister(self._elsewhere(), first * PAGE, count * PAGE)

    def poison(self, first: int, count: int) -> None:
        """UFFDIO_POISON, by that userfaultfd."""
        lowlevel.poison(self._elsewhere(), first * PAGE, count * PAGE)

    def fork(self, held: list[tuple[int, int]]) -> None:
        """Fork a child that lives until it is ended, and then has to have held on to its memory.

        `held` lists (page, token): what the child inherits, and the parent's moves must not reach.
        """
        orders, write = os.pipe()
        pid = fork()
        if not pid:
            status = 1
            try:
                # Nobody but the test itself may keep a child waiting, should the test be killed.
                os.close(write)
                for child in self.children:
                    os.close(child.orders)
                os.read(orders, 1)
                status = int(not all((_words(page, 1) == token).all() for page, token in held))
            finally:
                os._exit(status)
        os.close(orders)
        self.children.append(Child(pid, write))

    # What can be seen.

    def seen_vmas(self) -> list[list[tuple[int, int, str]]]:
        """List (start, end, permissions) of the mappings of each area, cut to it."""
        text = Path("/proc/self/maps").read_bytes()
        vmas = [
            (int(start, 16) // PAGE, int(end, 16) // PAGE, permissions.decode())
            for start, end, permissions in _MAPS_LINE.findall(text)
        ]
        return [
            [
                (max(start, area.first), min(end, area.first + area.count), permissions)
                for start, end, permissions in vmas
                if start < area.first + area.count and area.first < end
            ]
            for area in self.areas
        ]

    def seen_states(self, area: Area) -> list[int]:
        """List the words of `page_states`."""
        return [int(word) for word in pagemove.page_states(area.buffer())]


def expected_vma(vma: Vma) -> tuple[int, int, str]:
    """Write a mapping of the model as /proc/self/maps does, but for private or shared."""
    prot = vma.mapping.prot
    return vma.start, vma.end, f"{'r' if 'r' in prot else '-'}{'w' if 'w' in prot else '-'}-"
