"""Hand-over without the interpreter: neither side needs it for a block, whoever holds it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pagemove
from pagemove.stores import wire
from pagemove.stores.handed import HandedStore
from support import child
from support.handing import HERE, OFFER, WORDS, Liar, all_of, made, until, url_of

NUMBERS = np.arange(1, WORDS + 1)
UNIT = OFFER.unit

# Holds the interpreter from when it says so until it hears that all has come.
_GIVER = """
import ctypes, sys, threading
import numpy as np, pagemove
array = pagemove.create_array(sys.argv[1], %d, "i8", resident_limit="1MiB")
array[:] = np.arange(1, len(array) + 1)
where = sys.argv[2] if len(sys.argv) > 2 else ("127.0.0.1", 0)
served = pagemove.serve(array, where, store_timeout=60)
print(served.url, flush=True)
sys.stdin.readline()
c, byte = ctypes.PyDLL(None), ctypes.create_string_buffer(2)
c.write(1, b"!", 1)
c.read(0, byte, 1)
served.wait(60)
print("done")
"""


def _take_from_who_holds_the_interpreter(folder: Path, where: str | None) -> None:
    command = [
        sys.executable,
        "-c",
        _GIVER % WORDS,
        str(folder / "it"),
        *([where] if where else []),
    ]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as giver:
        assert giver.stdin is not None
        assert giver.stdout is not None
        try:
            url = giver.stdout.readline().decode().strip()
            store = HandedStore(url, backing="memory", store_timeout=60)
            store._quiet = True
            some = np.zeros(1, np.int64)
            store.read_into(0, some)  # it is the owner
            giver.stdin.write(b"\n")
            giver.stdin.flush()
            assert giver.stdout.read(1) == b"!"
            found = all_of(store)
            assert np.array_equal(found, NUMBERS)
            giver.stdin.write(b"!")
            giver.stdin.close()
            store._taken.go_on()  # type: ignore[union-attr]
            assert giver.stdout.read() == b"done\n"
            assert giver.wait(60) == 0
            store.close()
        finally:
            giver.kill()


@pytest.mark.each
@pytest.mark.parametrize("unix", [False, True])
def test_a_giver_whose_interpreter_is_held_answers(tmp_path: Path, unix: bool) -> None:
    where = str(tmp_path / "socket") if unix else None
    child(_take_from_who_holds_the_interpreter, tmp_path, where, deadline=120)


def _touch_with_the_interpreter_held(url: str) -> bytes:
    array = pagemove.open_array(url, resident_limit="512KiB")
    # Copied by C code that does not let go of it: each block is a fault meanwhile.
    copied = ctypes.create_string_buffer(array.nbytes)
    address = ctypes.c_void_p(array.ctypes.data)
    ctypes.PyDLL(None).memcpy(copied, address, ctypes.c_size_t(array.nbytes))
    return copied.raw


@pytest.mark.each
@pytest.mark.parametrize("unix", [False, True])
def test_a_taker_whose_interpreter_is_held_has_what_it_touches(tmp_path: Path, unix: bool) -> None:
    numbers = made(tmp_path)
    with pagemove.serve(numbers, tmp_path / "socket" if unix else HERE) as served:
        assert child(_touch_with_the_interpreter_held, served.url, deadline=120) == bytes(
            NUMBERS.data
        )


def _helpers() -> set[str]:
    """Return the processes that run stores of this one."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[-2:-1] == [str(os.getpid()).encode()] and any(b"helper.main" in w for w in words):
            found.add(pid)
    return found


def test_no_process_is_started_for_it(tmp_path: Path) -> None:
    numbers = made(tmp_path)
    before = _helpers()
    with pagemove.serve(numbers, tmp_path / "socket") as served:
        array = pagemove.open_array(served.url)
        assert _helpers() <= before
        served.wait(60)
    assert np.array_equal(array, NUMBERS)
    pagemove.region_of(array).flush()
    assert pagemove.region_of(array).stats().store["missing_bytes"] == 0


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_secrets_of_any_length(tmp_path: Path, length: int) -> None:
    numbers, secret = made(tmp_path), "s" * length
    with (
        pagemove.serve(numbers, HERE, secret=secret) as served,
        HandedStore(served.url, secret=secret, backing="memory") as store,
    ):
        assert np.array_equal(all_of(store), NUMBERS)


def test_a_refusal_on_the_way_is_told(tmp_path: Path) -> None:
    """The giver was started anew, with another offer at the same place."""
    numbers, path = made(tmp_path), tmp_path / "socket"
    with pagemove.serve(numbers, path) as served:
        store = HandedStore(served.url)
    with pagemove.serve(numbers, path), store:
        for _ in range(2):
            with pytest.raises(pagemove.StoreError, match="started anew: open the array again"):
                store.read_into(0, bytearray(8))
        with pytest.raises(pagemove.StoreError, match="started anew"):
            store.write(0, bytes(8))


def test_who_came_early_and_asks_for_nothing_is_not_the_owner(tmp_path: Path) -> None:
    """As where the region cannot be opened after all."""
    numbers = made(tmp_path)
    with pagemove.serve(numbers, tmp_path / "socket") as served:
        with HandedStore(served.url) as store:
            store._eager = True
            store._begun("read", 0)
            until(lambda: served.taken)
            assert not numbers.flags.writeable
        until(lambda: not served.taken)
        numbers[0] = 7
        with HandedStore(served.url) as store:
            store._eager = True
            found = np.zeros(1, np.int64)
            store.read_into(0, found)
            assert found[0] == 7
            assert served.taken


def test_who_has_written_all_of_it_goes_on_telling() -> None:
    """There is nothing to keep connections for, and the giver does not say that it knows."""
    told = threading.Semaphore(0)

    def answer(line: wire.Line) -> None:
        while True:
            kind, _, count = wire.REQUEST.unpack(line.receive(wire.REQUEST.size))
            if kind == wire.HAVE:
                line.receive(count)
                told.release()
                line.send(wire.ANSWER.pack(wire.HAVE, 0, 5, 0, 0))
            elif kind == wire.ORDER:
                line.send(wire.ANSWER.pack(wire.ORDER, 0, 0, 0, 0))

    listener = socket.create_server(HERE)
    with (
        Liar(listener, OFFER, answer),
        HandedStore(url_of(listener), backing="memory", store_timeout=5) as store,
    ):
        store._quiet = True
        store.write(0, bytes(OFFER.nbytes))
        store._taken.go_on()  # type: ignore[union-attr]
        # Twice on a connection, and on the next one.
        for _ in range(3):
            assert told.acquire(timeout=30)


class TestFiles:
    """What the giver puts into a file of the taker, over a Unix socket."""

    def listener(self, path: Path) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        return listener

    def taken(
        self, path: Path, answer: Callable[[wire.Line], None], timeout: float = 30
    ) -> tuple[Liar, HandedStore]:
        liar = Liar(self.listener(path), OFFER, answer)
        liar.__enter__()
        store = HandedStore(f"pagemove+unix://{path}", backing="memory", store_timeout=timeout)
        store._quiet = True
        return liar, store

    def test_what_comes_late_lands_where_nobody_looks(self, tmp_path: Path) -> None:
        """It is asked for again, has come, and has been written, when the first giver wakes up."""
        files: list[int] = []

        def answer(line: wire.Line) -> None:
            data, passed, _, _ = socket.recv_fds(line.sock, wire.REQUEST.size, 1)
            assert wire.REQUEST.unpack(data)[0] == wire.FILE
            files.extend(passed)
            line.send(wire.ANSWER.pack(wire.FILE, 0, 0, 0, 0))
            kind, first, count = wire.REQUEST.unpack(line.receive(wire.REQUEST.size))
            assert kind == wire.READ
            if len(files) == 1:
                return  # and the connection is lost
            os.pwrite(passed[0], b"n" * UNIT, first * UNIT)
            line.send(wire.ANSWER.pack(wire.IN_FILE, 0, first, count, UNIT))
            line.send(wire.VERDICT.pack(0, 0))
            line.receive(wire.REQUEST.size + 1)

        liar, store = self.taken(tmp_path / "socket", answer)
        with pytest.raises(pagemove.StoreError, match="closed the connection"):
            store.read_into(5 * UNIT, bytearray(UNIT))
        found = bytearray(UNIT)
        store.read_into(5 * UNIT, found)
        assert found == b"n" * UNIT
        store.write(5 * UNIT, b"w" * 100)
        os.pwrite(files[0], b"late" * (UNIT // 4), 5 * UNIT)
        store.read_into(5 * UNIT, found)
        assert found == b"w" * 100 + b"n" * (UNIT - 100)
        # Of the file the giver can change the bytes that it may send, and not the length.
        with pytest.raises(PermissionError):
            os.truncate(files[1], 0)
        for each in files:
            os.close(each)
        store.close()
        liar.__exit__()

    @pytest.mark.parametrize(
        "said",
        [
            wire.ANSWER.pack(wire.IN_FILE, 0, 0, 1, UNIT + 1),
            wire.ANSWER.pack(wire.IN_FILE, 0, 1, 1, UNIT),
            wire.ANSWER.pack(wire.READ, 0, 0, 1, UNIT),
            wire.ANSWER.pack(wire.IN_FILE, 5, 0, 1, 1 << 40),
        ],
    )
    def test_an_answer_that_is_none(self, tmp_path: Path, said: bytes) -> None:
        def answer(line: wire.Line) -> None:
            line.receive(wire.REQUEST.size)
            line.send(wire.ANSWER.pack(wire.FILE, 0, 0, 0, 0))
            line.receive(wire.REQUEST.size)
            line.send(said)
            line.receive(1)

        liar, store = self.taken(tmp_path / "socket", answer, 1)
        buffer = bytearray(b"kept" * 2)
        with pytest.raises(pagemove.StoreError, match="have not arrived"):
            store.read_into(0, buffer)
        assert buffer == b"keptkept"
        store.close()
        liar.__exit__()

    def test_a_giver_that_wants_no_file_sends(self, tmp_path: Path) -> None:
        def answer(line: wire.Line) -> None:
            line.receive(wire.REQUEST.size)
            line.send(wire.ANSWER.pack(wire.FILE, 95, 0, 0, 0))
            _, first, count = wire.REQUEST.unpack(line.receive(wire.REQUEST.size))
            line.send(wire.ANSWER.pack(wire.READ, 0, first, count, UNIT), b"s" * UNIT)
            line.send(wire.VERDICT.pack(0, 0))
            line.receive(wire.REQUEST.size + 1)

        liar, store = self.taken(tmp_path / "socket", answer)
        found = bytearray(UNIT)
        store.read_into(UNIT, found)
        assert found == b"s" * UNIT
        store.close()
        liar.__exit__()

    def test_a_file_that_is_none_is_not_taken(self, tmp_path: Path) -> None:
        """The giver would wait in it; it sends then."""
        numbers = made(tmp_path)
        with pagemove.serve(numbers, tmp_path / "socket") as served:
            offer = HandedStore(served.url).offer
            place = wire.place_of(served.url)
            with wire.connect(place, None, None, 20) as line:
                want = {"do": "take", "name": "", "owner": "x", "offer": offer.key}
                wire.greet(line, json.dumps(want).encode(), None)
                reader, writer = os.pipe()
                socket.send_fds(line.sock, [wire.REQUEST.pack(wire.FILE, 0, 0)], [writer] * 2)
                answer = wire.ANSWER.unpack(line.receive(wire.ANSWER.size))
                assert answer[:2] == (wire.FILE, 95)
                line.send(wire.REQUEST.pack(wire.READ, 0, 1))
                answer = wire.ANSWER.unpack(line.receive(wire.ANSWER.size))
                assert answer == (wire.READ, 0, 0, 1, UNIT)
                # What was passed besides is closed.
                until(lambda: _ends_of(writer) == 2)
                assert bytes(line.receive(UNIT)) == bytes(NUMBERS.data[: UNIT // 8])
                os.close(reader)
                os.close(writer)

    def test_no_room_in_the_file(self, tmp_path: Path) -> None:
        child(_hand_over_without_room, tmp_path, deadline=120)


def _ends_of(fd: int) -> int:
    """Return how many descriptors of this process are of the same pipe."""
    count, pipe = 0, os.readlink(f"/proc/self/fd/{fd}")
    for each in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            count += os.readlink(f"/proc/self/fd/{each}") == pipe
    return count


def _hand_over_without_room(folder: Path) -> None:
    """The giver says so, the block stays with it, and comes when there is room."""
    numbers = made(folder)
    with pagemove.serve(numbers, folder / "socket") as served, HandedStore(served.url) as store:
        store._quiet = True
        store.read_into(0, bytearray(8))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * UNIT, before[1]))
        with pytest.raises(pagemove.StoreError, match="cannot write to the file") as caught:
            store.read_into(5 * UNIT, bytearray(8))
        assert caught.value.errno == errno.EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert np.array_equal(all_of(store), NUMBERS)
        until(lambda: served.progress == 1)


def test_a_child_made_by_fork_keeps_no_connection_open(tmp_path: Path) -> None:
    numbers = made(tmp_path)
    with pagemove.serve(numbers, HERE, store_timeout=30) as served:
        store = HandedStore(served.url)
        store._quiet = True
        store.read_into(0, bytearray(8))
        ready, ended = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(ended)
            os.read(ready, 1)
            os._exit(0)
        os.close(ready)
        store.close()
        until(lambda: served.stats()["connections"] == 0)
        os.close(ended)
        assert os.waitpid(pid, 0)[1] == 0
    assert not [each for each in threading.enumerate() if each.name == "pagemove-take"]
