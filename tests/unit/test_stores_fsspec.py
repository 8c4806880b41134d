"""stores/fsspec.py and stores/http.py: what is refused, and servers that fail on a schedule."""

from __future__ import annotations

import errno
import logging
import pickle
import sys
import traceback
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pagemove import PagedMemory, StoreError
from pagemove.stores import FsspecStore, files
from support.children import child
from support.servers import WebServer

pytestmark = pytest.mark.needs("fsspec")

CONTENTS = np.random.default_rng(1).bytes(200_000)


def read(store: FsspecStore, offset: int = 0, length: int = 100) -> bytes:
    buffer = bytearray(length)
    store.read_into(offset, buffer)
    return bytes(buffer)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "file"
    found.write_bytes(CONTENTS)
    return found


@pytest.fixture
def web(path: Path) -> Iterator[WebServer]:
    with WebServer(path.parent).running() as server:
        yield server


class TestOpening:
    def test_what_is_not_there(self, tmp_path, web):
        for url in (f"file://{tmp_path}/none", "memory://none", f"{web.url}/none"):
            with pytest.raises(FileNotFoundError):
                FsspecStore(url)

    def test_what_is_empty(self, tmp_path, web):
        (tmp_path / "empty").touch()
        for url in (f"file://{tmp_path}/empty", f"{web.url}/empty"):
            with pytest.raises(ValueError, match="is empty"):
                FsspecStore(url)

    def test_a_directory(self, tmp_path):
        with pytest.raises(IsADirectoryError, match="name a file in it"):
            FsspecStore(f"file://{tmp_path}")

    def test_a_server_without_ranges(self, web):
        web.ranges = False
        with pytest.raises(ValueError, match=r"does not serve ranges of it .*status 200"):
            FsspecStore(f"{web.url}/file")
        assert web.asked == ["bytes=0-0"]

    def test_a_server_that_is_not_there(self):
        with pytest.raises(OSError, match="Cannot connect"):
            FsspecStore("http://127.0.0.1:1/file", timeout=0.2)

    def test_a_server_that_does_not_answer(self, web):
        web.faults[:] = [1.0] * 20
        with pytest.raises(TimeoutError, match=r"no answer within 0\.\d+ s"):
            FsspecStore(f"{web.url}/file", timeout=0.3)

    def test_an_unknown_protocol(self):
        with pytest.raises(ValueError, match="nosuch"):
            FsspecStore("nosuch://file")

    def test_without_fsspec(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "fsspec", None)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'pagemove\[fsspec\]'"):
            FsspecStore("memory://file")


class TestReading:
    def test_a_range_is_one_request(self, web):
        with FsspecStore(f"{web.url}/file") as store:
            web.asked.clear()
            assert read(store, 1000, 50_000) == CONTENTS[1000:51_000]
            assert web.asked == ["bytes=1000-50999"]

    def test_opens_again_after_close(self, web, path):
        for url in (f"{web.url}/file", f"file://{path}"):
            store = FsspecStore(url)
            for _ in range(3):
                assert read(store, 5) == CONTENTS[5:105]
                store.close()

    def test_writing_says_what_to_do_instead(self, path):
        with pytest.raises(StoreError, match="put LayeredStore"):
            FsspecStore(f"file://{path}").write(0, b"x")

    def test_a_file_that_has_become_shorter(self, path):
        with FsspecStore(f"file://{path}") as store:
            path.write_bytes(b"short")
            with pytest.raises(StoreError, match="asked for 100 bytes, got 5"):
                read(store)

    def test_a_file_that_changes_is_an_error_at_once(self, web):
        with FsspecStore(f"{web.url}/file", timeout=60) as store:
            web.version = "second"
            with pytest.raises(StoreError, match='it was "first", and is "second"') as caught:
                read(store)
            assert caught.value.errno == errno.ESTALE

    def test_members_of_archives_are_read_on(self, tmp_path, monkeypatch):
        """Nothing is decompressed twice as long as what is read comes later."""
        with zipfile.ZipFile(tmp_path / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("file", CONTENTS)
        opened = []
        original = files.Handles._opened_file

        def count(self):
            opened.append(self)
            return original(self)

        monkeypatch.setattr(files.Handles, "_opened_file", count)
        with FsspecStore(f"zip://file::{tmp_path}/archive.zip") as store:
            for offset in range(0, 200_000, 1000):
                assert read(store, offset, 1000) == CONTENTS[offset : offset + 1000]
            assert len(opened) == 1
            for offset in range(199_000, 0, -1000):
                assert read(store, offset, 1000) == CONTENTS[offset : offset + 1000]
            assert len(store._opened._idle) <= files._MOST_IDLE

    def test_memory_is_pickled_with_its_bytes(self):
        import fsspec as library

        library.filesystem("memory").pipe("/here", b"only here")
        store = pickle.loads(pickle.dumps(FsspecStore("memory://here")))
        library.filesystem("memory").rm("/here")
        assert read(store, 0, 9) == b"only here"


class TestInAChild:
    @pytest.mark.needs("fork")
    def test_it_has_files_of_its_own(self, tmp_path):
        """One position for both would be wrong bytes in the parent: buffers do not ask where."""
        import fsspec
        from fsspec.implementations.local import LocalFileSystem

        class Odd(LocalFileSystem):  # which by its kind may be anything
            protocol = "pagemove-odd"

        fsspec.register_implementation(Odd.protocol, Odd, clobber=True)
        (tmp_path / "file").write_bytes(CONTENTS)
        with FsspecStore(f"pagemove-odd://{tmp_path}/file") as store:
            assert read(store, 0, 5000) == CONTENTS[:5000]
            assert child(read, store, 100_000, 5000) == CONTENTS[100_000:105_000]
            for offset in range(5000, 100_000, 5000):
                assert read(store, offset, 5000) == CONTENTS[offset : offset + 5000]

    @pytest.mark.needs("fork")
    @pytest.mark.parametrize("used", [False, True])
    def test_it_has_connections_of_its_own(self, web, used):
        with FsspecStore(f"{web.url}/file", timeout=20) as store:
            if used:
                read(store, 3)

            def use() -> bytes:
                found = read(store, 5)
                store.close()
                return found

            assert child(use) == CONTENTS[5:105]
            assert read(store, 7) == CONTENTS[7:107]

    @pytest.mark.needs("fork")
    def test_a_thread_that_opens_it_in_the_parent_is_not_waited_for(self, path):
        with FsspecStore(f"file://{path}", timeout=600) as store, store._lock:
            assert child(read, store, 5) == CONTENTS[5:105]


class TestSecrets:
    def test_libraries_do_not_log_them(self, web, caplog):
        """Only of stores that are there, and only what libraries log."""
        caplog.set_level(logging.DEBUG)
        with FsspecStore(f"{web.url}/file?token=hidden-word") as store:
            try:
                raise OSError("at /file?token=hidden-word")
            except OSError:
                logging.getLogger("aiohttp.client").debug("GET %s", "a?token=hidden-word&b=c")
                logging.getLogger("fsspec").exception("odd %d", 1)
            read(store)
            assert "hidden-word" not in caplog.text
            assert "GET a?...&b=c\n" in caplog.text
            assert "OSError: at /file?...\n" in caplog.text
            logging.getLogger("program").warning("%s", "hidden-word")
        assert caplog.records[-1].getMessage() == "hidden-word"

    def test_what_cannot_be_opened_again_to_be_paged(self, web, path):
        store = FsspecStore(f"simplecache::{web.url}/file?token=hidden-word", timeout=1)
        store.close()
        web.faults.extend([403] * 10)
        with pytest.raises(StoreError, match="cannot read FsspecStore") as caught:
            PagedMemory(store)
        assert caught.value.errno == errno.EACCES
        assert "hidden-word" not in "".join(traceback.format_exception(caught.value))


class TestFaults:
    """A server that fails now and then is not noticed; one that goes on failing is, in time."""

    @pytest.mark.parametrize("faults", [[503], [500, 502, 429], [0], [0, 503, 0], [0.4]])
    def test_passing_ones(self, web, faults):
        with FsspecStore(f"{web.url}/file", timeout=10) as store:
            web.faults[:] = faults
            assert read(store, 77) == CONTENTS[77:177]
            assert not web.faults

    def test_ones_that_last(self, web):
        with FsspecStore(f"{web.url}/file", timeout=1) as store:
            web.faults[:] = [503] * 1000
            with pytest.raises(StoreError, match="503") as caught:
                read(store, 77)
            assert caught.value.offset == 77
            assert 1 < 1000 - len(web.faults) < 100
            web.faults.clear()
            assert read(store, 77) == CONTENTS[77:177]

    @pytest.mark.parametrize("status", [403, 404])
    def test_ones_that_trying_again_does_not_help(self, web, status):
        with FsspecStore(f"{web.url}/file", timeout=60) as store:
            # obstore asks, and then whoever looks at the answer.
            web.faults[:] = [status, status, 503]
            with pytest.raises(StoreError, match=str(status)):
                read(store)
            assert web.faults == [503]

    def test_a_try_that_hangs_leaves_time_for_another(self, web):
        with FsspecStore(f"{web.url}/file", timeout=1.0) as store:
            web.faults[:] = [5.0]
            assert read(store, 3) == CONTENTS[3:103]

    def test_s3_hands_over_what_it_cannot_do(self):
        pytest.importorskip("s3fs")
        with pytest.raises(OSError, match=r"no answer|onnect"):
            FsspecStore(
                "s3://none/x", timeout=0.5, key="k", secret="s", endpoint_url="http://127.0.0.1:1"
            )
