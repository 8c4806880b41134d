"""stores/replacement.py: the file that takes another's place, whose it is, and what may fail."""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pagemove import StoreError
from pagemove.stores import CompressedStore, blockfile, blocklog, replacement
from support.blocks import K, compact, contents, made, read
from support.children import fork

pytestmark = pytest.mark.needs("zstandard")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of a file that is compacted soon."""
    monkeypatch.setattr(blocklog, "SLACK", 16 * K)
    return tmp_path / "blocks"


class TestPermissions:
    def test_other_users_cannot_read_the_copy(self, path, monkeypatch):
        seen = []
        real = blockfile.write_all

        def write_all(fd: int, data: bytes, offset: int) -> None:
            if os.readlink(f"/proc/self/fd/{fd}").endswith(".compact"):
                found = os.fstat(fd)
                seen.append((found.st_size, stat.S_IMODE(found.st_mode)))
            real(fd, data, offset)

        before = os.umask(0)
        try:
            with made(path) as store:
                path.chmod(0o640)
                monkeypatch.setattr(blockfile, "write_all", write_all)
                compact(store)
                assert path.stat().st_mode & 0o777 == 0o640
        finally:
            os.umask(before)
        assert seen[0] == (0, 0o640)
        assert {mode for _, mode in seen} == {0o640}

    def test_made_for_the_owner_alone(self, path, monkeypatch):
        modes = []
        monkeypatch.setattr(
            replacement,
            "_take_permissions",
            lambda _, fresh: modes.append(os.fstat(fresh).st_mode & 0o777),
        )
        before = os.umask(0)
        try:
            with made(path) as store:
                compact(store)
        finally:
            os.umask(before)
        assert set(modes) == {0o600}

    def test_owner_and_attributes_stay(self, path):
        if os.geteuid():
            pytest.skip("not root, so a file cannot be somebody else's")
        with made(path) as store:
            os.chown(path, 1234, 4321)
            path.chmod(0o604)
            os.setxattr(path, "user.note", b"kept")
            compact(store)
            found = path.stat()
            assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (1234, 4321, 0o604)
            assert os.getxattr(path, "user.note") == b"kept"

    def test_an_owner_that_cannot_be_kept_is_a_reason_not_to(self, path, monkeypatch, caplog):
        def refuse(*_: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        with made(path) as store:
            if not os.geteuid():
                os.chown(path, 1234, 4321)
            else:
                monkeypatch.setattr(replacement.os, "fstat", _of_others(os.fstat))
            monkeypatch.setattr(replacement.os, "fchown", refuse)
            inode = path.stat().st_ino
            for seed in range(6):
                store.write(0, contents(seed))
            store.flush()
            assert (path.stat().st_ino, read(store)) == (inode, contents(5))
            assert "not permitted" in caplog.text
        assert os.listdir(path.parent) == ["blocks"]


def _of_others(real: Callable[[int], os.stat_result]) -> Callable[[int], object]:
    def fstat(fd: int) -> object:
        found = real(fd)
        other = "compact" not in os.readlink(f"/proc/self/fd/{fd}")
        fields = list(found)
        fields[4] += other
        return os.stat_result(fields)

    return fstat


#: What compaction does with the system, one after another: a fault at each.
_STEPS = {
    "open": (blocklog.os, "open"),
    "flock": (blocklog.replacement, "lock_whole"),
    "permissions": (os, "fchmod"),
    "write": (os, "pwrite"),
    "read": (os, "pread"),
    "sync": (os, "fsync"),
    "rename": (os, "rename"),
}


class TestCompactionThatFails:
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
    @pytest.mark.parametrize("step", _STEPS)
    @pytest.mark.parametrize("call", [0, 1, 5])
    def test_leaves_the_old_file_or_the_new(self, path, monkeypatch, step, call, code):
        with made(path) as store:
            log = store._shelf
            place, name = _STEPS[step]
            real, left = getattr(place, name), [call]

            def fail(*arguments: object, **options: object) -> object:
                left[0] -= 1
                if left[0] == -1:
                    raise OSError(code, os.strerror(code))
                return real(*arguments, **options)

            with monkeypatch.context() as patched:
                patched.setattr(place, name, fail)
                log._try_to_compact()
            self.check(store, path)

    def test_a_name_that_is_not_durable_is_made_so(self, path, monkeypatch):
        """The folder's sync fails after the rename: the new file is used, and flush sees to it."""
        real, failing = blocklog.replacement.sync_directory, [0]

        def sync(path: Path) -> None:
            if failing[0]:
                failing[0] -= 1
                raise OSError(errno.EIO, "no folder")
            real(path)

        monkeypatch.setattr(blocklog.replacement, "sync_directory", sync)
        with made(path) as store:
            failing[0] = 2
            store._shelf._try_to_compact()
            store.write(0, contents(1))
            with pytest.raises(StoreError, match="no folder"):
                store.flush()
            self.check(store, path)
            assert failing == [0]

    def test_an_answer_that_was_lost(self, path, monkeypatch):
        """A file server has renamed, and says that it has not."""
        real = os.rename

        def rename(*names: Path) -> None:
            real(*names)
            raise OSError(errno.EIO, "no answer")

        with made(path) as store:
            with monkeypatch.context() as patched:
                patched.setattr(replacement.os, "rename", rename)
                store._shelf._try_to_compact()
            assert store.stats()["compactions"] == 1
            self.check(store, path)

    def check(self, store: CompressedStore, path: Path) -> None:
        """One file, used and locked, and what is written goes into it."""
        assert os.listdir(path.parent) == ["blocks"]
        assert read(store) in (contents(0), contents(1))
        store.write(4 * K, b"afterwards")
        store.flush()
        with CompressedStore(path=path) as other, pytest.raises(StoreError, match="in use"):
            read(other)
        expected = read(store)
        store.close()
        with CompressedStore(path=path) as other:
            assert read(other) == expected
            assert read(other, 4 * K, 10) == b"afterwards"

    @pytest.mark.needs("fork")
    def test_killed_between_any_two_steps(self, path):
        """Old or new, and what the killed one has left is removed."""
        made(path).close()
        for step in range(200):
            pid = fork()
            if not pid:
                _compact_until_killed(path, step)
            _, status = os.waitpid(pid, 0)
            if os.waitstatus_to_exitcode(status) == 0:
                break
            assert os.WTERMSIG(status) == signal.SIGKILL
            with CompressedStore(path=path) as store:
                assert read(store) == contents(0)
                if step % 8 == 0:
                    compact(store, 0)
            assert os.listdir(path.parent) == ["blocks"]
        assert 20 < step < 199


def _compact_until_killed(path: Path, step: int) -> None:
    """Compact in a child that is killed before its call number `step` of the system."""
    left = [step]

    def watched(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    try:
        with CompressedStore(path=path) as store:
            store.stats()
            for name in ("open", "pwrite", "fsync", "rename", "fchmod", "close"):
                setattr(os, name, watched(getattr(os, name)))
            store._shelf._compact()
            os._exit(0)
    finally:
        os._exit(1)
