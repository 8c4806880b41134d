"""An array as its giver has it: the switch, the order, and what was acknowledged."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pagemove._native.pager import Pager
from pagemove.introspect import PAGE_SIZE, PageState, page_states
from pagemove.paging.pins import pinned
from pagemove.stores import wire
from pagemove.stores.handed import Offer, describe, unit_for

if TYPE_CHECKING:
    from pagemove.paging.region import PagedMemory

_PIECE = 1 << 20
# States of pages take memory, of a large array much.
_LOOKED_AT = 1 << 30
# Before the switch it is written back so often while threads go on writing.
_ROUNDS = 3
_LOOK_AGAIN = 0.002
# Who waits for that hears every so many seconds that it goes on; it may not have much patience.
_LONGEST_SILENCE = 0.2
# Of who has not asked again for so long somebody else need not hear what failed.
_GONE_SECONDS = 2.0


class Given:
    """What is handed over, and how far it is.

    Parameters
    ----------
    array : numpy.ndarray
        Contiguous.
    region : PagedMemory
        That it is in.
    patience : float
        Seconds for the switch, and for the other side to take what it has asked for.
    """

    def __init__(self, array: npt.NDArray[Any], region: PagedMemory, patience: float) -> None:
        fortran = array.flags.f_contiguous and not array.flags.c_contiguous
        if not (fortran or array.flags.c_contiguous) or not array.nbytes:
            raise ValueError(
                "an array that is handed over is contiguous, and has items: serve a whole one, or "
                "copy the view into one (create_array)"
            )
        self._array, self._region, self._patience = array, region, patience
        items: Any = array.T if fortran else array
        self._flat = items.reshape(-1).view(np.ndarray).view(np.uint8)
        self.nbytes = array.nbytes
        self._unit = unit_for(array.nbytes)
        self._offer = Offer(
            wire.new_key(), array.dtype, array.shape, bool(fortran), array.nbytes, self._unit
        )
        self._units = -(-self.nbytes // self._unit)
        self._acknowledged = np.zeros(self._units, bool)
        self.missing = self._units
        self.changed = threading.Condition()
        self.owner: str | None = None
        self.broken = ""
        self.sent = 0
        self.connections = 0
        self.switch_seconds = 0.0
        self._since = time.monotonic()
        self._switching = threading.Lock()
        self._describing = threading.Lock()
        self._preparing: threading.Thread | None = None
        self._unprepared: OSError | None = None
        self._prepared_at = 0.0
        self._as_switched: tuple[int, int] | None = None
        # What was writeable before the switch, and whether the region was frozen.
        self._before: tuple[list[npt.NDArray[Any]], bool] = [], False
        self._is_known = False  # to the owner, that it is
        # What is needed from now on counts as used recently; the program may record for itself.
        if region._record is None:
            with contextlib.suppress(OSError):
                Pager.record(region)

    @property
    def missing_bytes(self) -> int:
        """Bytes that are not acknowledged, up to whole units."""
        return min(self.missing * self._unit, self.nbytes)

    @property
    def acknowledged_bytes(self) -> int:
        """Bytes that are."""
        return self.nbytes - self.missing_bytes

    def away_for(self) -> float | None:
        """Return for how long the owner has had no connection; None where it has one."""
        if self.owner is None or self.connections:
            return None
        return time.monotonic() - self._since

    def describe(self) -> str:
        """Say what is offered, after what can be written back before the switch was.

        Raises
        ------
        OSError
            EBUSY: it has an owner; EINPROGRESS: it is still being written back, ask again.
        """
        self._check_free(None)
        if self._preparing is None and not self._changes()[0]:
            return describe(self._offer)
        with self._describing:
            thread = self._preparing
            ended = thread is not None and not thread.is_alive()
            if ended and time.monotonic() - self._prepared_at > _GONE_SECONDS:
                thread = None
            if thread is None:
                self._unprepared = None
                thread = threading.Thread(
                    target=self._prepare, name="pagemove-prepare", daemon=True
                )
                thread.start()
                self._preparing = thread
            thread.join(min(_LONGEST_SILENCE, self._patience / 4))
            if thread.is_alive():
                raise OSError(errno.EINPROGRESS, "what was changed is being written back")
            self._preparing = None
            if self._unprepared is not None:
                raise self._unprepared
        return describe(self._offer)

    def _prepare(self) -> None:
        try:
            with self._switching:
                for _ in range(_ROUNDS if self.owner is None else 0):
                    if self._changes()[0] == 0:
                        break
                    self._write_back()
        except OSError as error:
            self._unprepared = error
        finally:
            self._prepared_at = time.monotonic()

    def take(self, key: str, owner: str) -> None:
        """Make the process that asks the owner, if there is none yet.

        Raises
        ------
        OSError
            EBUSY: another is; ESTALE: what it asks for is not this; EAGAIN: it is being written.
        """
        if key != self._offer.key or not owner:
            raise OSError(errno.ESTALE, "this giver was started anew: open the array again")
        with self._switching:
            self._check_free(owner)
            if self.owner is None:
                self._switch()
                self.owner, self._is_known = owner, False
            with self.changed:
                self.connections += 1
                self.changed.notify_all()

    def leave(self) -> None:
        """Say that a connection which `take` has let in has ended.

        With the last one of an owner that has never asked for anything the array is this process's
        again, and writeable: the switch took longer than that has waited, so it does not know that
        it is the owner.
        """
        with self.changed:
            self.connections -= 1
            self._since = time.monotonic()
            self.changed.notify_all()
        with self._switching, self.changed:
            if self.owner is None or self._is_known or self.connections:
                return
            self.owner, self._as_switched = None, None
            self._thaw()
            self.changed.notify_all()

    def _thaw(self) -> None:
        frozen, self._region._frozen = self._before
        for each in frozen:
            each.flags.writeable = True

    def serve(self, line: wire.Line) -> None:
        """Answer the owner on one connection, which `take` has let in, until that ends."""
        while True:
            # It may have nothing to ask for long; an answer it has to take.
            line.sock.settimeout(None)
            kind, first, count = wire.REQUEST.unpack(line.receive(wire.REQUEST.size))
            line.sock.settimeout(self._patience)
            self._is_known = True
            self._answer(line, kind, first, count)

    def end(self) -> None:
        """Wake up who waits, and see that nothing is written back any more."""
        with self.changed:
            self.changed.notify_all()
        thread = self._preparing
        if thread is not None:
            thread.join(self._patience)

    def _check_free(self, owner: str | None) -> None:
        if self.owner is not None and self.owner != owner:
            raise OSError(errno.EBUSY, "another process has taken the array: it has one owner")

    # The switch.

    def _switch(self) -> None:
        """Keep the contents from changing; EAGAIN if a thread goes on writing."""
        self._settle()  # while threads can still write
        begin = time.monotonic()
        frozen = [each for each in _arrays_behind(self._array) if each.flags.writeable]
        self._before = frozen, self._region._frozen
        self._region._frozen = True
        try:
            for each in frozen:
                each.flags.writeable = False
            # A store that had begun goes on for a moment, in a thread without the GIL.
            deadline = begin + self._patience / 2
            while True:
                found = self._changes()
                time.sleep(_LOOK_AGAIN if self._region.mode != "r" else 0)
                # Writes that are under way end in this, and are counted.
                self._settle()
                if found == self._changes() and found[0] == 0:
                    break
                if time.monotonic() > deadline:
                    raise OSError(
                        errno.EAGAIN,
                        "the array is still being written, by views of it that were made earlier: "
                        "stop the threads that write there",
                    )
            self._as_switched = found
        except BaseException:
            self._thaw()
            raise
        self.switch_seconds = time.monotonic() - begin

    def _settle(self) -> None:
        """Write back, and wait for writes that are under way: theirs are no longer dirty."""
        if self._region.mode != "r+":
            self._write_back()
        self._region._save()

    def _write_back(self) -> None:
        """Have all blocks be clean: only of those the pager sees who writes them."""
        if not self._changes()[0]:
            return  # looking at all blocks would take the longer the more there are
        if self._region.mode == "r+":
            self._region._save()
        else:
            self._region.evict()

    def _changes(self) -> tuple[int, int]:
        """Return a value that differs after a write."""
        counters = self._region.counters()
        return counters["dirty"], counters["bytes_written"]

    def _check_unchanged(self) -> None:
        if self._changes() != self._as_switched:
            with self.changed:
                self.broken = (
                    "it was written here after the other process had taken it, by a view that was "
                    "made earlier"
                )
                self.changed.notify_all()
            raise OSError(errno.EBUSY, self.broken)

    # The answers.

    def _answer(self, line: wire.Line, kind: int, first: int, count: int) -> None:
        if kind == wire.HAVE:
            self._have(line, count)
        elif kind == wire.ORDER:
            runs = self._order()
            line.send(wire.ANSWER.pack(wire.ORDER, 0, len(runs), 0, runs.nbytes), runs.tobytes())
        elif kind in (wire.READ, wire.ACKNOWLEDGE):
            if not 0 < count <= self._units or first > self._units - count:
                raise wire.WireError(errno.EPROTO, "units that the array does not have")
            if kind == wire.READ:
                self._read(line, first, count)
            else:
                self._acknowledge(np.s_[first : first + count], True)
        else:
            raise wire.WireError(errno.EPROTO, f"a request of kind {kind}")

    def _have(self, line: wire.Line, length: int) -> None:
        if length != -(-self._units // 8):
            raise wire.WireError(errno.EPROTO, f"a map of {length} bytes")
        bits = np.frombuffer(line.receive(length), np.uint8)
        here = np.unpackbits(bits, count=self._units, bitorder="little").astype(bool)
        self._acknowledge(here, True)
        line.send(wire.ANSWER.pack(wire.HAVE, 0, self.missing, 0, 0))

    def _acknowledge(self, units: Any, value: bool) -> None:
        with self.changed:
            self._acknowledged[units] = value
            self.missing = self._units - int(np.count_nonzero(self._acknowledged))
            if not self.missing:
                self.changed.notify_all()

    def _read(self, line: wire.Line, first: int, count: int) -> None:
        """Send units, without a copy of them in between."""
        start, stop = first * self._unit, min((first + count) * self._unit, self.nbytes)
        step = self._step()
        begun = False
        trouble: OSError | None = None
        for at in range(start, stop, step):
            piece = self._flat[at : min(at + step, stop)]
            try:
                if trouble is not None:
                    raise trouble
                self._check_unchanged()
                with contextlib.ExitStack() as stack:
                    data = self._held(piece, stack)
                    if len(piece) == stop - start and _is_zero(data):
                        line.send(wire.ANSWER.pack(wire.ZEROS, 0, first, count, 0))
                        begun = True
                        continue
                    if not begun:
                        line.send(wire.ANSWER.pack(wire.READ, 0, first, count, stop - start))
                        begun = True
                    _send(line, data)
                    self.sent += len(piece)
            except _BrokenError:
                raise
            except OSError as error:
                text = str(error.strerror or error).encode()[:4000]
                if not begun:
                    code = error.errno or errno.EIO
                    line.send(wire.ANSWER.pack(wire.READ, code, first, count, len(text)), text)
                    return
                # The other side waits for so many bytes, and drops them.
                trouble = trouble or error
                _send(line, memoryview(bytes(len(piece))))
        self._judge(line, trouble)

    def _judge(self, line: wire.Line, trouble: OSError | None) -> None:
        """Say whether what was sent is what the array had at the switch."""
        if trouble is None:
            try:
                self._check_unchanged()
            except OSError as error:
                trouble = error
        text = b"" if trouble is None else str(trouble.strerror or trouble).encode()[:4000]
        code = 0 if trouble is None else trouble.errno or errno.EIO
        line.send(wire.VERDICT.pack(code, len(text)), text)

    def _step(self) -> int:
        """Choose how many bytes are pinned at once: others want to, too."""
        block = self._region.block_size
        return int(max(min(_PIECE, self._region.pinnable // 4 - block), PAGE_SIZE))

    def _held(self, piece: npt.NDArray[Any], stack: contextlib.ExitStack) -> memoryview:
        """Have the blocks of a piece stay while it is sent; copy it where others pin too many."""
        try:
            stack.enter_context(pinned(piece, write=False))
        except ValueError:
            return memoryview(piece.tobytes())
        return piece.data

    def _order(self) -> npt.NDArray[np.uint64]:
        """Return all units that are not acknowledged, as runs: those in use here first."""
        rank = np.full(self._units, 2**32, np.uint64)
        offset = self._flat.ctypes.data - self._region.address
        with contextlib.suppress(OSError):
            for at in range(0, self.nbytes, _LOOKED_AT):
                states = page_states(self._flat[at : at + _LOOKED_AT])
                resident = np.flatnonzero(states & np.uint16(PageState.PRESENT))
                begins = np.maximum(at + resident * PAGE_SIZE - offset % PAGE_SIZE, 0)
                rank[np.unique(begins // self._unit)] = 2**32 - 1
        block = self._region.block_size
        needed = np.frombuffer(self._region.recorded(), np.uint32).astype(np.int64)
        for age, number in enumerate(needed[::-1][: self._units].tolist()):
            begin, end = number * block - offset, (number + 1) * block - offset
            units = np.s_[max(begin, 0) // self._unit : max(-(-end // self._unit), 0)]
            # What has left memory since comes after what has not.
            rank[units] = np.minimum(rank[units], age + (rank[units] >= 2**32) * 2**31)
        wanted = np.argsort(rank, kind="stable")
        wanted = wanted[~self._acknowledged[wanted]]
        starts = np.flatnonzero(np.diff(wanted, prepend=-2) != 1)
        counts = np.diff(starts, append=len(wanted))
        return np.column_stack([wanted[starts], counts]).astype("<u8")


class _BrokenError(ConnectionError):
    """The connection, not the array, has failed."""


def _send(line: wire.Line, data: memoryview) -> None:
    try:
        line.send(data)
    except OSError as error:
        raise _BrokenError from error


def _is_zero(data: memoryview) -> bool:
    # Nearly all that is not zero shows that at once.
    if any(data[:64]):
        return False
    return not np.frombuffer(data, np.uint8).any()


def _arrays_behind(array: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """List an array and those that it is a view of."""
    found = []
    seen: Any = array
    while isinstance(seen, np.ndarray):
        found.append(seen)
        seen = seen.base
    return found
