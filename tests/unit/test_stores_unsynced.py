"""stores/unsynced.py: what a flush that failed may have lost of a file, also in a forked child."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from pagemove import StoreError
from pagemove.stores import FileStore, file
from support import child

pytestmark = pytest.mark.usefixtures("no_leak")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "file"
    found.write_bytes(b"0123456789")
    return found


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first sync fail, and the next succeed, as the kernel does."""
    fail = [None]

    def fdatasync(_: int) -> None:
        if fail:
            fail.pop()
            raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(file.os, "fdatasync", fdatasync)


@pytest.mark.usefixtures("failing")
def test_what_a_failed_flush_may_have_lost_has_to_be_written_again(path):
    """The kernel says it once: asked again it would succeed."""
    with FileStore(path, writable=True) as store:
        store.write(0, b"ab")
        store.write(4, b"cdef")
        with pytest.raises(StoreError, match="EIO"):
            store.flush()
        for again, lost in ((b"", "0 to 2"), (b"ab", "4 to 8"), (b"abcdef", "6 to 8")):
            store.write(0, again[:2])
            store.write(4, again[2:4])
            with pytest.raises(StoreError, match=f"bytes {lost} .* not been written again"):
                store.flush()
        store.write(6, b"ef")
        store.flush()
        store.write(0, b"xy")
        store.flush()


def test_what_was_under_way_when_a_flush_failed_is_lost_too(path, monkeypatch):
    real, asked, failed = os.pwrite, threading.Event(), threading.Event()

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        asked.set()
        assert failed.wait(20)
        return real(fd, data, offset)

    def fdatasync(_: int) -> None:
        if not failed.is_set():
            raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(file.os, "pwrite", pwrite)
    monkeypatch.setattr(file.os, "fdatasync", fdatasync)
    with FileStore(path, writable=True) as store:
        thread = threading.Thread(target=store.write, args=(2, b"late"))
        thread.start()
        assert asked.wait(20)
        with pytest.raises(StoreError, match="EIO"):
            store.flush()
        failed.set()
        thread.join()
        with pytest.raises(StoreError, match="bytes 2 to 6"):
            store.flush()
        store.write(0, b"0123456789")
        store.flush()


@pytest.mark.usefixtures("failing")
def test_a_write_that_raised_has_lost_nothing(path, monkeypatch):
    """Who wrote it knows; and nobody has to write it before anything else can be flushed."""

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "full")

    with FileStore(path, writable=True) as store:
        store.write(0, b"")
        with monkeypatch.context() as patched:
            patched.setattr(file.os, "pwrite", pwrite)
            with pytest.raises(StoreError, match="ENOSPC"):
                store.write(2, b"abc")
        with pytest.raises(StoreError, match="EIO"):
            store.flush()
        store.flush()


@pytest.mark.needs("fork")
@pytest.mark.usefixtures("failing")
def test_a_forked_child_knows_what_a_failed_flush_may_have_lost(path):
    def use() -> str:
        with pytest.raises(StoreError, match="bytes 2 to 5") as caught:
            store.flush()
        store.write(2, b"abc")
        store.flush()
        return caught.value.strerror

    with FileStore(path, writable=True, lock=False) as store:
        store.write(2, b"abc")
        with pytest.raises(StoreError, match="EIO"):
            store.flush()
        assert "earlier flush" in child(use)
        # What the child has written again is not the parent's.
        with pytest.raises(StoreError, match="bytes 2 to 5"):
            store.flush()


@pytest.mark.needs("fork")
@pytest.mark.usefixtures("failing")
def test_a_forked_child_answers_for_what_the_parent_had_written(path):
    def use() -> None:
        for says in ("EIO", "bytes 2 to 5"):
            with pytest.raises(StoreError, match=says):
                store.flush()

    with FileStore(path, writable=True) as store:
        store.write(2, b"abc")
        child(use)


@pytest.mark.needs("fork")
@pytest.mark.parametrize("operation", ["write", "flush"])
def test_a_forked_child_syncs_an_open_file_of_its_own(path, operation):
    """Of one that both have, the kernel would say to one of them only that it has failed."""

    def use() -> int:
        number = store.fileno()
        store.write(0, b"x") if operation == "write" else store.flush()
        assert store.fileno() == number
        assert not os.get_inheritable(number)
        assert os.get_blocking(number)
        return os.lseek(number, 5, os.SEEK_SET)

    with FileStore(path, writable=True) as store:
        assert child(use) == 5
        assert os.lseek(store.fileno(), 0, os.SEEK_CUR) == 0
