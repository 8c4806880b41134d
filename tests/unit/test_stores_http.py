"""stores/http.py: servers whose answers are not to the question, and what is made of errors."""

from __future__ import annotations

import errno
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pagemove import StoreError
from pagemove.stores import FsspecStore
from pagemove.stores.causes import cause_of, errno_of
from support import wait_for
from support.servers import WebServer
from support.slowness import patience

pytestmark = pytest.mark.needs("fsspec")

CONTENTS = np.random.default_rng(1).bytes(200_000)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    (tmp_path / "file").write_bytes(CONTENTS)
    with WebServer(tmp_path).running() as server:
        yield server


def read(store: FsspecStore, offset: int = 0, length: int = 100) -> bytes:
    buffer = bytearray(length)
    store.read_into(offset, buffer)
    return bytes(buffer)


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        ("shifted", "answers with bytes 999 to 1098"),
        ("unsaid", "does not say what it is"),
        ("shorter", "answers with bytes 1000 to 1098"),
        ("longer", "the answer has 101 bytes"),
        ("total", "it had 200000 bytes, and has 200001"),
        ("star", "does not say any more how long it is"),
        ("rangeless", r"does not say what it is: Content-Range \['bytes \*/200000'\]"),
        ("whole", "answers with status 200"),
        ("encoded", r"sends it compressed \(gzip\)"),
        ("parts", "answers with several parts"),
        ("cut", "asked for 100 bytes, got 99"),
        ("endless", "got more"),
    ],
)
@pytest.mark.parametrize("by", ["obstore", "aiohttp"])
def test_an_answer_to_another_question(web, by, lie, says):
    options = {} if by == "obstore" else {"client_kwargs": {}}
    with FsspecStore(f"{web.url}/file", timeout=0.5, **options) as store:
        if by == "obstore":
            assert read(store, 7) == CONTENTS[7:107]
            assert store._opened._fast._proven
        else:
            assert store._opened._fast is None
        web.lie = lie
        with pytest.raises(StoreError, match=says) as caught:
            read(store, 1000)
        assert caught.value.errno in (errno.EIO, errno.ESTALE)
        web.lie = ""
        assert read(store, 1000) == CONTENTS[1000:1100]


class TestByWhom:
    @pytest.mark.parametrize(
        ("path", "options"),
        [
            ("/file?signature=1", {}),
            ("/file", {"headers": {"X-Asked": "yes"}}),
            ("/file", {"client_kwargs": {"trust_env": True}}),
            ("/a%20b", {}),
            ("//file", {}),
        ],
    )
    def test_obstore_would_ask_for_another(self, web, tmp_path, path, options):
        (tmp_path / "a b").write_bytes(CONTENTS)
        with FsspecStore(f"{web.url}{path}", timeout=5, **options) as store:
            assert store._opened._fast is None
            assert read(store, 9) == CONTENTS[9:109]

    def test_obstore_would_ask_a_proxy(self, web, monkeypatch):
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        with FsspecStore(f"{web.url}/file", timeout=5) as store:
            assert store._opened._fast is None
            assert read(store, 9) == CONTENTS[9:109]

    def test_a_member_of_an_archive(self, web, tmp_path):
        with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
            archive.writestr("file", CONTENTS)
        with FsspecStore(f"zip://file::{web.url}/zip", timeout=5) as store:
            assert read(store, 9) == CONTENTS[9:109]
            assert store._opened._fast._proven

    def test_a_refused_range_is_read_again_by_who_knows_what_it_means(self, web):
        with FsspecStore(f"{web.url}/file", timeout=5) as store:
            assert read(store) == CONTENTS[:100]
            web.faults[:] = [503]
            assert read(store, 9) == CONTENTS[9:109]
            assert not store._opened._fast.hopeless


def test_no_more_is_read_than_was_asked_for(web):
    """Of an answer without end."""
    with FsspecStore(f"{web.url}/file", timeout=0.5) as store:
        web.lie = "endless"
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(StoreError, match=r"got more|no answer within"):
            read(store, 0, 65536)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10


def test_an_answer_that_drips_has_an_end(web):
    with FsspecStore(f"{web.url}/file", timeout=1) as store:
        web.lie = "drip"
        begin = time.monotonic()
        with pytest.raises(StoreError, match="no answer within") as caught:
            read(store, 0, 65536)
        assert caught.value.errno == errno.ETIMEDOUT
        assert time.monotonic() - begin < 10
        web.lie = ""


@pytest.mark.parametrize("validate", ["etag", "size", "none"])
def test_what_has_to_stay_the_same(web, validate):
    with FsspecStore(f"{web.url}/file", timeout=0.5, validate=validate) as store:
        web.version = "second"
        if validate == "etag":
            with pytest.raises(StoreError, match="validate='size'"):
                read(store)
        else:
            assert read(store) == CONTENTS[:100]
        web.lie = "total"
        if validate == "none":
            assert read(store) == CONTENTS[:100]
        else:
            with pytest.raises(StoreError, match="has changed"):
                read(store)


def test_validate_is_checked():
    with pytest.raises(ValueError, match="validate must be one of"):
        FsspecStore("http://host/x", validate="maybe")


def test_two_colons_in_a_name(tmp_path, web):
    (tmp_path / "a::b").write_bytes(CONTENTS)
    for url in (f"{web.url}/a::b", f"file://{tmp_path}/a::b"):
        with FsspecStore(url, timeout=2) as store:
            assert read(store, 5) == CONTENTS[5:105]
    with pytest.raises(ValueError, match="cannot be a part of a name"):
        FsspecStore(f"simplecache::{web.url}/a::file")


def test_a_name_that_does_not_resolve():
    with pytest.raises(StoreError, match="Cannot connect") as caught:
        FsspecStore("http://no-such-host.invalid/x", timeout=0.2)
    assert caught.value.errno == errno.EHOSTUNREACH


class _OddError(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError

    errno = "five"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (socket.gaierror(-2, "Name or service not known"), errno.EHOSTUNREACH),
        (OSError(-5, "x"), errno.EIO),
        (OSError(0, "x"), errno.EIO),
        (OSError(1 << 40, "x"), errno.EIO),
        (OSError("x"), errno.EIO),
        (TimeoutError(), errno.ETIMEDOUT),
        (OSError(errno.ENOSPC, "x"), errno.ENOSPC),
        (_OddError(), errno.EIO),
        (ValueError("\udcff"), errno.EIO),
    ],
)
def test_every_failure_has_a_positive_errno_and_a_text(error, code):
    assert errno_of(error) == code
    assert cause_of(error).encode()


_OPENING = """
import sys
from pagemove.stores import FsspecStore
FsspecStore(sys.argv[1], timeout=60).close()  # imports and connects
print("open", flush=True)
sys.stdin.readline()
with FsspecStore(sys.argv[1], timeout=float(sys.argv[2])) as store:
    print(store.nbytes)
"""


@pytest.mark.slow
def test_time_in_which_the_process_was_stopped_does_not_count_while_opening(web):
    seconds = 2.0
    program = subprocess.Popen(
        [sys.executable, "-c", _OPENING, f"{web.url}/file", str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stdout.readline() == "open\n"
        web.faults = [1.5 * seconds]
        program.stdin.write("\n")
        program.stdin.flush()
        wait_for(lambda: not web.faults)
        program.send_signal(signal.SIGSTOP)
        threading.Event().wait(1.5 * seconds)
        program.send_signal(signal.SIGCONT)
        out, err = program.communicate(timeout=patience(60))
    finally:
        program.kill()
        program.communicate()
    assert (program.returncode, out, err) == (0, "200000\n", "")
