"""The stores that a helper process runs, each for one region: what they get, and how they leave.

Nothing here waits by what a program's main module may replace: gevent's threads and locks run only
when a thread of this process waits in its way.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import socket
import struct
from _thread import allocate_lock, get_ident, start_new_thread
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from pagemove import limits
from pagemove._native.pager import Desk, beat, mail_bytes, watch_beats
from pagemove.descriptors import identity_of
from pagemove.paging import own
from pagemove.stores.base import Store

#: Of the answers of `pagemove.paging.helper`: error, length of the text that follows.
ANSWER = struct.Struct("=iI")
#: Nothing went wrong.
DONE = ANSWER.pack(0, 0)
# As in host.c: this process is done with a region.
_LEFT = ANSWER.pack(-1, 0)

_NUMBERS = struct.Struct("=QQQQ")
_FIXED = 4

# s. A store that only reads may take so long to close, or to return from a read, before its region
# has done without. One that holds the interpreter for the other is in the way of all others.
_FAREWELL = 1.0
_HELD = 2.0
# Of the descriptors that this process may have, the share that regions may take.
_SHARE = 0.75


def say(control: socket.socket, answer: bytes) -> None:
    """Say how it went, to a program that may be gone by now, or have given up."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        control.send(answer)


def start_thread(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Start one, or say which limit is in the way."""
    try:
        start_new_thread(function, arguments)
    except RuntimeError as error:
        refused = OSError(errno.EAGAIN, f"a request under way needs a thread: {error}")
        raise limits.explain(refused) from error


class Tenant:
    """What a region has handed over: its store, once that is unpickled, and the ways to it.

    Parameters
    ----------
    control : socket
        Where it comes from. Its end is that of the region.

    Raises
    ------
    EOFError
        The region was given up.
    OSError
        This process may not have so many descriptors.

    Attributes
    ----------
    config, log : int
        Descriptors of its pickled store, and of what its log records go to.
    door : int or None
        By which others come.
    desk : Desk or None
        Where its requests come, once `furnish` was called.
    """

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        message, found = own.receive(control, _NUMBERS.size)
        if not message:
            raise EOFError
        count, self.nbytes, has_door, self._generation = _NUMBERS.unpack(message)
        if len(found) != _FIXED + count + has_door:
            for each in found:
                own.close(each)
            raise limits.explain(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
        self.door = found.pop() if has_door else None
        self.config, self._memory, log, self._region, *lanes = found
        # Also what runs in a child that a store forks may have something to say.
        self.log = own.as_common_socket(log)
        self._lanes = [own.as_socket(lane) for lane in lanes]
        # A store may close any number, and open something else under it.
        self._known_lanes = [identity_of(lane) for lane in lanes]
        kept = control.fileno(), self.config, log, self._region
        self._known = {fd: identity_of(fd) for fd in kept}
        self._buffers: mmap.mmap | None = None
        self.store: Store | None = None
        self.desk: Desk | None = None
        self._leaving, self._gone = allocate_lock(), False
        self._counting, self._running = allocate_lock(), 0
        self._quiet = allocate_lock()

    def furnish(self) -> None:
        """Map its memory, by which the region learns more than by descriptors."""
        room = self.nbytes * len(self._lanes)
        try:
            self._buffers = mmap.mmap(self._memory, room + mail_bytes())
        finally:
            own.close(self._memory)
            self._memory = -1
        letters = np.frombuffer(self._buffers, np.uint8)[room:].ctypes.data
        self.desk = Desk(letters, self._generation, self._region, self._buffers)

    def is_whole(self) -> bool:
        """Whether the descriptors are still what they were, apart from those of lanes."""
        if own.is_forked():
            log = self.log.fileno()  # all that such a process has
            return identity_of(log) == self._known.get(log)
        with self._leaving:
            return self._gone or all(identity_of(fd) == known for fd, known in self._known.items())

    def check_whole(self) -> None:
        """End this process, and have the region say why, if a store has closed any of them.

        Also if a store has forked it: see `own.end_if_forked`.
        """
        own.end_if_forked(self.store)
        if not self.is_whole():
            self.give_up()

    def answer(self, number: int, answer: bytes) -> None:
        """Send an answer by one of the lanes, or end this process if a store has closed that.

        Also if a store has forked it.
        """
        own.end_if_forked(self.store)
        lane, known = self._lanes[number], self._known_lanes[number]
        if identity_of(lane.fileno()) == known:
            try:
                lane.send(answer)
            except BrokenPipeError:
                return  # the region has ended, or given up
            except OSError:
                if identity_of(lane.fileno()) == known:
                    raise
            else:
                return
        self.give_up()

    def give_up(self) -> NoReturn:
        """End this process: descriptors that it cannot do without were closed."""
        if self.desk is not None:
            self.desk.note_cut_off()
        os._exit(1)

    def open(self, serve: Callable[[Tenant, int, memoryview], None]) -> None:
        """Have a thread serve each lane."""
        assert self._buffers is not None
        for number in range(len(self._lanes)):
            view = memoryview(self._buffers)[number * self.nbytes : (number + 1) * self.nbytes]
            self._begin()
            try:
                start_thread(self._run, (serve, number, view))
            except BaseException:
                self._finish()
                raise

    def _begin(self) -> None:
        with self._counting:
            if not self._running:
                self._quiet.acquire()
            self._running += 1

    def _finish(self) -> None:
        with self._counting:
            self._running -= 1
            if not self._running:
                self._quiet.release()

    def _run(self, serve: Callable[..., None], number: int, view: memoryview) -> None:
        OF_THREADS[get_ident()] = self
        try:
            serve(self, number, view)
        finally:
            with contextlib.suppress(OSError):  # a store has closed it
                own.close(self._lanes[number])
            del OF_THREADS[get_ident()]
            self._finish()

    def wait_for_end(self) -> None:
        """Wait for the region's end, and begin nothing more for it."""
        with contextlib.suppress(OSError):  # reset; or a store has closed it
            self.control.recv(1)
        self.check_whole()
        self._hang_up()

    def _hang_up(self) -> None:
        if self.desk is not None:
            self.desk.end()
        for lane in self._lanes:
            with contextlib.suppress(OSError):  # its thread has ended
                lane.shutdown(socket.SHUT_RDWR)

    def close_store(self, *, waiting: bool = True) -> None:
        """Close it, by default when all calls of it have returned."""
        if waiting:
            with self._quiet:
                pass
        if self.store is not None:
            try:
                self.store.close()
            finally:
                own.end_if_forked(self.store)

    def release(self) -> None:
        """Put nothing into the region any more, and forget it."""
        self._hang_up()
        with self._leaving:
            if self._gone:
                return
            self._gone = True
            if self.desk is not None:
                self.desk.leave()
            for each in (self.config, self._region, self._memory):
                if each >= 0:
                    own.close(each)
        self.log.close()

    @property
    def reads_only(self) -> bool:
        """Whether nothing that its store does late could overwrite anything."""
        return self.store is not None and not self.store.writable


#: Whom threads work for.
OF_THREADS: dict[int, Tenant] = {}


class House:
    """All of them in this process, which ends with the last. One may be on its way in."""

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._count = 0
        self._staying: list[Tenant] = []
        self._watched = False

    @property
    def anyone(self) -> Tenant | None:
        """One of the remaining regions, for what belongs to none in particular."""
        return next(iter(self._staying), None)

    def enter(self) -> None:
        """Count one that is on its way in."""
        with self._lock:
            self._count += 1

    def check_whole(self) -> None:
        """End this process if a store has closed what any of the others needs."""
        for tenant in list(self._staying):
            tenant.check_whole()

    def stay(self, tenant: Tenant) -> None:
        """Have it leave when its region ends."""
        self._staying.append(tenant)
        start_thread(self._see_off, (tenant,))

    def _see_off(self, tenant: Tenant) -> None:
        tenant.wait_for_end()
        OF_THREADS[get_ident()] = tenant
        try:
            self._close(tenant)
        finally:
            del OF_THREADS[get_ident()]
            self._staying.remove(tenant)
            self.leave(tenant.control, tenant)

    def _close(self, tenant: Tenant) -> None:
        if self._count == 1:
            # As in a process of its own, which is killed if this takes too long.
            tenant.close_store(waiting=False)
            return
        closed = allocate_lock()
        closed.acquire()

        def close() -> None:
            try:
                tenant.close_store()
            finally:
                closed.release()

        try:
            start_new_thread(close, ())
        except RuntimeError:
            close()
        # Calls that may still write have to end. A read that hangs may go on.
        closed.acquire(True, _FAREWELL if tenant.reads_only else -1)

    def leave(self, control: socket.socket | None, tenant: Tenant | None) -> None:
        """Say that this process is done with a region; or end it, which says the same."""
        own.end_if_forked(tenant.store if tenant is not None else None)
        with self._lock:
            self._count -= 1
            if not self._count:
                os._exit(0)
        if tenant is not None:
            tenant.release()
        if control is not None:
            say(control, _LEFT)
            own.close(control)

    def is_full(self) -> bool:
        """Whether another one might leave the others without descriptors."""
        return (
            len(os.listdir("/proc/self/fd")) + own.MOST_DESCRIPTORS
            > _SHARE * limits.soft_descriptors()
        )

    def watch(self) -> None:
        """End this process if none of its threads gets the interpreter any more.

        Then all regions go on in processes of their own.
        """
        if not self._watched and not watch_beats(int(_HELD * 1e9)):
            self._watched = True
            start_thread(self._watch, ())

    def _watch(self) -> None:
        never = allocate_lock()
        never.acquire()
        while True:
            beat(self._count > 1)
            never.acquire(True, _HELD / 8)
