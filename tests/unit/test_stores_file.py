"""stores/file.py: what can be opened, what is refused and how, and who closes what when."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import pickle
import shutil
import socket
import stat
import subprocess
import warnings
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


def read(store: FileStore, offset: int = 0, length: int = 10) -> bytes:
    buffer = bytearray(length)
    store.read_into(offset, buffer)
    return bytes(buffer)


class TestOpening:
    def test_a_path_of_any_kind(self, path, monkeypatch):
        monkeypatch.chdir(path.parent)
        for named in (path, str(path), "file", Path("file")):
            with FileStore(named) as store:
                assert store.path == path
                assert (store.nbytes, store.writable, store.closed) == (10, False, False)
                assert os.path.sameopenfile(store.fileno(), store.fileno())
                assert os.fstat(store.fileno()).st_ino == path.stat().st_ino

    def test_a_relative_path_stays_what_it_was(self, path, monkeypatch, tmp_path):
        monkeypatch.chdir(path.parent)
        with FileStore("file") as store:
            (tmp_path / "elsewhere").mkdir()
            monkeypatch.chdir(tmp_path / "elsewhere")
            with pickle.loads(pickle.dumps(store)) as other:
                assert read(other) == b"0123456789"

    def test_dots_after_a_link_are_the_kernels(self, tmp_path, path):
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "there").write_bytes(b"right")
        (tmp_path / "there").write_bytes(b"wrong")
        (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
        with FileStore(tmp_path / "link" / ".." / "there") as store:
            assert read(store, 0, 5) == b"right"

    def test_missing(self, tmp_path):
        for writable in (False, True):
            with pytest.raises(FileNotFoundError, match="none"):
                FileStore(tmp_path / "none", writable=writable)
        assert not (tmp_path / "none").exists()

    @pytest.mark.parametrize("writable", [False, True])
    def test_directory(self, tmp_path, writable):
        with pytest.raises(IsADirectoryError) as caught:
            FileStore(tmp_path, writable=writable)
        assert str(tmp_path) in str(caught.value)

    def test_empty(self, tmp_path):
        (tmp_path / "empty").touch()
        with pytest.raises(ValueError, match="empty is empty: there is nothing"):
            FileStore(tmp_path / "empty")

    @pytest.mark.parametrize("writable", [False, True])
    def test_pipe_without_waiting_for_its_other_end(self, tmp_path, writable):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ValueError, match=r"pipe is a pipe.*copy what comes out of it"):
            FileStore(tmp_path / "pipe", writable=writable)

    def test_socket(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as one:
            one.bind("socket")
            with pytest.raises(OSError, match="socket"):
                FileStore("socket")

    @pytest.mark.parametrize("name", ["null", "zero", "urandom"])
    def test_character_device(self, name):
        with pytest.raises(ValueError, match=f"{name} is a character device"):
            FileStore(f"/dev/{name}")

    @pytest.mark.parametrize("name", ["self/maps", "cpuinfo", "self/status", "self/mem"])
    def test_procfs(self, name):
        with pytest.raises(ValueError, match=r"copy it into a file|is empty"):
            FileStore(f"/proc/{name}")

    def test_sysfs(self):
        attribute = Path("/sys/kernel/mm/transparent_hugepage/enabled")
        if not attribute.exists():
            pytest.skip("no such attribute in sysfs")
        with pytest.raises(ValueError, match="does not have the length it claims"):
            FileStore(attribute)

    def test_what_may_not_be_read_or_written(self, path):
        def opened(writable):
            os.setgroups([]), os.setgid(65534), os.setuid(65534)
            with pytest.raises(PermissionError):
                FileStore("file", writable=writable)
            return True

        if os.geteuid():
            pytest.skip("not root, so a file cannot be somebody else's")
        path.parent.chmod(0o755)
        os.chmod(path, 0o644)
        current = os.getcwd()
        os.chdir(path.parent)
        try:
            assert child(opened, True)
            os.chmod(path, 0o600)
            assert child(opened, False)
        finally:
            os.chdir(current)

    def test_opening_survives_an_unreadable_byte(self, path, monkeypatch):
        def broken(*_):
            raise OSError(errno.EIO, "a bad sector")

        monkeypatch.setattr(file.os, "pread", broken)
        FileStore(path).close()

    def test_block_device(self, tmp_path):
        if os.geteuid() or not shutil.which("losetup"):
            pytest.skip("only root can make a loop device, with losetup")
        image = tmp_path / "image"
        image.write_bytes(b"ab" * 4096)
        made = subprocess.run(
            ["losetup", "--find", "--show", image], capture_output=True, text=True, check=False
        )
        if made.returncode:
            pytest.skip(f"no loop device: {made.stderr.strip()}")
        device = made.stdout.strip()
        try:
            assert stat.S_ISBLK(os.stat(device).st_mode)
            with FileStore(device, writable=True) as store:
                assert store.nbytes == 8192
                store.write(8190, b"yz")
                store.flush()
                assert read(store, 8186, 6) == b"ababyz"
        finally:
            subprocess.run(["losetup", "--detach", device], check=True)

    @pytest.mark.parametrize("wrong", [None, 5, b"bytes", object()])
    def test_what_is_no_path(self, wrong):
        with pytest.raises(TypeError):
            FileStore(wrong)


class TestReadingAndWriting:
    def test_a_file_that_has_become_shorter(self, path):
        with FileStore(path) as store:
            os.truncate(path, 4)
            assert read(store, 0, 4) == b"0123"
            with pytest.raises(StoreError, match="file was truncated") as caught:
                read(store, 2, 5)
            error = caught.value
            assert (error.errno, error.operation) == (errno.EIO, "read")
            assert (error.store, error.offset) == (str(path), 4)

    def test_a_file_that_has_grown(self, path):
        with FileStore(path) as store:
            with path.open("ab") as grown:
                grown.write(b"more")
            assert store.nbytes == 10
            with pytest.raises(ValueError, match="not within the 10 of"):
                read(store, 8, 4)

    def test_what_comes_in_pieces_is_put_together(self, path, monkeypatch):
        real = os.preadv, os.pwrite
        monkeypatch.setattr(file.os, "preadv", lambda fd, v, at: real[0](fd, [v[0][:3]], at))
        monkeypatch.setattr(file.os, "pwrite", lambda fd, v, at: real[1](fd, v[:2], at))
        with FileStore(path, writable=True) as store:
            store.write(1, b"abcdefg")
            assert read(store) == b"0abcdefg89"

    @pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
    def test_errors_say_what_and_where(self, path, monkeypatch, code):
        def fail(*_):
            raise OSError(code, os.strerror(code))

        with FileStore(path, writable=True) as store:
            for name in ("preadv", "pwrite", "fdatasync"):
                monkeypatch.setattr(file.os, name, fail)
            for operation, offset, call in (
                ("read", 3, lambda: read(store, 3, 2)),
                ("write", 4, lambda: store.write(4, b"x")),
                ("flush", None, store.flush),
            ):
                with pytest.raises(StoreError) as caught:
                    call()
                error = caught.value
                assert (error.errno, error.operation, error.offset) == (code, operation, offset)
                assert error.store == str(path)
                assert errno.errorcode[code] in str(error)
                assert error.__cause__ is None

    def test_a_device_that_takes_nothing(self, path, monkeypatch):
        monkeypatch.setattr(file.os, "pwrite", lambda *_: 0)
        with (
            FileStore(path, writable=True) as store,
            pytest.raises(StoreError, match="fewer bytes than there should be"),
        ):
            store.write(0, b"x")

    def test_read_only_buffers_and_stores(self, path):
        with FileStore(path) as store:
            with pytest.raises(BufferError, match="read-only"):
                store.read_into(0, b"xx")
            with pytest.raises(StoreError, match="writable=True") as caught:
                store.write(0, b"xx")
            assert caught.value.errno == errno.EROFS
            with pytest.raises(TypeError):
                store.read_into(0, "text")
            with pytest.raises(TypeError):
                store.read_into(0.5, bytearray(2))
        assert path.read_bytes() == b"0123456789"


class TestEnds:
    def test_closed(self, path):
        store = FileStore(path, writable=True)
        number = store.fileno()
        store.close()
        assert store.closed
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(number)
        for use in (store.fileno, store.flush, lambda: read(store), lambda: store.write(0, b"x")):
            with pytest.raises(ValueError, match="closed FileStore"):
                use()
        assert (store.nbytes, store.path) == (10, path)

    def test_closing_twice_never_closes_a_foreign_descriptor(self, path):
        store = FileStore(path)
        number = store.fileno()
        store.close()
        other = os.open(path, os.O_RDONLY)
        try:
            assert other == number
            store.close()
            os.fstat(other)
        finally:
            os.close(other)

    def test_forgotten(self, path):
        store = FileStore(path)
        number = store.fileno()
        with pytest.warns(ResourceWarning, match=r"FileStore.*was never closed"):
            del store
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(number)

    def test_no_warning_where_there_was_nothing_to_close(self, path, tmp_path):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            FileStore(path).close()
            for wrong in (tmp_path, "/dev/null", tmp_path / "none"):
                with pytest.raises((OSError, ValueError)):
                    FileStore(wrong)
            gc.collect()

    def test_descriptors_are_not_inherited_by_programs(self, path):
        with FileStore(path) as store:
            assert not os.get_inheritable(store.fileno())
            assert os.get_blocking(store.fileno())

    @pytest.mark.needs("fork")
    def test_in_a_forked_child(self, path):
        with FileStore(path, writable=True) as store:

            def use() -> bytes:
                store.write(0, b"child")
                found = read(store)
                store.close()
                return found

            assert child(use) == b"child56789"
            assert read(store) == b"child56789"

    def test_pickled_it_is_opened_anew(self, path):
        with FileStore(path, writable=True) as store:
            data = pickle.dumps(store)
            with pickle.loads(data) as other:
                assert other.fileno() != store.fileno()
                other.write(0, b"x")
            assert read(store, 0, 2) == b"x1"
        path.unlink()
        with pytest.raises(FileNotFoundError):
            pickle.loads(data)

    def test_repr(self, path):
        with FileStore(path) as store, FileStore(path, writable=True) as other:
            assert repr(store) == f"FileStore('{path}')"
            assert repr(other) == f"FileStore('{path}', writable=True)"
        assert repr(store) == f"<closed FileStore('{path}')>"
