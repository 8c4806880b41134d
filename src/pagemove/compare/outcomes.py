"""What each method does to source, destination, holes and forked pages: by really doing it."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pagemove
from pagemove import PAGE_SIZE, PageState
from pagemove.compare.plan import Bench
from pagemove.compare.verdicts import Finding
from pagemove.introspect import count_vmas, find_vma, states_at
from pagemove.measuring.child import run_in_child
from pagemove.measuring.machine import Area

REMAP_ANON_PAGES = "remap_anon_pages"
MREMAP = "mremap"
MREMAP_KEPT = "mremap, source kept"
MREMAP_DETECTING = "mremap, detecting"

SOURCE_AFTERWARDS = "source afterwards"
DESTINATION_OCCUPIED = "destination occupied"
SOURCE_HOLE = "source a hole"
DESTINATION_UNMAPPED = "destination not mapped"
CHILD_ALIVE = "after a fork, child alive"
CHILD_GONE = "after the child exited"
MAPPINGS_ADDED = "mappings added"

Call = Callable[[int, int], object]

_CALLS: dict[str, Call] = {
    REMAP_ANON_PAGES: lambda dst, src: pagemove.remap_anon_pages(dst, src, PAGE_SIZE),
    MREMAP: lambda dst, src: pagemove.mremap(dst, src, PAGE_SIZE),
    MREMAP_KEPT: lambda dst, src: pagemove.mremap(dst, src, PAGE_SIZE, keep_source=True),
    MREMAP_DETECTING: lambda dst, src: pagemove.mremap(dst, src, PAGE_SIZE, detect=True),
}

_OLD, _NEW = 0x11, 0x22
_AREA_PAGES = 16


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one method did in one situation.

    Attributes
    ----------
    situation, method : str
        Names.
    code : str
        For programs: the errno it was refused with, or one word for what happened.
    text : str
        For people.
    """

    situation: str
    method: str
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Outcomes:
    """The table."""

    cells: tuple[Outcome, ...]

    def find(self, situation: str, method: str) -> Outcome:
        """Return one cell."""
        return next(c for c in self.cells if (c.situation, c.method) == (situation, method))


class _Pair:
    """A source page and a destination page, each in the middle of a larger mapping."""

    def __init__(self, source: Area, destination: Area) -> None:
        middle = _AREA_PAGES // 2 * PAGE_SIZE
        self.source_area = source
        self.destination_area = destination
        self.source = source.address + middle
        self.destination = destination.address + middle
        source.fill(source.address, PAGE_SIZE)
        destination.fill(destination.address, PAGE_SIZE)

    def write_source(self) -> None:
        self.source_area.view(self.source, PAGE_SIZE)[:] = bytes([_NEW]) * PAGE_SIZE

    def write_destination(self) -> None:
        self.destination_area.view(self.destination, PAGE_SIZE)[:] = bytes([_OLD]) * PAGE_SIZE

    def read_source(self) -> int:
        return self.source_area.view(self.source, 1)[0]

    def read_destination(self) -> int:
        return self.destination_area.view(self.destination, 1)[0]


@contextmanager
def _pair() -> Iterator[_Pair]:
    nbytes = _AREA_PAGES * PAGE_SIZE
    with Area(nbytes) as source, Area(nbytes) as destination:
        yield _Pair(source, destination)


def _status_of(question: Callable[[], int]) -> int:
    # In a child, because the answer may be its death. Negative: the signal that killed it.
    child = os.fork()
    if not child:
        os._exit(question())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _refusal(call: Call, pair: _Pair) -> str | None:
    try:
        call(pair.destination, pair.source)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    return None


def _source_afterwards(call: Call) -> tuple[str, str]:
    with _pair() as pair:
        pair.write_source()
        call(pair.destination, pair.source)
        status = _status_of(pair.read_source)
        if status < 0:
            name = signal.Signals(-status).name
            return "unmapped", f"no longer mapped: a touch is {name}"
        if status == _NEW:
            return "kept", "still there, with its content"
        return "hole", "still mapped, a hole: reads as zero"


def _destination_occupied(call: Call) -> tuple[str, str]:
    with _pair() as pair:
        pair.write_source()
        pair.write_destination()
        refusal = _refusal(call, pair)
        if refusal:
            intact = pair.read_source() == _NEW and pair.read_destination() == _OLD
            return refusal, f"{refusal}, both pages {'untouched' if intact else 'changed'}"
        if pair.read_destination() == _OLD:
            return "kept", "success, and nothing replaced"
        return "replaced", "replaced without a word"


def _source_hole(call: Call) -> tuple[str, str]:
    with _pair() as pair:
        refusal = _refusal(call, pair)
        if refusal:
            return refusal, refusal
        if states_at(pair.destination, 1)[0] & PageState.PRESENT:
            return "filled", "success, a page at the destination"
        return "hole", "success: the hole moves"


def _destination_unmapped(call: Call) -> tuple[str, str]:
    with _pair() as pair:
        pair.write_source()
        # The inaccessible pages around an area are reserved for it alone.
        pagemove.lowlevel.munmap(pair.destination_area.address, pair.destination_area.nbytes)
        refusal = _refusal(call, pair)
        if refusal:
            return refusal, refusal
        mapped = find_vma(pair.destination) is not None
        return ("mapped", "a mapping appears there") if mapped else ("gone", "success, nothing")


def _after_fork(call: Call) -> tuple[tuple[str, str], tuple[str, str]]:
    with _pair() as pair:
        pair.write_source()
        asked, ask = os.pipe()
        child = os.fork()
        if not child:
            os.close(ask)
            os.read(asked, 1)
            os._exit(pair.read_source())
        os.close(asked)
        refusal = _refusal(call, pair)
        os.close(ask)
        seen = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if not refusal:
            intact = "its" if seen == _NEW else "not its"
            return ("moved", f"moves; the child keeps {intact} page"), _after_exit(call)
    return (refusal, refusal), _after_exit(call)


def _after_exit(call: Call) -> tuple[str, str]:
    with _pair() as pair:
        pair.write_source()
        _status_of(lambda: 0)
        refusal = _refusal(call, pair)
        if not refusal:
            return "moved", "moves"
        pagemove.unshare(pair.source_area.view(pair.source, PAGE_SIZE))
        again = _refusal(call, pair)
        return refusal, f"{refusal} until unshare()" if not again else f"{refusal}, for good"


def _mappings_added(call: Call) -> tuple[str, str]:
    with _pair() as pair:
        pair.write_source()
        # The first one may register memory or fill the interpreter's pools.
        count_vmas()
        before = count_vmas()
        call(pair.destination, pair.source)
        added = count_vmas() - before
        return str(added), str(added)


def outcomes_here() -> list[dict[str, str]]:
    """Fill the table in this process: one that may be forked, and whose mappings matter to none."""
    cells = []
    for method, call in _CALLS.items():
        alive, gone = _after_fork(call)
        answers = {
            MAPPINGS_ADDED: _mappings_added(call),
            SOURCE_AFTERWARDS: _source_afterwards(call),
            DESTINATION_OCCUPIED: _destination_occupied(call),
            SOURCE_HOLE: _source_hole(call),
            DESTINATION_UNMAPPED: _destination_unmapped(call),
            CHILD_ALIVE: alive,
            CHILD_GONE: gone,
        }
        for situation, (code, text) in answers.items():
            cells.append({"situation": situation, "method": method, "code": code, "text": text})
    return cells


def measure(bench: Bench) -> Outcomes:
    """Fill the table in a process of its own."""
    bench.tick("trying what each does to source, destination, holes and forked pages", 0.0)
    cells: list[dict[str, Any]] = run_in_child(__name__, "outcomes_here")
    return Outcomes(tuple(Outcome(**cell) for cell in cells))


def judge(data: Outcomes) -> Finding:
    """Ask whether mremap replaces in silence and takes its source away, and the other does not."""
    expected = {
        (DESTINATION_OCCUPIED, MREMAP): "replaced",
        (DESTINATION_OCCUPIED, REMAP_ANON_PAGES): "EEXIST",
        (SOURCE_AFTERWARDS, MREMAP): "unmapped",
        (SOURCE_AFTERWARDS, REMAP_ANON_PAGES): "hole",
    }
    held = [data.find(*where).code == code for where, code in expected.items()]
    why = ". ".join(
        f"{situation.capitalize()}: with mremap, {data.find(situation, MREMAP).text}; with "
        f"remap_anon_pages, {data.find(situation, REMAP_ANON_PAGES).text}"
        for situation in (DESTINATION_OCCUPIED, SOURCE_AFTERWARDS)
    )
    return Finding.of(held, f"{why}.")
