"""stores/blocklog.py and what it stands on: what a file of blocks survives, and what it refuses."""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pagemove import StoreError
from pagemove.stores import CompressedStore, blockfile, blocklog, replacement
from support.blocks import K, N, contents, made, read
from support.children import child, fork, living_child

pytestmark = pytest.mark.needs("zstandard")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the path of a file that is compacted soon."""
    monkeypatch.setattr(blocklog, "SLACK", 16 * K)
    return tmp_path / "blocks"


def compact(store: CompressedStore, last: int = 9) -> None:
    """Write until the file is compacted, and what is in the end is known."""
    before = store.stats()["compactions"]
    for _ in range(4):
        store.write(0, contents(last))
    assert store.stats()["compactions"] > before


class TestWhichFile:
    def test_a_link_stays_and_its_file_is_replaced(self, path, tmp_path):
        link = tmp_path / "elsewhere" / "link"
        link.parent.mkdir()
        made(path).close()
        link.symlink_to(path)
        with CompressedStore(path=link) as store:
            compact(store)
            store.flush()
            assert link.is_symlink()
            with CompressedStore(path=path) as other, pytest.raises(StoreError, match="in use"):
                read(other)
        assert sorted(os.listdir(tmp_path)) == ["blocks", "elsewhere"]
        assert os.listdir(link.parent) == ["link"]
        with CompressedStore(path=path) as store:
            assert read(store) == contents(9)

    def test_a_link_to_nothing_makes_its_file(self, path, tmp_path):
        (tmp_path / "link").symlink_to(path)
        with made(tmp_path / "link"):
            assert path.stat().st_size > N
            assert (tmp_path / "link").is_symlink()

    def test_hard_links_keep_one_file(self, path, tmp_path, caplog):
        with made(path) as store:
            os.link(path, tmp_path / "other")
            for seed in range(12):
                store.write(0, contents(seed))
            store.flush()
            assert store.stats()["compactions"] == 0
            assert [record.message for record in caplog.records] == [
                f"cannot compact {path}, so it grows: [Errno {errno.EMLINK}] it has several hard "
                "links, and a new file would have one"
            ]
        with CompressedStore(path=tmp_path / "other") as store:
            assert read(store) == contents(11)

    @pytest.mark.parametrize("how", ["replaced", "removed", "moved"])
    def test_what_is_no_longer_there_is_not_flushed(self, path, tmp_path, how):
        other = tmp_path / "other"
        other.write_bytes(b"of somebody else")
        with made(path) as store:
            if how == "replaced":
                other.rename(path)
            elif how == "removed":
                path.unlink()
            else:
                path.rename(tmp_path / "moved")
            left = sorted(os.listdir(tmp_path))
            for seed in range(6):
                store.write(0, contents(seed))
            assert store.stats()["compactions"] == 0
            for _ in range(2):
                with pytest.raises(StoreError, match="replaced, moved or removed") as caught:
                    store.flush()
            assert caught.value.errno == errno.ESTALE
        assert sorted(os.listdir(tmp_path)) == left
        if how == "replaced":
            assert path.read_bytes() == b"of somebody else"

    def test_another_store_in_its_place_is_not_used(self, path):
        store = made(path)
        store.close()
        path.unlink()
        CompressedStore(2 * N, path=path).close()
        with pytest.raises(StoreError, match="now holds 131072 bytes in blocks of 65536"):
            read(store)

    def test_the_file_beside_is_not_anybody_elses(self, path):
        """What has the name of the file that replaces it, and is not ours, stays."""
        with made(path) as store:
            log = store._shelf
            beside = replacement._name(path, log._file, log._header)
            beside.write_bytes(b"mine")
            for seed in range(6):
                store.write(0, contents(seed))
            assert store.stats()["compactions"] == 0
            beside.unlink()
            victim = path.with_name("victim")
            victim.write_bytes(b"mine")
            beside.symlink_to(victim)
            for seed in range(20):
                store.write(0, contents(seed))
            assert store.stats()["compactions"] == 0
            assert victim.read_bytes() == b"mine"

    @pytest.mark.needs("fork")
    def test_a_forked_child_does_not_share_it(self, path):
        def use() -> str:
            with pytest.raises(StoreError, match="in use by another store"):
                store.write(0, b"child")
            return "refused"

        with made(path) as store:
            assert child(use) == "refused"
            store.write(0, contents(1))
            with living_child():
                store.close()
                with CompressedStore(path=path) as other:
                    assert read(other) == contents(1)


class TestPermissions:
    def test_nobody_may_read_what_is_being_copied(self, path, monkeypatch):
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


class TestFailedSync:
    @pytest.fixture
    def lost(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[int], object]]]:
        """Give a list of what syncs do instead, one after another, before they fail."""
        real: Callable[[int], None] = os.fdatasync
        todo: list[Callable[[int], object]] = []

        def fdatasync(fd: int) -> None:
            if todo:
                todo.pop(0)(fd)
                raise OSError(errno.EIO, "lost")
            real(fd)

        monkeypatch.setattr(blocklog.os, "fdatasync", fdatasync)
        return todo

    def test_what_is_still_there_is_written_again(self, path, lost):
        with made(path) as store:
            store.write(0, contents(1))
            inode = path.stat().st_ino
            lost.append(lambda fd: None)
            with pytest.raises(StoreError, match="lost"):
                store.flush()
            store.flush()
            assert path.stat().st_ino != inode
            assert read(store) == contents(1)

    def test_what_the_device_has_lost_is_never_said_to_be_durable(self, path, lost):
        """The kernel has dropped the pages: the file is as it was at the last flush."""
        with made(path) as store:
            flushed = path.read_bytes()
            store.write(8 * K, contents(1)[: 8 * K])

            def drop(fd: int) -> None:
                os.pwrite(fd, bytes(os.fstat(fd).st_size - len(flushed)), len(flushed))

            lost.append(drop)
            for _ in range(3):
                with pytest.raises(StoreError, match=r"lost|damaged"):
                    store.flush()
            with pytest.raises(StoreError, match="block 2 is damaged"):
                read(store, 8 * K, 4 * K)
            store.write(8 * K, contents(1)[: 8 * K])
            store.flush()
            expected = contents(0)[: 8 * K] + contents(1)[: 8 * K] + contents(0)[16 * K :]
            assert read(store) == expected
        with CompressedStore(path=path) as store:
            assert read(store) == expected

    def test_a_file_that_cannot_be_replaced_fails_for_good(self, path, lost, tmp_path):
        with made(path) as store:
            os.link(path, tmp_path / "other")
            store.write(0, contents(1))
            lost.append(lambda fd: None)
            with pytest.raises(StoreError, match="lost"):
                store.flush()
            for _ in range(3):
                with pytest.raises(StoreError, match="several hard links"):
                    store.flush()
