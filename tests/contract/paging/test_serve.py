"""An array that is handed over: one owner, no byte lost, invented or old."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import pagemove
from pagemove.paging import given
from pagemove.stores import wire
from pagemove.stores.handed import HandedStore
from pagemove.testing import Fault, FaultyStore
from support.cutting import CuttingProxy
from support.handing import HERE, WORDS, all_of, led_to, made, until
from support.slowness import patience


def test_another_process_has_the_array_and_this_one_no_longer(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    giver = (
        "import sys, numpy, pagemove\n"
        "a = pagemove.create_array(sys.argv[1], (300, 1000), 'f4', order='F')\n"
        "a[...] = numpy.arange(300_000).reshape(300, 1000)\n"
        "with pagemove.serve(a, sys.argv[2], name='a', secret='between us') as served:\n"
        "    print(served.url, flush=True)\n"
        "    served.wait(60)\n"
        "print(served.progress, a.flags.writeable, served.url, flush=True)\n"
    )
    command = [sys.executable, "-c", giver, str(tmp_path / "a.npy"), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url == f"pagemove+unix://{path}#a"
        assert path.stat().st_mode & 0o777 == 0o600
        options = {"secret": "between us", "backing": tmp_path}
        array = pagemove.open_array(url, storage_options=options)
        assert process.stdout.readline().split()[:2] == ["1.0", "False"]
        assert process.wait(60) == 0
    assert not path.exists()
    assert array.flags.f_contiguous
    assert array.flags.writeable
    array[0, 0] = -1
    wanted = np.arange(300_000, dtype="f4").reshape(300, 1000)
    wanted[0, 0] = -1
    assert np.array_equal(array, wanted)
    region = pagemove.region_of(array)
    region.evict()
    assert np.array_equal(array, wanted)
    assert region.stats().store["missing_bytes"] == 0


@pytest.mark.parametrize("seed", range(2))
def test_whatever_byte_the_connection_breaks_at(tmp_path: Path, seed: int) -> None:
    numbers = made(tmp_path)
    chance = random.Random(seed)
    # Some within the greeting, some within an answer; and always enough in the end.
    shares = (
        int(chance.choice([40, 150, 300, 70_000, 300_000]) * chance.random()) for _ in range(12)
    )
    with pagemove.serve(numbers, HERE, secret="s", store_timeout=2) as served:
        port = int(served.url.rsplit(":", 1)[1])
        with HandedStore(served.url, secret="s", store_timeout=2) as store:
            proxy = CuttingProxy(port, itertools.chain(shares, itertools.repeat(1 << 40)))
            led_to(store, proxy.port)
            with contextlib.suppress(pagemove.StoreError):
                store.write(8 * 1000, np.arange(30_000).tobytes())
            until(lambda: _written(store))
            assert np.array_equal(all_of(store)[:1000], np.arange(1, 1001))
            served.wait(60)
            found = all_of(store)
            proxy.close()
    wanted = np.arange(1, WORDS + 1)
    wanted[1000:31_000] = np.arange(30_000)
    assert np.array_equal(found, wanted)
    assert proxy.cuts > 3
    assert np.array_equal(numbers, np.arange(1, WORDS + 1))


def _written(store: HandedStore) -> bool:
    with contextlib.suppress(pagemove.StoreError):
        store.write(8 * 1000, np.arange(30_000).tobytes())
        return True
    return False


def test_a_write_that_is_under_way_at_the_switch_is_none_after_it(tmp_path: Path) -> None:
    """A block whose copy is being written is clean, and its bytes are counted when that ends."""
    path = tmp_path / "numbers"
    np.arange(WORDS).tofile(path)
    slow = [Fault("write", delay=0.3), Fault("read", delay=0.05, count=0)]
    with FaultyStore(path, writable=True, faults=slow) as store:
        numbers = pagemove.open_array(store, dtype=np.int64, mode="r+", resident_limit="256KiB")
        region = pagemove.region_of(numbers)
        numbers[5] = -1
        flush = threading.Thread(target=region.flush)
        flush.start()
        until(lambda: region.stats().dirty_nbytes == 0)
        with pagemove.serve(numbers, HERE) as served, HandedStore(served.url) as taken:
            found = all_of(taken)
            served.wait(60)
        flush.join()
    assert found[5] == -1
    assert np.array_equal(np.delete(found, 5), np.delete(np.arange(WORDS), 5))


def _spill_file(folder: Path) -> int:
    """Open the file without a name in a directory anew."""
    for link in Path("/proc/self/task").glob("*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link).startswith(f"{folder}/"):
                return os.open(link, os.O_RDWR)
    raise AssertionError("no changed block was spilled")


@contextlib.contextmanager
def _held_up(fd: int) -> Iterator[threading.Thread]:
    """Write so much to a file that other writes to it wait for long: there is one at a time."""
    mebibyte, begin = bytes(1 << 20), os.fstat(fd).st_size + (1 << 32)
    holder = threading.Thread(target=os.pwritev, args=(fd, [mebibyte] * 512, begin))
    holder.start()
    until(lambda: os.fstat(fd).st_size > begin or not holder.is_alive())
    try:
        yield holder
    finally:
        holder.join()
        os.ftruncate(fd, begin - (1 << 32))


def _handed_over_while_spilled(store: FaultyStore, spill: Path) -> bool:
    """Hand an array over, a block of which is being spilled; say whether that took long enough."""
    numbers = pagemove.open_array(store, dtype=np.int64, mode="c", resident_limit="256KiB")
    region = pagemove.region_of(numbers)
    numbers[0] = -2
    region.evict()
    numbers[5] = -1
    fd = _spill_file(spill)
    with _held_up(fd) as holder, pagemove.serve(numbers, HERE) as served:
        evictor = threading.Thread(target=region.evict)
        evictor.start()
        # Mapped again while its copy is being written, it is clean.
        until(lambda: numbers[5] == -1 and region.stats().dirty_nbytes == 0)
        with HandedStore(served.url) as taken:
            was_held_up = holder.is_alive()
            found = all_of(taken)
            served.wait(60)
        evictor.join()
    os.close(fd)
    wanted = np.arange(WORDS)
    wanted[[0, 5]] = -2, -1
    assert np.array_equal(found, wanted)
    return was_held_up


def test_a_spill_that_is_under_way_at_the_switch_is_none_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mode "c": of a block that is read while it is spilled the same is true."""
    (tmp_path / "spill").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "spill"))
    np.arange(WORDS).tofile(tmp_path / "numbers")
    # So the write ends while blocks are still being read for the taker.
    slow = [Fault("read", delay=0.05, count=0)]
    with FaultyStore(tmp_path / "numbers", faults=slow) as store:
        assert any(_handed_over_while_spilled(store, tmp_path / "spill") for _ in range(5))


def test_what_failed_for_one_taker_is_not_said_to_a_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(given, "_GONE_SECONDS", 0.0)
    monkeypatch.setattr(given, "_LONGEST_SILENCE", 0.01)
    asked, fails = threading.Event(), [True]

    def write_back(_: given.Given) -> None:
        assert asked.wait(30)
        if fails:
            raise OSError(errno.EIO, "the device is gone")

    monkeypatch.setattr(given.Given, "_write_back", write_back)
    numbers = made(tmp_path)
    with pagemove.serve(numbers, HERE) as served:
        numbers[0] = 7
        with pytest.raises(OSError, match="being written back") as found:
            served._given.describe()
        assert found.value.errno == errno.EINPROGRESS
        asked.set()
        until(lambda: not served._given._preparing.is_alive())
        fails.clear()
        pagemove.region_of(numbers).flush()
        assert "nbytes" in served._given.describe()


def test_one_owner(tmp_path: Path) -> None:
    numbers = made(tmp_path)
    with (
        pagemove.serve(numbers, HERE) as served,
        HandedStore(served.url) as first,
        HandedStore(served.url) as late,
    ):
        first.read_into(0, bytearray(8))
        assert served.taken
        with pytest.raises(pagemove.StoreError, match="one owner") as found:
            late.read_into(0, bytearray(8))
        assert found.value.errno == errno.EBUSY
        with pytest.raises(pagemove.StoreError, match="one owner"):
            HandedStore(served.url)
        served.wait(60)
        assert np.array_equal(all_of(first), np.arange(1, WORDS + 1))


def test_those_without_the_secret_have_nothing(tmp_path: Path) -> None:
    numbers = made(tmp_path)
    with pagemove.serve(numbers, HERE, secret="right") as served:
        for secret in ("wrong", None):
            with pytest.raises(pagemove.StoreError, match="secret") as found:
                HandedStore(served.url, secret=secret)
            assert found.value.errno == errno.EACCES
        for garbage in (b"GET / HTTP/1.0\r\n\r\n" * 20, b"", bytes(200), b"\xff" * 5000):
            port = int(served.url.rsplit(":", 1)[1])
            with socket.create_connection(("127.0.0.1", port)) as line:
                line.settimeout(10)
                # It may have been closed before all was sent.
                with contextlib.suppress(OSError):
                    line.sendall(garbage)
                    line.shutdown(socket.SHUT_WR)
                    heard = b"".join(iter(lambda: line.recv(1000), b""))
                    assert len(heard) < 300
        assert not served.taken
        assert numbers.flags.writeable
        with HandedStore(served.url, secret="right") as store:
            assert np.array_equal(all_of(store), np.arange(1, WORDS + 1))
    other = pagemove.create_array(tmp_path / "other", 1000, "i8")
    with (
        pagemove.serve(other, HERE) as served,
        pytest.raises(pagemove.StoreError, match="giver has no secret"),
    ):
        HandedStore(served.url, secret="right")


def test_tcp_to_others_needs_a_secret_or_tls(tmp_path: Path) -> None:
    numbers = made(tmp_path)
    with pytest.raises(ValueError, match="pass secret="):
        pagemove.serve(numbers, ("0.0.0.0", 0))
    with pytest.raises(ValueError, match="no address"):
        pagemove.serve(numbers, "nowhere")
    with pytest.raises(ValueError, match="contiguous"):
        pagemove.serve(numbers[::2], HERE)
    with pytest.raises(ValueError, match="paged memory"):
        pagemove.serve(np.zeros(5), HERE)


@pytest.fixture
def patient_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a writer may not run within 2 ms; it is noticed afterwards then."""
    monkeypatch.setattr(given, "_LOOK_AGAIN", 0.5)


def test_writers_until_the_switch(tmp_path: Path, patient_switch: None) -> None:
    _hand_over_from_under_writers(made(tmp_path))


@pytest.mark.needs("zstandard")
def test_writers_of_compressed_memory_until_the_switch(patient_switch: None) -> None:
    with pagemove.PagedMemory(nbytes=8 * WORDS, resident_limit="1MiB") as memory:
        _hand_over_from_under_writers(memory.asarray(np.int64))


def _hand_over_from_under_writers(numbers: npt.NDArray[np.int64]) -> None:
    last = [0, 0]
    refused = []

    def write(half: int) -> None:
        place = slice(half * (WORDS // 2), (half + 1) * (WORDS // 2))
        try:
            for last[half] in itertools.count(1):
                numbers[place] = last[half]
        except ValueError as error:
            refused.append(str(error))

    with pagemove.serve(numbers, HERE, store_timeout=100) as served:
        threads = [threading.Thread(target=write, args=(half,)) for half in range(2)]
        for thread in threads:
            thread.start()
        with HandedStore(served.url, store_timeout=100) as store:
            until(lambda: min(last) > 2)
            found = all_of(store)
            for thread in threads:
                thread.join(patience(30))
            assert len(refused) == 2
            # The one that was refused was not stored, and the one before was, everywhere.
            for half in range(2):
                words = found[half * (WORDS // 2) : (half + 1) * (WORDS // 2)]
                assert set(words.tolist()) == {last[half] - 1}
            served.wait(60)
            assert np.array_equal(numbers, found)


def test_a_view_that_is_written_holds_up_the_switch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine the writer may not run within 2 ms; it is noticed afterwards then.
    monkeypatch.setattr(given, "_LOOK_AGAIN", 0.2)
    numbers = made(tmp_path)
    view, go_on = numbers[5:6], threading.Event()

    def write() -> None:
        while not go_on.is_set():
            view[0] += 1

    writer = threading.Thread(target=write)
    with pagemove.serve(numbers, HERE, store_timeout=1) as served, HandedStore(served.url) as store:
        writer.start()
        with pytest.raises(pagemove.StoreError, match="stop the threads"):
            store.read_into(0, bytearray(8))
        assert numbers.flags.writeable
        assert not served.taken
        go_on.set()
        writer.join()
        store.read_into(0, bytearray(8))
        assert served.taken
        assert not numbers.region.asarray("i8").flags.writeable  # type: ignore[attr-defined]


def test_an_owner_that_does_not_know_it_is_none(tmp_path: Path) -> None:
    """The switch took longer than it has waited."""
    numbers = made(tmp_path)
    view = numbers[1:]
    with pagemove.serve(numbers, HERE) as served:
        first = HandedStore(served.url)
        line, _ = first._from.call({"do": "take", "offer": first.offer.key, "owner": "x"})
        other, _ = first._from.call({"do": "take", "offer": first.offer.key, "owner": "x"})
        assert served.stats()["connections"] == 2
        other.close()
        limit = time.monotonic() + 10
        while served.stats()["connections"] > 1 and time.monotonic() < limit:
            time.sleep(0.01)
        assert served.taken
        assert not numbers.flags.writeable
        with pytest.raises(wire.RefusedError, match="a giver does not"):
            first._from.call({"do": "x", "offer": first.offer.key, "owner": "y"})
        line.close()
        while served.taken and time.monotonic() < limit:
            time.sleep(0.01)
        assert not served.taken
        numbers[0] = view[0] = 77
        with HandedStore(served.url) as second:
            found = np.empty(2, "i8")
            second.read_into(0, found)
            assert found.tolist() == [77, 77]
            assert not numbers.flags.writeable
        first.close()


def test_one_offer_at_a_time(tmp_path: Path) -> None:
    numbers = made(tmp_path)
    with pagemove.serve(numbers, HERE) as served:
        with pytest.raises(ValueError, match="handed over already") as caught:
            pagemove.serve(numbers[10:], HERE)
        assert served.url in str(caught.value)
    with pagemove.serve(numbers, HERE):
        pass
    for name in ("x/y", "a#b", "a?b"):
        with pytest.raises(ValueError, match="address"):
            pagemove.serve(numbers, HERE, name=name)


def test_a_socket_that_was_left_behind(tmp_path: Path) -> None:
    numbers, path = made(tmp_path), tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
        left.listen()
        with pytest.raises(OSError, match="in use: remove it"):
            pagemove.serve(numbers, path)
    path.unlink()
    with pagemove.serve(numbers, path) as served, HandedStore(served.url) as store:
        found = np.empty(1, "i8")
        store.read_into(8, found)
        assert found[0] == numbers[1]


def test_a_store_after_the_switch_is_noticed(tmp_path: Path) -> None:
    numbers = made(tmp_path)
    view = numbers[-1:]
    with pagemove.serve(numbers, HERE) as served, HandedStore(served.url) as store:
        # Nothing in the background: what is asked for is known.
        store._quiet = True
        store.read_into(0, bytearray(8))
        view[0] = 0
        with pytest.raises(pagemove.StoreError, match="written here after"):
            store.read_into(8 * WORDS - 8, bytearray(8))
        with pytest.raises(pagemove.StoreError, match="written here after"):
            served.wait(10)


def test_a_giver_that_is_killed_says_what_is_missing(tmp_path: Path) -> None:
    giver = (
        "import numpy, pagemove, sys, time\n"
        "a = pagemove.PagedMemory(nbytes=1 << 20).asarray('i8')\n"
        "a[:] = 7\n"
        "served = pagemove.serve(a, ('127.0.0.1', 0))\n"
        "print(served.url, flush=True)\n"
        "time.sleep(100)\n"
    )
    with subprocess.Popen([sys.executable, "-c", giver], stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        store = HandedStore(it.stdout.readline().strip(), store_timeout=1)
        # Nothing in the background: what is there is known.
        store._quiet = True
        some = np.zeros(8192, np.int64)
        store.read_into(0, some)
        os.kill(it.pid, signal.SIGKILL)
        it.wait()
    store.read_into(0, some)
    assert set(some.tolist()) == {7}
    before = some.copy()
    with pytest.raises(pagemove.StoreError, match="983040 of 1048576 bytes have not arrived"):
        store.read_into(65536, some)
    assert np.array_equal(before, some)
    store.close()


def test_a_taker_that_is_gone_leaves_the_array_with_the_giver(tmp_path: Path) -> None:
    numbers = made(tmp_path)
    with pagemove.serve(numbers, HERE, store_timeout=0.3) as served:
        with pytest.raises(TimeoutError, match="has not connected"):
            served.wait(0.05)
        store = HandedStore(served.url)
        store._quiet = True
        store.read_into(0, bytearray(65536))
        store.close()
        missing = 8 * WORDS - 65536
        with pytest.raises(pagemove.StoreError, match=f"{missing} of {8 * WORDS} bytes") as found:
            served.wait(30)
        assert found.value.errno == errno.ETIMEDOUT
        assert served.stats()["acknowledged_bytes"] == 65536
    assert np.array_equal(numbers, np.arange(1, WORDS + 1))
    with pagemove.serve(numbers, HERE) as again, HandedStore(again.url) as other:
        assert np.array_equal(all_of(other), np.arange(1, WORDS + 1))
