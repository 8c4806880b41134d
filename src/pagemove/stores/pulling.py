"""How the taker of an array brings it in: what is touched at once, all else in the background.

Every connection asks and is answered in order, and says what has arrived. One brings all, a few
requests ahead; others, opened when they are needed, bring what is touched, so that it does not
wait behind what is not. What is touched and has been asked for is about to come: only where it is
overdue it is asked for again. A connection that breaks takes nothing along: what has not arrived is
asked for again by the next, which first says what has.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from pagemove.stores import wire
from pagemove.stores.arrivals import Arrivals
from pagemove.stores.pace import LARGEST_PIECE, Pace

if TYPE_CHECKING:
    from pagemove.stores.handed import Handover, Offer

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.25
_LARGEST_TEXT = 1 << 16


class Pull:
    """What one process does to bring an array in. It is the owner by a name of its own.

    Parameters
    ----------
    giver : Handover
        Where.
    offer : Offer
        What.
    backing : str, optional
        As for `Arrivals`.
    """

    def __init__(self, giver: Handover, offer: Offer, backing: str | None) -> None:
        self._giver, self._offer = giver, offer
        self._owner = wire.new_key()
        self.arrivals = Arrivals(offer.nbytes, offer.unit, backing)
        self._pace = Pace(offer.unit)
        self.connected = False
        self._refused: wire.RefusedError | None = None
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._idle: list[wire.Line] = []
        self._all: set[wire.Line] = set()
        self._thread: threading.Thread | None = None

    @property
    def missing_bytes(self) -> int:
        """How much is not here, rounded up to whole units."""
        return min(self.arrivals.missing * self._offer.unit, self._offer.nbytes)

    def bring(self, first: int, end: int) -> None:
        """Return when all units of a run are here.

        Raises
        ------
        OSError
            They cannot be brought now.
        RefusedError
            They never will be.
        """
        begin = time.monotonic()
        deadline, overdue = begin + self._giver.patience, begin + self._pace.late
        while not self.arrivals.are_here(first, end):
            if self._refused is not None:
                raise self._refused
            claimed = self.arrivals.claim(first, end, asked=time.monotonic() >= overdue)
            for start, stop in claimed:
                try:
                    self._fetch(start, stop)
                except BaseException:
                    # What was fetched is here; what this thread has claimed besides is not.
                    for run in claimed[claimed.index((start, stop)) + 1 :]:
                        self.arrivals.drop(*run)
                    raise
            self.arrivals.wait(first, end, deadline, overdue)

    def write(self, offset: int, view: memoryview) -> None:
        """Write bytes; a unit that is not all written is brought before."""
        if self._thread is None:
            self._keep(self._open())  # who writes is the owner
        unit, end = self._offer.unit, offset + len(view)
        first, last = offset // unit, (end - 1) // unit
        whole = -(-offset // unit), (end if end == self._offer.nbytes else end // unit * unit)
        inner = whole[0], max(-(-whole[1] // unit), whole[0])
        if first < inner[0]:
            self.bring(first, inner[0])
        if last >= inner[1]:
            self.bring(max(inner[1], first), last + 1)
        deadline = time.monotonic() + self._giver.patience
        mine = self.arrivals.claim(*inner, asked=True)
        try:
            while mine:
                start, stop = self.arrivals.span(*mine[-1])
                self.arrivals.fill(*mine.pop(), view[start - offset : stop - offset])
        finally:
            for run in mine:
                self.arrivals.drop(*run)
        # What came from the giver meanwhile has to be there before it is written over.
        self.arrivals.wait(first, last + 1, deadline)
        if not self.arrivals.are_here(first, last + 1):
            self.bring(first, last + 1)
        self.arrivals.write(offset, view)

    def close(self) -> None:
        """Stop, and drop all that has arrived."""
        self._closing.set()
        with self._lock:
            lines, self._idle = list(self._all), []
        for line in lines:
            line.close()
        thread = self._thread
        if thread is not None:
            thread.join(self._giver.patience + 1)
        self.arrivals.close()

    def _fetch(self, first: int, end: int) -> None:
        """Bring units that this thread has claimed."""
        try:
            line = self._line()
        except BaseException:
            self.arrivals.drop(first, end)
            raise
        try:
            line.send(wire.REQUEST.pack(wire.READ, first, end - first))
            start, stop = self.arrivals.span(first, end)
            buffer = memoryview(bytearray(stop - start))
            zero = self._receive(line, first, end, buffer)
        except BaseException as error:
            self.arrivals.drop(first, end)
            # Of one that answered, the next answer is where it should be.
            (self._keep if isinstance(error, _UnreadableError) else self._forget)(line)
            raise
        try:
            self.arrivals.fill(first, end, None if zero else buffer)
        except BaseException:
            self._keep(line)
            raise
        try:
            line.send(wire.REQUEST.pack(wire.ACKNOWLEDGE, first, end - first))
        except OSError:
            self._forget(line)  # the next connection says what is here
        else:
            self._keep(line)

    def _receive(self, line: wire.Line, first: int, end: int, buffer: memoryview) -> bool:
        """Receive the answer to READ; return whether all of it is zero."""
        answer = wire.ANSWER.unpack(line.receive(wire.ANSWER.size))
        kind, code, start, count, length = answer
        expected = len(buffer) if kind == wire.READ and not code else 0
        if kind not in (wire.READ, wire.ZEROS) or (start, count) != (first, end - first):
            raise wire.WireError(errno.EPROTO, "the answer is not to what was asked")
        if code:
            raise _UnreadableError(code, _text(line, length))
        if length != expected:
            raise wire.WireError(errno.EPROTO, f"an answer of {length} bytes, not {expected}")
        if length:
            line.receive_into(buffer)
        code, length = wire.VERDICT.unpack(line.receive(wire.VERDICT.size))
        if code:
            raise _UnreadableError(code, _text(line, length))
        return bool(kind == wire.ZEROS)

    def _line(self) -> wire.Line:
        """Take an idle connection, or open one."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._open()

    def _open(self) -> wire.Line:
        want = {"do": "take", "offer": self._offer.key, "owner": self._owner}
        try:
            line, _ = self._giver.call(want)
        except wire.RefusedError as error:
            # Another has it, or the giver has ended: it will say so again.
            if self._refused is None:
                self._refused = error
            raise
        with self._lock:
            self._all.add(line)
            if self._closing.is_set():
                line.close()
                raise OSError(errno.EBADF, "the store was closed")
            if self._thread is None:
                name = "pagemove-handover"
                self._thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._thread.start()
        return line

    def _keep(self, line: wire.Line) -> None:
        with self._lock:
            if not self._closing.is_set() and self.arrivals.missing:
                self._idle.append(line)
                return
        self._forget(line)

    def _forget(self, line: wire.Line) -> None:
        with self._lock:
            self._all.discard(line)
        line.close()

    def _run(self) -> None:
        """Bring all there is, until it is here and the giver knows."""
        pause = 0.0
        since = time.monotonic()
        while not self._closing.wait(pause):
            before = self.arrivals.missing
            if before:
                since = time.monotonic()
            elif time.monotonic() - since > self._giver.patience:
                break  # all is here, and the giver does not want to know
            try:
                line = self._open()
                try:
                    self.connected = True
                    if self._bring_all(line):
                        break
                finally:
                    self.connected = False
                    self._forget(line)
            except wire.RefusedError:
                return
            except (OSError, ValueError):
                has_come = self.arrivals.missing < before
                pause = _FIRST_PAUSE if has_come else min(2 * pause + _FIRST_PAUSE, _LONGEST_PAUSE)
        with self._lock:
            idle, self._idle = self._idle, []
        for each in idle:
            self._forget(each)

    def _bring_all(self, line: wire.Line) -> bool:
        """Bring what is missing, in the giver's order; return whether nothing is missing there."""
        if not self._tell(line):
            return True
        unreadable: _UnreadableError | None = None
        # The second time: what the order does not have, or what a thread failed to bring.
        for order in (self._order(line), [(0, self.arrivals.units)]):
            unreadable = self._bring_in_order(line, order)
        if unreadable is not None:
            raise unreadable
        # What others were bringing.
        with contextlib.suppress(TimeoutError):
            self.arrivals.wait(0, self.arrivals.units, time.monotonic() + self._giver.patience)
        return not self._tell(line)

    def _bring_in_order(
        self, line: wire.Line, order: list[tuple[int, int]]
    ) -> _UnreadableError | None:
        """Bring what is missing, some requests ahead; return why some of it is still missing."""
        unreadable: _UnreadableError | None = None
        asked: collections.deque[tuple[int, int]] = collections.deque()
        wanted = self._wanted(order)
        buffer = memoryview(bytearray(max(LARGEST_PIECE, self._offer.unit)))
        ahead = 0
        try:
            began = time.monotonic()
            while not self._closing.is_set():
                while ahead * self._offer.unit < self._pace.ahead:
                    if (run := next(wanted, None)) is None:
                        break
                    asked.append(run)
                    ahead += run[1] - run[0]
                    line.send(wire.REQUEST.pack(wire.READ, run[0], run[1] - run[0]))
                if not asked:
                    break
                first, end = asked[0]
                start, stop = self.arrivals.span(first, end)
                try:
                    zero = self._receive(line, first, end, buffer[: stop - start])
                except _UnreadableError as error:
                    unreadable = error
                    self.arrivals.unask(first, end)
                else:
                    self.arrivals.put(first, end, None if zero else buffer)
                    # What another thread brings is acknowledged by that one.
                    if self.arrivals.are_here(first, end):
                        line.send(wire.REQUEST.pack(wire.ACKNOWLEDGE, first, end - first))
                asked.popleft()
                ahead -= end - first
                now = time.monotonic()
                self._pace.came(stop - start, now - began)
                began = now
        finally:
            for run in asked:
                self.arrivals.unask(*run)
        return unreadable

    def _wanted(self, order: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Yield the missing units of an order, to be asked for, as runs of no more than at once."""
        for first, end in order:
            at = first
            while (run := self.arrivals.ask(at, end, self._pace.piece)) is not None:
                yield run
                at = run[1]

    def _tell(self, line: wire.Line) -> int:
        """Say what is here; return how many units the giver still has alone."""
        bits = self.arrivals.bits()
        began = time.monotonic()
        line.send(wire.REQUEST.pack(wire.HAVE, 0, len(bits)), bits)
        kind, code, missing, _, length = wire.ANSWER.unpack(line.receive(wire.ANSWER.size))
        self._pace.heard(time.monotonic() - began)
        if kind != wire.HAVE or code or length:
            raise wire.WireError(errno.EPROTO, "the answer is not to what was asked")
        return int(missing)

    def _order(self, line: wire.Line) -> list[tuple[int, int]]:
        line.send(wire.REQUEST.pack(wire.ORDER, 0, 0))
        kind, code, runs, _, length = wire.ANSWER.unpack(line.receive(wire.ANSWER.size))
        fits = length == 16 * runs and runs <= self.arrivals.units
        if kind != wire.ORDER or code or not fits:
            raise wire.WireError(errno.EPROTO, "the answer is not to what was asked")
        found = np.frombuffer(line.receive(length), "<u8").reshape(-1, 2)
        units = self.arrivals.units
        return [(first, min(first + count, units)) for first, count in found.tolist()]


class _UnreadableError(OSError):
    """The giver cannot read what was asked for; the connection is as good as before."""


def _text(line: wire.Line, length: int) -> str:
    if length > _LARGEST_TEXT:
        raise wire.WireError(errno.EPROTO, f"a message of {length} bytes")
    return bytes(line.receive(length)).decode(errors="replace")
