"""Givers that lie, and who has the secret and who has not."""

from __future__ import annotations

import contextlib
import errno
import io
import socket
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import pagemove
from pagemove.stores import wire
from pagemove.stores.handed import HandedStore, Offer
from support.handing import HERE, OFFER, WORDS, Liar, all_of, made, url_of

NUMBERS = np.arange(1, WORDS + 1)


@pytest.fixture
def listener() -> socket.socket:
    return socket.create_server(HERE)


class TestLies:
    @pytest.mark.parametrize("unit", [4096, 65536, 2 << 20])
    def test_a_size_that_nothing_can_hold_is_refused(
        self, listener: socket.socket, unit: int
    ) -> None:
        nbytes = (1 << 63) - 8
        offer = OFFER._replace(shape=(nbytes // 8,), nbytes=nbytes, unit=unit)
        with Liar(listener, offer), pytest.raises(wire.WireError, match=f"claims {nbytes} bytes"):
            HandedStore(url_of(listener))

    def test_the_largest_that_is_taken_costs_little_memory(self, listener: socket.socket) -> None:
        nbytes = 1 << 47
        offer = OFFER._replace(shape=(nbytes // 8,), nbytes=nbytes, unit=2 << 20)
        with Liar(listener, offer):
            with HandedStore(url_of(listener), backing="memory", store_timeout=1) as store:
                tracemalloc.start()
                with pytest.raises(pagemove.StoreError):
                    store.read_into(0, bytearray(8))
                most = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
            with pytest.raises(OSError, match=f"paged memory of {nbytes} bytes"):
                pagemove.open_array(url_of(listener))
        assert most < 100 << 20

    @pytest.mark.parametrize(
        ("offer", "why"),
        [
            (OFFER._replace(shape=(WORDS + 1,)), "an array that cannot be"),
            (OFFER._replace(shape=(-WORDS, -1)), "an array that cannot be"),
            (OFFER._replace(unit=1), "units of 1 bytes"),
            (OFFER._replace(unit=1 << 40), "units of"),
            (OFFER._replace(dtype=np.dtype("O")), "cannot be"),
        ],
    )
    def test_an_array_that_cannot_be(self, listener: socket.socket, offer: Offer, why: str) -> None:
        with Liar(listener, offer), pytest.raises(wire.WireError, match=why):
            HandedStore(url_of(listener))

    @pytest.mark.parametrize(
        "answer",
        [
            wire.ANSWER.pack(wire.READ, 0, 0, 1, 1 << 62),
            wire.ANSWER.pack(wire.READ, 0, 1, 1, 65536),
            wire.ANSWER.pack(wire.READ, 5, 0, 1, 1 << 62),
            wire.ANSWER.pack(wire.ZEROS, 0, 0, 1, 1 << 40),
            wire.ANSWER.pack(wire.ORDER, 0, 1 << 40, 0, 16 << 40),
            b"x" * 1000,
        ],
    )
    def test_an_answer_that_is_none_is_not_taken(
        self, listener: socket.socket, answer: bytes
    ) -> None:
        def say(line: wire.Line) -> None:
            line.receive(wire.REQUEST.size)
            line.send(answer)
            line.receive(1)

        with (
            Liar(listener, OFFER, say),
            HandedStore(url_of(listener), backing="memory", store_timeout=1) as store,
        ):
            buffer = bytearray(b"kept" * 2)
            tracemalloc.start()
            with pytest.raises(pagemove.StoreError, match="have not arrived"):
                store.read_into(0, buffer)
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert buffer == b"keptkept"
        assert most < 8 << 20

    def test_a_giver_that_says_little_at_a_time(self, listener: socket.socket) -> None:
        def trickle() -> None:
            with listener.accept()[0] as line, contextlib.suppress(OSError):
                while True:
                    line.sendall(b"p")
                    time.sleep(0.02)

        thread = threading.Thread(target=trickle)
        thread.start()
        begin = time.monotonic()
        with pytest.raises(TimeoutError):
            HandedStore(url_of(listener), store_timeout=0.3)
        # The 52 bytes of a greeting take more than a second.
        assert time.monotonic() - begin < 60
        thread.join()
        listener.close()


class TestSecret:
    @pytest.mark.parametrize("message", ["hello", "want", "reply"])
    def test_what_is_changed_on_the_way_is_refused(
        self, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """A byte of each message of the greeting: the number, what is wanted, the offer."""
        real = wire.Line.send

        def send(line: wire.Line, *parts: bytes) -> None:
            data = bytearray(b"".join(parts))
            at = {"hello": (b"pagemove giving", -1), "want": (b"pagemove taking", -3)}.get(message)
            if at is not None and data.startswith(at[0]):
                data[at[1]] ^= 1
            elif at is None and not data.startswith(b"pagemove"):
                data[-1] ^= 1
            real(line, bytes(data))

        numbers = made(tmp_path)
        with pagemove.serve(numbers, HERE, secret="s") as served:
            monkeypatch.setattr(wire.Line, "send", send)
            with pytest.raises(pagemove.StoreError) as caught:
                HandedStore(served.url, secret="s")
            assert caught.value.errno == errno.EACCES
            assert not served.taken
            monkeypatch.undo()
            with HandedStore(served.url, secret="s") as store:
                assert np.array_equal(all_of(store), NUMBERS)

    def test_a_giver_without_it_is_found_out(self, listener: socket.socket) -> None:
        with (
            Liar(listener, OFFER, secret=b"other"),
            pytest.raises(pagemove.StoreError) as caught,
        ):
            HandedStore(url_of(listener), secret="s")
        assert caught.value.errno == errno.EACCES

    def test_a_greeting_that_is_played_again(self, tmp_path: Path) -> None:
        """What a taker has said once is of no use: the giver's number is another each time."""
        numbers = made(tmp_path)
        with pagemove.serve(numbers, HERE, secret="s") as served:
            place = wire.place_of(served.url)
            heard = bytearray()

            class Heard(wire.Line):
                def send(self, *parts: bytes) -> None:
                    heard.extend(b"".join(parts))
                    super().send(*parts)

            with wire.connect(place, None, None, 5) as line:
                wire.greet(Heard(line.sock), b'{"do": "describe", "name": ""}', b"s")
            with wire.connect(place, None, None, 5) as line:
                line.receive(wire._HELLO.size)
                line.send(bytes(heard))
                code, _, _ = wire._REPLY.unpack(line.receive(wire._REPLY.size))
                assert code == errno.EACCES

    def test_it_is_not_shown(self, tmp_path: Path) -> None:
        numbers = made(tmp_path)
        with pagemove.serve(numbers, HERE, secret="hush-hush") as served:
            with HandedStore(served.url, secret="hush-hush") as store:
                shown = f"{served!r} {served.url} {store!r} {store.url} {served.stats()}"
            with pytest.raises(pagemove.StoreError) as caught:
                HandedStore(served.url, secret="hush")
        assert "hush" not in shown + str(caught.value)


def test_a_new_buffer_of_what_was_taken_is_read_only(tmp_path: Path) -> None:
    numbers = made(tmp_path)
    region = pagemove.region_of(numbers)
    with pagemove.serve(numbers, HERE) as served, HandedStore(served.url) as store:
        assert not memoryview(region).readonly
        store.read_into(0, bytearray(8))
        view = memoryview(region)
        assert view.readonly
        with pytest.raises(TypeError):
            view[0] = 1
        with pytest.raises(TypeError, match="read-write"):
            io.BytesIO(bytes(8)).readinto(region)
        assert not region.asarray("i8").flags.writeable
        assert np.array_equal(all_of(store), NUMBERS)
