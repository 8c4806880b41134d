"""What this kernel does by itself, tried out with raw calls: python -m matrix.observe [--risky].

Each observation runs in a child with a deadline and gives a short text or a number. The risky ones
may bring the kernel down, and come last: only a guest is asked for them.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pagemove import HUGE_PAGE_SIZE, PAGE_SIZE, PageState, lowlevel
from stress.siblings import COLD, READ, Sibling, apart, library
from support import Area, child, living_child, state, write
from support.children import ChildFailed
from support.system import Ring, in_a_pipe

from .guest import say

_WP = lowlevel.UFFDIO_REGISTER_MODE_WP
_SECONDS = 12.0
_HUGE_PAGES = HUGE_PAGE_SIZE // PAGE_SIZE
_ENTRY_SOFT_DIRTY, _ENTRY_FRAME = 1 << 55, (1 << 55) - 1
_FRAME_FLAG_NONE, _FRAME_FLAG_ZERO = 1 << 20, 1 << 24


def _opened(features: int = lowlevel.UFFD_FEATURE_MOVE) -> int:
    fd = lowlevel.userfaultfd(os.O_CLOEXEC | os.O_NONBLOCK | lowlevel.UFFD_USER_MODE_ONLY)
    lowlevel.api(fd, features)
    return fd


def _area(pages: int = 1, *, fd: int = -1, advice: int = mmap.MADV_NOHUGEPAGE) -> Area:
    aligned = HUGE_PAGE_SIZE if pages >= _HUGE_PAGES else PAGE_SIZE
    area = Area(pages, align=aligned)
    area.advise(advice)
    if fd >= 0:
        lowlevel.register(fd, area.address, area.nbytes, _WP)
    return area


def _said(fd: int, dst: int, src: int, length: int = PAGE_SIZE) -> str:
    for _ in range(1000):
        try:
            moved = lowlevel.move(fd, dst, src, length)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                continue
            return errno.errorcode.get(error.errno or 0, str(error.errno))
        return "moves" if moved == length else f"moves {moved} of {length} bytes"
    return "EAGAIN"


def _entry(address: int, file: str = "/proc/self/pagemap") -> int:
    with Path(file).open("rb") as words:
        words.seek(address // PAGE_SIZE * 8)
        return int.from_bytes(words.read(8), "little")


def zero_page() -> str:
    """The page of zeros that a read of a hole puts there."""
    fd = _opened()
    dst, src = _area(fd=fd), _area()
    src.contents()
    said = _said(fd, dst.address, src.address)
    if said != "moves":
        return said
    return "moves" if state(dst.address) & PageState.ZERO else "moves as a page of its own"


def write_protection() -> str:
    """Whether userfaultfd's write protection of a page goes along with it."""
    fd = _opened()
    dst, src = _area(fd=fd), _area(fd=fd)
    src.fill()
    lowlevel.writeprotect(fd, src.address, PAGE_SIZE, lowlevel.UFFDIO_WRITEPROTECT_MODE_WP)
    said = _said(fd, dst.address, src.address)
    if said != "moves":
        return said
    return "kept" if state(dst.address) & PageState.WRITE_PROTECTED else "dropped"


def soft_dirty() -> str:
    """Whether a page that was clean before is soft-dirty after it has moved."""
    fd = _opened()
    dst, src = _area(fd=fd), _area()
    src.fill()
    if not _entry(src.address) & _ENTRY_SOFT_DIRTY:
        return "not in this kernel"
    Path("/proc/self/clear_refs").write_text("4")
    said = _said(fd, dst.address, src.address)
    if said != "moves":
        return said
    return "set by a move" if _entry(dst.address) & _ENTRY_SOFT_DIRTY else "not set by a move"


def shared_page() -> str:
    """A page that a forked child shares; after the child has ended; after a write."""
    fd = _opened()
    dst, src = _area(fd=fd), _area()
    src.fill()
    with living_child() as one:
        first = _said(fd, dst.address, src.address)
        one.end()
    second = _said(fd, dst.address, src.address)
    write(src.address, 5)
    return f"{first}, {second}, {_said(fd, dst.address, src.address)}"


def pinned_page() -> str:
    """A page that io_uring has pinned."""
    fd = _opened()
    dst, src = _area(fd=fd), _area()
    src.fill()
    with Ring() as ring:
        ring.register(src.address, PAGE_SIZE)
        return _said(fd, dst.address, src.address)


def occupied_destination() -> str:
    """The destination has a page, and the source not even a page table."""
    fd = _opened()
    dst, src = _area(fd=fd), _area(_HUGE_PAGES)
    dst.fill()
    return _said(fd, dst.address, src.address)


def huge_page_whole() -> str:
    """A huge page, both sides aligned."""
    fd = _opened()
    dst, src = (_area(_HUGE_PAGES, advice=mmap.MADV_HUGEPAGE) for _ in range(2))
    lowlevel.register(fd, dst.address, dst.nbytes, _WP)
    src.fill()
    if not state(src.address) & PageState.HUGE:
        return "no huge page to be had"
    said = _said(fd, dst.address, src.address, HUGE_PAGE_SIZE)
    if said != "moves":
        return said
    return "moves whole" if state(dst.address) & PageState.HUGE else "is split"


def guard_page() -> str:
    """How a guard page shows in PAGEMAP_SCAN."""
    area = _area()
    try:
        area.advise(lowlevel.MADV_GUARD_INSTALL)
    except OSError:
        return "not in this kernel"
    return "as guard" if state(area.address) & PageState.GUARD else "as swapped"


def flushes_of_a_run() -> float | str:
    """TLB shootdowns for a run of 512 pages, while a thread of the process runs on another CPU."""
    if "TLB:" not in Path("/proc/interrupts").read_text():
        return "not counted here"
    fd = _opened()
    dst, src = _area(_HUGE_PAGES, fd=fd), _area(_HUGE_PAGES)
    busy = _area(4)
    busy.fill()
    rounds = 8
    with apart() as cpu, Sibling(READ, busy.address, 4, cpu=cpu):
        done = 0
        for _ in range(rounds):
            src.fill()
            before = _shootdowns()
            if _said(fd, dst.address, src.address, src.nbytes) != "moves":
                continue
            done += _shootdowns() - before
            dst.discard()
    return round(done / rounds, 1)


def _shootdowns() -> int:
    text = Path("/proc/interrupts").read_text()
    line = next(line for line in text.splitlines() if line.strip().startswith("TLB:"))
    return sum(int(word) for word in line.split()[1:] if word.isdigit())


def stale_eagain() -> str:
    """Pages that were moved and denied, while another thread calls madvise(MADV_COLD)."""
    fd = _opened()
    memory = _area(2, fd=fd)
    write(memory.address, 1)
    calls = wrong = 0
    end = time.monotonic() + _SECONDS
    with apart() as cpu, Sibling(COLD, memory.address, 2, cpu=cpu) as sibling:
        # Which pace bites differs from machine to machine.
        for pace in [0, 300, 3_000, 30_000, 100_000] * 1000:
            sibling.pause(pace)
            where = memory.address if state(memory.address) else memory.page(1)
            if where != memory.address:
                lowlevel.move(fd, memory.address, where, PAGE_SIZE)
            wrong += library().raw_lies(fd, memory.address, 100)
            calls += 100
            if time.monotonic() > end:
                break
    return f"{wrong} of {calls}"


def eagain() -> str:
    """Calls that the kernel answers with EAGAIN, in the same situation."""
    fd = _opened()
    memory = _area(2, fd=fd)
    write(memory.address, 1)
    calls = refused = 0
    end = time.monotonic() + _SECONDS
    places = [memory.page(1), memory.address]
    with apart() as cpu, Sibling(COLD, memory.address, 2, cpu=cpu):
        while time.monotonic() < end:
            calls += 1
            try:
                lowlevel.move(fd, *places, PAGE_SIZE)
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    refused += 1
                    continue
            places.reverse()
            if calls % 64 == 0 and not state(places[1]):
                places.reverse()
    return f"{refused} of {calls}"


def moves_beside_mprotect() -> float:
    """Moves that come through for each mprotect(2) of 64 MiB elsewhere in the process.

    It holds mmap_lock for writing: about one, where a move takes that lock too.
    """
    fd = _opened()
    memory, big = _area(2, fd=fd), _area((64 << 20) // PAGE_SIZE)
    big.fill()
    write(memory.address, 1)
    places = [memory.page(1), memory.address]
    ready, over = threading.Event(), threading.Event()
    protected = 0

    def protect() -> None:
        nonlocal protected
        while not over.is_set():
            for protection in (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE):
                lowlevel.mprotect(big.address, big.nbytes, protection)
                protected += 1
            ready.set()

    thread = threading.Thread(target=protect)
    thread.start()
    ready.wait()
    before, moves, end = protected, 0, time.monotonic() + _SECONDS / 4
    while time.monotonic() < end:
        # EAGAIN: the kernel noticed a change of mappings, and did nothing.
        with contextlib.suppress(BlockingIOError):
            lowlevel.move(fd, *places, PAGE_SIZE)
            places.reverse()
            moves += 1
    done = protected - before
    over.set()
    thread.join()
    return round(moves / max(done, 1), 1)


def huge_page_in_a_pipe() -> str:
    """A page of a huge page of which a pipe holds another page: it cannot be split."""
    fd = _opened()
    dst, src = _area(fd=fd), _area(_HUGE_PAGES, advice=mmap.MADV_HUGEPAGE)
    src.fill()
    if not state(src.address) & PageState.HUGE:
        return "no huge page to be had"
    with in_a_pipe(src.page(7)):
        return _said(fd, dst.address, src.page(5))


def huge_zero_page() -> str:
    """The huge page of zeros, moved as a whole."""
    fd = _opened()
    dst, src = (_area(_HUGE_PAGES, advice=mmap.MADV_HUGEPAGE) for _ in range(2))
    lowlevel.register(fd, dst.address, dst.nbytes, _WP)
    np.add.reduce(src.array())
    zero = PageState.ZERO | PageState.HUGE
    if state(src.address) & zero != zero:
        return "no huge page of zeros to be had"
    said = _said(fd, dst.address, src.address, HUGE_PAGE_SIZE)
    if said != "moves":
        return said
    frame = _entry(dst.address) & _ENTRY_FRAME
    flags = _entry(frame * PAGE_SIZE, "/proc/kpageflags")
    if flags & _FRAME_FLAG_ZERO:
        return "moves"
    return (
        "maps memory that does not exist"
        if flags & _FRAME_FLAG_NONE or not flags
        else ("maps memory that is not its own")
    )


OBSERVATIONS: tuple[Callable[[], Any], ...] = (
    zero_page,
    write_protection,
    soft_dirty,
    shared_page,
    pinned_page,
    occupied_destination,
    huge_page_whole,
    guard_page,
    flushes_of_a_run,
    moves_beside_mprotect,
    eagain,
    stale_eagain,
)
RISKY: tuple[Callable[[], Any], ...] = (huge_page_in_a_pipe, huge_zero_page)


def main() -> None:
    risky = "--risky" in sys.argv
    for observation in RISKY if risky else OBSERVATIONS:
        name = observation.__name__
        if risky:
            say("observed", name=name, value="the kernel did not survive it")
        try:
            value = child(observation, deadline=3 if risky else 30)
        except ChildFailed as failure:
            if failure.timed_out:
                value = "it did not end"
            elif "UFFDIO_API" in str(failure):
                value = "no UFFDIO_MOVE"
            else:
                value = f"not observed: {str(failure).strip().splitlines()[-1]}"
        print(f"{name}: {value}", flush=True)
        say("observed", name=name, value=value)


if __name__ == "__main__":
    main()
