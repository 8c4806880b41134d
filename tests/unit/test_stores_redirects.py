"""stores/http.py: redirects to signed URLs, and what has to stay the same, by whatever way."""

from __future__ import annotations

import errno
import itertools
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pagemove
from pagemove import StoreError
from pagemove.stores import FsspecStore, LayeredStore, http
from support.servers import WebServer
from support.signing import AWKWARD, SigningServer
from support.slowness import SLOWNESS

pytestmark = pytest.mark.needs("fsspec")

CONTENTS = np.random.default_rng(1).bytes(200_000)


class _Edges:
    """Versions that differ from one answer to the next, as of servers behind one name."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def __get__(self, *_: object) -> str:
        return f"edge {next(self._numbers)}"

    def __set__(self, *_: object) -> None:
        pass


@pytest.fixture
def signing(tmp_path: Path) -> Iterator[SigningServer]:
    (tmp_path / "file").write_bytes(CONTENTS)
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("stored", CONTENTS)
        archive.writestr("deflated", CONTENTS, zipfile.ZIP_DEFLATED)
    with SigningServer(tmp_path).running() as server:
        yield server


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    np.save(tmp_path / "x.npy", np.arange(50_000.0))
    with WebServer(tmp_path).running() as server:
        yield server


def read(store: FsspecStore, offset: int = 0, length: int = 100) -> bytes:
    buffer = bytearray(length)
    store.read_into(offset, buffer)
    return bytes(buffer)


class TestSignedRedirects:
    @pytest.mark.parametrize("path", ["file", "stored", "deflated"])
    def test_each_range_follows_one_of_its_own(self, signing, path):
        """To the letter: the server knows no other URL, and each for one request."""
        url = signing.url + "/file" if path == "file" else f"zip://{path}::{signing.url}/zip"
        with FsspecStore(url, timeout=5) as store:
            before = signing.followed
            for offset in range(0, 200_000, 40_000):
                assert read(store, offset) == CONTENTS[offset : offset + 100]
            assert path == "deflated" or signing.followed == before + 5
        # HEAD and GET alike: what was issued was used.
        assert signing.followed == signing.redirects
        assert not signing.signatures

    @pytest.mark.parametrize("status", [400, 401, 403])
    def test_one_that_has_expired_is_renewed(self, signing, status):
        signing.expired = status
        signing.outdated = 1
        with FsspecStore(f"{signing.url}/file", timeout=5) as store:
            signing.outdated = 2
            assert read(store, 1000) == CONTENTS[1000:1100]
            assert signing.outdated == 0

    def test_one_that_is_always_refused_is_an_error_in_time(self, signing):
        with FsspecStore(f"{signing.url}/file", timeout=0.5) as store:
            signing.outdated = 1 << 30
            with pytest.raises(StoreError, match="403"):
                read(store)

    def test_a_refusal_without_one_is_final(self, signing):
        with FsspecStore(f"{signing.url}/file", timeout=20) as store:
            # obstore asks, and then whoever looks at the answer.
            signing.faults = [403, 403, 500]
            signing.signatures += ["/file"] * 2
            with pytest.raises(StoreError, match="403"):
                read(store)
            assert signing.faults == [500]

    @pytest.mark.parametrize("path", ["file", "stored", "deflated"])
    def test_a_change_behind_it_is_noticed(self, signing, path):
        url = signing.url + "/file" if path == "file" else f"zip://{path}::{signing.url}/zip"
        # What fsspec reads ahead must not be all of it.
        options = {} if path == "file" else {"http": {"block_size": 1 << 14}}
        with FsspecStore(url, timeout=2, **options) as store:
            read(store)
            signing.version = "second"
            with pytest.raises(StoreError, match="it has changed") as caught:
                read(store, 150_000)
            assert caught.value.errno == errno.ESTALE

    def test_what_is_remembered_of_them_is_one(self, signing):
        with FsspecStore(f"zip://deflated::{signing.url}/zip", timeout=5) as store:
            for offset in range(0, 200_000, 20_000):
                read(store, offset)
            assert list(store._guard._seen) == [f"{signing.url}/zip"]
            assert signing.followed > 3

    @pytest.mark.parametrize("path", ["file", "deflated"])
    def test_a_url_that_is_signed_itself_is_sent_as_it_is(self, signing, path):
        """Also by fsspec, for what is in an archive."""
        name = "/file" if path == "file" else "/zip"
        signed = f"{name}?{AWKWARD}"
        signing.signatures += [signed] * 100
        url = signing.url + signed if path == "file" else f"zip://{path}::{signing.url}{signed}"
        with FsspecStore(url, timeout=2) as store:
            assert read(store, 1000) == CONTENTS[1000:1100]
        assert signing.redirects == 0


def test_what_is_remembered_is_bounded():
    """The oldest is forgotten; what is asked for again is not."""
    guard = http.Guard("etag")
    for number in range(5000):
        guard._remember(f"http://h/{number}", http.Resource(number, "v"))
        guard._remember("http://h/often", http.Resource(1, "v"))
    assert len(guard._seen) == 1024
    with pytest.raises(OSError, match="has changed"):
        guard._remember("http://h/often", http.Resource(1, "w"))


class TestValidate:
    """The option has every way to it, and the message names it."""

    SAYS = r"validate='size' \(a keyword of FsspecStore, elsewhere a storage option\)"

    @pytest.mark.parametrize("validate", ["etag", "size", "none"])
    def test_open_array(self, web, validate):
        options = {} if validate == "etag" else {"validate": validate}
        array = pagemove.open_array(f"{web.url}/x.npy", storage_options=options, store_timeout=30)
        with pagemove.region_of(array) as region:
            web.version = "second"
            if options:
                region.evict()
                assert array.sum() == np.arange(50_000.0).sum()
            else:
                with pytest.raises(StoreError, match=self.SAYS):
                    read(region.store)
            del array

    def test_command_line(self, web, monkeypatch):
        monkeypatch.setattr(WebServer, "version", _Edges(), raising=False)
        words = ["page", f"{web.url}/x.npy", "--seconds", "0.2", "--limit", "256KiB"]

        def run(validate: str) -> subprocess.CompletedProcess[str]:
            """In a process of its own: a read that fails is the end of it."""
            return subprocess.run(
                [sys.executable, "-m", "pagemove", *words, "--storage-option", validate],
                capture_output=True,
                text=True,
                check=False,
                timeout=60 * SLOWNESS,
            )

        assert run("validate=size").returncode == 0
        assert "validate must be one of" in run("validate=sometimes").stderr

    def test_under_a_layer(self, web, tmp_path):
        url = f"{web.url}/x.npy"
        with FsspecStore(url, timeout=2, validate="size") as bottom:
            top = tmp_path / "top"
            top.write_bytes(bytes(bottom.nbytes))
            with LayeredStore(pagemove.stores.FileStore(top, writable=True), bottom) as store:
                web.version = "second"
                assert read(store, 0, store.nbytes) == (tmp_path / "x.npy").read_bytes()
