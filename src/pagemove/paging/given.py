"""An array as its giver has it: the switch, the order, and what was acknowledged."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from pagemove._native.pager import Giver, Pager
from pagemove.introspect import PAGE_SIZE, PageState, page_states
from pagemove.stores import wire
from pagemove.stores.handed import Offer, describe, unit_for

if TYPE_CHECKING:
    import ssl

    from pagemove.paging.region import PagedMemory

# States of pages take memory, of a large array much.
_LOOKED_AT = 1 << 30
# Before the switch it is written back so often while threads go on writing.
_ROUNDS = 3
_LOOK_AGAIN = 0.002
# At least, where nobody has written for so long.
_LOOK_BRIEFLY = 0.0003
# Who waits for that hears every so many seconds that it goes on; it may not have much patience.
_LONGEST_SILENCE = 0.2
# Of who has not asked again for so long somebody else need not hear what failed.
_GONE_SECONDS = 2.0
# What a connection needs the interpreter for: as in pager/giving.h.
_NEED_ORDER = 1
_WRITTEN = (
    "it was written here after the other process had taken it, by a view that was made earlier"
)
_NOT_ALONE = (
    "cannot hand over one array of {}: others of the same file are in its region, and can be "
    "written, which would break the hand-over; close them, or open this one by itself, "
    'open_array("FILE#NAME"), which has a region of its own'
)


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
        if not self._is_alone():
            raise ValueError(_NOT_ALONE.format(region._label))
        items: Any = array.T if fortran else array
        self._flat = items.reshape(-1).view(np.ndarray).view(np.uint8)
        self.nbytes = array.nbytes
        self._unit = unit_for(array.nbytes)
        self._offer = Offer(
            wire.new_key(), array.dtype, array.shape, bool(fortran), array.nbytes, self._unit
        )
        self._units = -(-self.nbytes // self._unit)
        self._giver = Giver(region, self._flat.ctypes.data, self.nbytes, self._unit)
        self.changed = threading.Condition()
        self.owner: str | None = None
        self.connections = 0
        self.switch_seconds = 0.0
        self._since = time.monotonic()
        self._switching = threading.Lock()
        self._describing = threading.Lock()
        self._preparing: threading.Thread | None = None
        self._unprepared: OSError | None = None
        self._prepared_at = 0.0
        self._as_switched = 0, 0
        # What it was when it was described, and since when.
        self._seen = (-1, -1), 0.0
        # What was writeable before the switch, and whether the region was frozen.
        self._before: tuple[list[npt.NDArray[Any]], bool] = [], False
        # What is needed from now on counts as used recently; the program may record for itself.
        if region._record is None:
            with contextlib.suppress(OSError):
                Pager.record(region)

    @property
    def missing(self) -> int:
        """Units that are not acknowledged."""
        return self._giver.missing

    @property
    def sent(self) -> int:
        """Bytes that were sent."""
        return self._giver.sent

    @property
    def broken(self) -> str:
        """Why nothing more is given; empty: it is."""
        return _WRITTEN if self._giver.broken else ""

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
        found = self._changes()
        if found != self._seen[0]:
            self._seen = found, time.monotonic()
        if self._preparing is None and not found[0]:
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
                self._giver.switched(*self._as_switched)
                self.owner = owner
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
            if self.owner is None or self._giver.asked or self.connections:
                return
            self.owner = None
            self._thaw()
            self.changed.notify_all()

    def _thaw(self) -> None:
        self._giver.count_stores_only(False)
        frozen, self._region._frozen = self._before
        for each in frozen:
            each.flags.writeable = True

    def serve(self, line: wire.Line) -> None:
        """Answer the owner on one connection, which `take` has let in, until that ends."""
        file = -1
        patience = min(int(self._patience * 1e9), 2**62)
        with contextlib.ExitStack() as stack:
            if type(line.sock) is socket.socket:
                # Who closes the line may not close what is used in C.
                sock = line.sock.dup()
            else:
                from pagemove.stores.tunnels import carried  # and TLS

                sock = carried(cast("ssl.SSLSocket", line.sock))
                sock.settimeout(self._patience)
            near = stack.enter_context(wire.Line(sock))
            try:
                while True:
                    need, file = self._giver.serve(sock.fileno(), file, patience)
                    if need < 0:
                        return
                    if need == _NEED_ORDER:
                        runs = self._order()
                        head = wire.ANSWER.pack(wire.ORDER, 0, len(runs), 0, runs.nbytes)
                        near.send(head, runs.tobytes())
                    else:
                        with self.changed:
                            self.changed.notify_all()
            finally:
                if file >= 0:
                    os.close(file)

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

    def _is_alone(self) -> bool:
        """Whether no other array of the same file can be written in the same region, lawfully."""
        region = self._region
        if region.mode == "r":
            return True
        first = self._array.ctypes.data
        return not region._is_common and not region._has_others(first)

    # The switch.

    def _switch(self) -> None:
        """Keep the contents from changing; EAGAIN if a thread goes on writing."""
        if not self._is_alone():
            raise OSError(errno.EAGAIN, _NOT_ALONE.format(self._region._label))
        if self._changes()[0]:
            self._settle()  # while threads can still write
        begin = time.monotonic()
        frozen = [each for each in _arrays_behind(self._array) if each.flags.writeable]
        self._before = frozen, self._region._frozen
        self._region._frozen = True
        try:
            self._giver.count_stores_only(True)
            for each in frozen:
                each.flags.writeable = False
            # A store that had begun goes on for a moment, in a thread without the GIL.
            deadline = begin + self._patience / 2
            while True:
                found = self._changes()
                pause = _LOOK_AGAIN if self._region.mode != "r" else 0
                if found == self._seen[0]:
                    left = pause - (time.monotonic() - self._seen[1])
                    pause = max(left, min(pause, _LOOK_BRIEFLY))
                time.sleep(pause)
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
        acknowledged = np.frombuffer(self._giver.acknowledged(), bool)
        wanted = wanted[~acknowledged[wanted]]
        starts = np.flatnonzero(np.diff(wanted, prepend=-2) != 1)
        counts = np.diff(starts, append=len(wanted))
        return np.column_stack([wanted[starts], counts]).astype("<u8")


def _arrays_behind(array: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """List an array and those that it is a view of."""
    found = []
    seen: Any = array
    while isinstance(seen, np.ndarray):
        found.append(seen)
        seen = seen.base
    return found
