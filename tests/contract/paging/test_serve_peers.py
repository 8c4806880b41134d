"""Who comes to take an array, and who gives one: strangers, other users, liars, TLS."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pagemove
from pagemove.paging import served as serving
from pagemove.stores import wire
from pagemove.stores.handed import HandedStore
from support import child
from support.handing import HERE, OFFER, WORDS, Liar, all_of, certified, made, until
from support.system import NOBODY, become_nobody

NUMBERS = np.arange(1, WORDS + 1)


def port_of(url: str) -> int:
    return wire.place_of(url).port


def is_closed(line: socket.socket) -> bool:
    """Return whether the other side has closed it, when it says no more."""
    line.settimeout(30)
    with contextlib.suppress(ConnectionResetError):
        while line.recv(1000):
            pass
    return True


class TestStrangers:
    def test_who_says_nothing_keeps_nobody_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(serving, "_GREETING_SECONDS", 1.0)
        numbers, most = made(tmp_path), serving._MOST_STRANGERS
        with pagemove.serve(numbers, HERE, secret="s", store_timeout=100) as served:
            port = port_of(served.url)
            lines = [socket.create_connection(("127.0.0.1", port)) for _ in range(2 * most)]
            with HandedStore(served.url, secret="s") as store:
                assert np.array_equal(all_of(store), NUMBERS)
            # The oldest half went at once, the others after a few seconds.
            begin = time.monotonic()
            assert all(map(is_closed, lines[:most]))
            assert len(served._strangers) <= most
            assert all(map(is_closed, lines))
            assert time.monotonic() - begin < 10 * serving._GREETING_SECONDS
            until(lambda: not served._strangers)
            for line in lines:
                line.close()

    def test_who_says_little_at_a_time_has_no_longer(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(serving, "_GREETING_SECONDS", 0.3)
        numbers = made(tmp_path)
        with (
            pagemove.serve(numbers, HERE, store_timeout=100) as served,
            socket.create_connection(("127.0.0.1", port_of(served.url))) as line,
        ):
            sent = 0
            with contextlib.suppress(OSError):
                while sent < 100:  # of 118 bytes before anything is judged
                    line.sendall(b"p")
                    sent += 1
                    time.sleep(0.01)
            assert is_closed(line)
            until(lambda: not served._lines)

    def test_within_tls(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(serving, "_MOST_STRANGERS", 2)
        monkeypatch.setattr(serving, "_GREETING_SECONDS", 100.0)
        context, certificate = certified(tmp_path)
        numbers = made(tmp_path)
        with pagemove.serve(numbers, HERE, ssl=context, store_timeout=100) as served:
            lines = [socket.create_connection(("127.0.0.1", port_of(served.url))) for _ in range(5)]
            assert all(map(is_closed, lines[:3]))
            with HandedStore(served.url, ssl=certificate) as store:
                assert np.array_equal(all_of(store), NUMBERS)
            for line in lines:
                line.close()


class TestUsers:
    pytestmark = pytest.mark.needs("root", "fork")

    @pytest.fixture
    def path(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o777)
            yield Path(folder) / "socket"

    def test_a_taker_of_another_user_is_refused(self, tmp_path: Path, path: Path) -> None:
        numbers = made(tmp_path)
        with pagemove.serve(numbers, path) as served:
            assert child(_refused, served.url) == errno.EACCES  # by the mode of the socket
            path.chmod(0o666)
            text = child(_refusal, served.url)
            assert "the giver runs as user 0, and this is user 65534" in text
            assert not served.taken

    def test_a_giver_of_another_user_is_refused(self, path: Path) -> None:
        url = f"pagemove+unix://{path}"
        with Liar(_of_nobody(path), OFFER), pytest.raises(pagemove.StoreError) as caught:
            HandedStore(url)
        assert caught.value.errno == errno.EACCES
        assert f"what serves there runs as user {NOBODY}, and this is user 0" in str(caught.value)

    def test_who_has_the_secret_may_be_of_another(self, path: Path) -> None:
        with (
            Liar(_of_nobody(path), OFFER, secret=b"s"),
            HandedStore(f"pagemove+unix://{path}", secret="s") as store,
        ):
            assert store.nbytes == OFFER.nbytes


def _of_nobody(path: Path) -> socket.socket:
    """Listen there as another user."""
    listener = socket.socket(socket.AF_UNIX)
    os.seteuid(NOBODY)
    try:
        listener.bind(str(path))
        listener.listen()
    finally:
        os.seteuid(0)
    return listener


def _refused(url: str) -> int | None:
    become_nobody()
    try:
        HandedStore(url)
    except OSError as error:
        return error.errno
    return None


def _refusal(url: str) -> str:
    become_nobody()
    with pytest.raises(pagemove.StoreError) as caught:
        HandedStore(url, store_timeout=20)
    return str(caught.value)


class TestTls:
    def test_what_is_encrypted_is_the_array(self, tmp_path: Path) -> None:
        context, certificate = certified(tmp_path)
        numbers = made(tmp_path)
        with pagemove.serve(numbers, HERE, ssl=context, name="n") as served:
            options = {"ssl": certificate}
            array = pagemove.open_array(served.url, storage_options=options, resident_limit="1MiB")
            assert np.array_equal(array, NUMBERS)
            array[5] = 7
            served.wait(60)
        pagemove.region_of(array).evict()
        assert array[4:7].tolist() == [5, 7, 7]

    def test_a_certificate_that_is_not_trusted(self, tmp_path: Path) -> None:
        context, _ = certified(tmp_path)
        (tmp_path / "other").mkdir()
        _, another = certified(tmp_path / "other")
        numbers = made(tmp_path)
        with pagemove.serve(numbers, HERE, ssl=context) as served:
            for trusted in (another, True):
                with pytest.raises(ssl.SSLCertVerificationError) as caught:
                    HandedStore(served.url, ssl=trusted)
                assert any("cannot be reached" in note for note in caught.value.__notes__)
            assert not served.taken
            assert numbers.flags.writeable

    def test_the_name_in_the_certificate_counts(self, tmp_path: Path) -> None:
        context, certificate = certified(tmp_path)
        numbers = made(tmp_path)
        with pagemove.serve(numbers, HERE, ssl=context) as served:
            how = {"cafile": certificate, "server_hostname": "elsewhere.example"}
            with pytest.raises(ssl.SSLCertVerificationError, match="elsewhere"):
                HandedStore(served.url, ssl=how)
            how["server_hostname"] = "127.0.0.1"
            with HandedStore(served.url, ssl=how) as store:
                assert np.array_equal(all_of(store), NUMBERS)

    def test_takers_with_a_certificate_only(self, tmp_path: Path) -> None:
        context, certificate = certified(tmp_path)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificate)
        numbers = made(tmp_path)
        with pagemove.serve(numbers, HERE, ssl=context) as served:
            with pytest.raises(OSError, match=r"certificate required|closed|reset|EOF|Broken"):
                HandedStore(served.url, ssl=certificate)
            how = {"cafile": certificate, "certfile": certificate, "keyfile": tmp_path / "key"}
            with HandedStore(served.url, ssl=how) as store:
                assert np.array_equal(all_of(store), NUMBERS)

    def test_with_a_secret_as_well(self, tmp_path: Path) -> None:
        context, certificate = certified(tmp_path)
        numbers = made(tmp_path)
        with pagemove.serve(numbers, HERE, ssl=context, secret="right") as served:
            with pytest.raises(pagemove.StoreError, match="another secret"):
                HandedStore(served.url, ssl=certificate, secret="wrong")
            with pytest.raises(OSError, match=r"timed out|closed|reset"):
                HandedStore(served.url, secret="right", store_timeout=1)  # and speaks no TLS
            with HandedStore(served.url, ssl=certificate, secret="right") as store:
                assert np.array_equal(all_of(store), NUMBERS)

    def test_a_unix_socket_needs_none(self, tmp_path: Path) -> None:
        context, _ = certified(tmp_path)
        with pytest.raises(ValueError, match="ssl is for TCP"):
            pagemove.serve(made(tmp_path), tmp_path / "socket", ssl=context)
        with pytest.raises(TypeError, match=r"ssl must be an ssl\.SSLContext"):
            pagemove.serve(made(tmp_path), HERE, ssl=True)
