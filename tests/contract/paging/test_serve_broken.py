"""Hand-over with a loss at every message, and with either side killed at any moment."""

from __future__ import annotations

import contextlib
import itertools
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pagemove
from pagemove.paging.served import Served
from pagemove.stores import wire
from pagemove.stores.handed import HandedStore
from support.handing import HERE, all_of, until
from support.network import Network
from support.selection import few
from support.slowness import patience

UNIT = 65536
WORDS = 3 * UNIT // 8 + 100
NUMBERS = np.arange(1, WORDS + 1)


class _Counted(wire.Line):
    """Which tells, in bytes of both directions, where each thing said on its connection ends."""

    def __init__(self, line: wire.Line) -> None:
        super().__init__(line.sock)
        self._at, self.ends = 0, [0]

    def _said(self, nbytes: int) -> None:
        self._at += nbytes
        self.ends.append(self._at)

    def send(self, *parts: bytes) -> None:
        for part in parts:
            super().send(part)
            self._said(len(part))

    def receive_into(self, view: memoryview) -> None:
        super().receive_into(view)
        self._said(len(view))


def _ends(
    array: np.ndarray, monkeypatch: pytest.MonkeyPatch, *, unix: bool
) -> tuple[list[int], list[int]]:
    """Return where messages end: of one that asks what there is, and of one that takes it all."""
    lines: list[_Counted] = []

    def connect(*how: object) -> _Counted:
        lines.append(_Counted(real(*how)))  # type: ignore[arg-type]
        return lines[-1]

    real = wire.connect
    monkeypatch.setattr(wire, "connect", connect)
    with (
        pagemove.serve(array, HERE, secret="s") as served,
        HandedStore(served.url, secret="s") as store,
    ):
        want = store.taking()[1]  # type: ignore[index]
    monkeypatch.undo()
    # In C: the greeting, and what is said of each unit.
    said = [wire._HELLO.size, wire._WANT.size, len(want), wire._REPLY.size]
    asks, head, end = wire.REQUEST.size, wire.ANSWER.size, wire.VERDICT.size
    if unix:  # with a file, into which the bytes go
        said += [asks, head]
    for at in range(0, array.nbytes, UNIT):
        nbytes = [] if unix else [min(UNIT, array.nbytes - at)]
        said += [asks, head, *nbytes, end, asks]
    return lines[0].ends, [0, *itertools.accumulate(said)]


def _cuts(ends: list[int]) -> list[int]:
    """Before the last byte of each message, after it, and after the first of the next."""
    cuts = sorted({end + by for end in ends[1:-1] for by in (-1, 0, 1)})
    assert len(cuts) > 8
    return cuts if few(2, 1) > 1 else cuts[:: len(cuts) // 9]


@pytest.mark.each
@pytest.mark.parametrize("unix", [False, True])
def test_a_connection_that_is_lost_at_any_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unix: bool
) -> None:
    path = tmp_path / "socket" if unix else None
    array = pagemove.create_array(tmp_path / "it", WORDS, np.int64, resident_limit="1MiB")
    array[:] = NUMBERS
    asking, taking = map(_cuts, _ends(array, monkeypatch, unix=unix))
    for cut in asking:
        with _served(array, cut, path) as (served, network):
            network.shares[:] = [cut]
            with pytest.raises(OSError, match=r"closed|reset|[Bb]roken"):
                _store(network)
            with _store(network) as store:
                assert np.array_equal(all_of(store), NUMBERS)
                served.wait(60)
            assert network.losses >= 1
    for cut in taking:
        with _served(array, cut, path) as (served, network), _store(network) as store:
            network.shares[:] = [cut]
            # So that it is known what is said next.
            store._quiet = True
            found = all_of(store)
            # Of the last message nobody waits for the answer.
            until(lambda network=network: network.losses == 1)
            # What was not acknowledged is told by the next connection.
            store._taken.go_on()  # type: ignore[union-attr]
            served.wait(60)
            assert served.progress == 1
        assert np.array_equal(found, NUMBERS)
    assert np.array_equal(array, NUMBERS)


@contextlib.contextmanager
def _served(array: np.ndarray, seed: int, path: Path | None) -> Iterator[tuple[Served, Network]]:
    with pagemove.serve(array, path or HERE, secret="s", store_timeout=20) as served:
        network = Network(path or wire.place_of(served.url).port, seed)
        try:
            yield served, network
        finally:
            network.close()


def _store(network: Network) -> HandedStore:
    path = getattr(network, "path", None)
    url = f"pagemove+unix://{path}" if path else f"pagemove://127.0.0.1:{network.port}"
    return HandedStore(url, secret="s", backing="memory", store_timeout=20)


_GIVER = """
import numpy as np, pagemove, signal, sys
a = pagemove.PagedMemory(nbytes=32 << 20).asarray("i8")
a[:] = np.arange(1, len(a) + 1)
served = pagemove.serve(a, ("127.0.0.1", 0))
print(served.url, flush=True)
signal.pause()
"""


@contextlib.contextmanager
def _ended(process: subprocess.Popen[Any]) -> Iterator[None]:
    """However it goes on, nobody waits for it."""
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.needs("zstandard")
def test_a_giver_that_is_killed_while_it_gives() -> None:
    for seed in range(few(6, 1)):
        _kill_giver(seed)


def _kill_giver(seed: int) -> None:
    """What has arrived is right, and the rest is an error."""
    draw = random.Random(seed)
    with subprocess.Popen([sys.executable, "-c", _GIVER], stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        with _ended(it), HandedStore(it.stdout.readline().strip(), store_timeout=2) as store:
            part = np.zeros(UNIT // 8, np.int64)
            store.read_into(draw.randrange(500) * UNIT, part)
            wanted = draw.randrange(1, 400) * UNIT
            until(lambda: store.stats()["arrived_bytes"] >= wanted)
            it.kill()
            it.wait()
            expected = np.arange(1, (32 << 20) // 8 + 1)
            here = refused = 0
            bits = np.frombuffer(store._taken.bits(), np.uint8)  # type: ignore[union-attr]
            for unit, is_here in enumerate(np.unpackbits(bits, bitorder="little")):
                if not is_here and refused:
                    continue  # each takes as long as it is waited for
                part[:] = -1
                try:
                    store.read_into(unit * UNIT, part)
                except pagemove.StoreError:
                    refused += 1
                    assert set(part.tolist()) == {-1}
                else:
                    here += 1
                    at = unit * UNIT // 8
                    assert np.array_equal(part, expected[at : at + len(part)])
            assert here * UNIT >= wanted
            missing = store.stats()["missing_bytes"]
            assert (missing == 0) == (refused == 0)


_IDLE_GIVER = """
import sys, time
import pagemove
path, socket = sys.argv[1:]
served = pagemove.serve(pagemove.open_array(path, dtype="u1", resident_limit="256KiB"), socket)
print(served.url, flush=True)
time.sleep(600)
"""


def _opened_at_last(url: str, **how: Any) -> pagemove.PagedArray:
    """Open it, again while the giver has not said in time what it has."""
    limit = time.monotonic() + patience(20)
    while True:
        try:
            return pagemove.open_array(url, **how)
        except OSError:
            assert time.monotonic() < limit


def test_what_has_not_arrived_is_said_in_no_helper(tmp_path: Path) -> None:
    """For there is none; and what has to be looked at is the giver."""
    with (tmp_path / "it").open("wb") as file:
        file.truncate(256 << 20)
    command = [sys.executable, "-c", _IDLE_GIVER, tmp_path / "it", tmp_path / "socket"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        with _ended(it):
            url = it.stdout.readline().strip()
            array = _opened_at_last(url, resident_limit="256KiB", store_timeout=0.2)
    region = pagemove.region_of(array)
    with pytest.raises(pagemove.StoreError, match="do what the note says") as raised:
        region.prefetch(wait=True)
    (note, *_) = raised.value.__notes__
    assert note.startswith(f"cannot read {url} at byte")
    assert "stay with the giver until they have" in note


_TAKER = """
import sys, pagemove
a = pagemove.open_array(sys.argv[1], resident_limit="1MiB")
a[::5000] = -5
print("has it", flush=True)
int(a.sum())
sys.stdin.read()
"""


def test_a_taker_that_is_killed_while_it_takes(tmp_path: Path) -> None:
    expected = np.arange(1, (32 << 20) // 8 + 1)
    array = pagemove.create_array(tmp_path / "it", len(expected), "i8", resident_limit="4MiB")
    array[:] = expected
    for seed in range(few(6, 1)):
        with pagemove.serve(array, tmp_path / "socket", store_timeout=0.5) as served:
            command = [sys.executable, "-c", _TAKER, served.url]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            with subprocess.Popen(command, **pipes) as it:
                assert it.stdout is not None
                with _ended(it):
                    if seed % 2:
                        assert it.stdout.readline() == b"has it\n"
                    else:
                        until(lambda served=served: served.taken)
            # Its helper process ends with it.
            until(lambda served=served: not served.stats()["connections"])
            if served.stats()["missing_bytes"]:
                with pytest.raises(OSError, match=r"bytes are not.* with the other") as caught:
                    served.wait(5)
                # Of one that was killed before it had asked for anything the giver is the owner.
                assert served.taken == isinstance(caught.value, pagemove.StoreError)
        assert np.array_equal(array, expected)
    with pagemove.serve(array, HERE) as served, HandedStore(served.url) as store:
        assert np.array_equal(all_of(store), expected)
        served.wait(60)
