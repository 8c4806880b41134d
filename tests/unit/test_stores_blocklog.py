"""stores/blocklog.py: which file it is, and what a sync that failed has lost."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pagemove import StoreError
from pagemove.stores import CompressedStore, blocklog, replacement
from support.blocks import K, N, compact, contents, made, read
from support.children import ChildFailed, child, living_child

pytestmark = pytest.mark.needs("zstandard")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of a file that is compacted soon."""
    monkeypatch.setattr(blocklog, "SLACK", 16 * K)
    return tmp_path / "blocks"


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


class TestFailedSync:
    @pytest.fixture
    def lost(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[int], object]]]:
        """Return a list of what syncs do instead, one after another, before they fail."""
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

    @pytest.mark.parametrize("how", ["closed", "pickled"])
    def test_it_is_remembered_by_who_opens_the_file_again(self, path, lost, how):
        with made(path) as store:
            store.write(0, contents(1))
            inode = path.stat().st_ino
            lost.append(lambda fd: None)
            with pytest.raises(StoreError, match="lost"):
                store.flush()
            with again(store, how) as other:
                other.flush()
                assert path.stat().st_ino != inode
                assert read(other) == contents(1)

    @pytest.mark.parametrize("how", ["closed", "pickled"])
    def test_what_the_device_has_lost_is_missed_by_who_opens_the_file_again(self, path, lost, how):
        """Not taken for torn: what was before is right, but is not what was written."""
        with made(path) as store:
            nbytes = path.stat().st_size
            store.write(8 * K, contents(1)[: 8 * K])
            lost.append(lambda fd: os.ftruncate(fd, nbytes))
            with pytest.raises(StoreError, match="lost"):
                store.flush()
            with again(store, how) as other:
                for _ in range(2):
                    with pytest.raises(StoreError, match="has lost what was written"):
                        other.flush()
                with pytest.raises(StoreError, match="has lost what was written"):
                    read(other)
        with CompressedStore(path=path) as store:
            assert read(store) == contents(0)

    @pytest.mark.needs("fork")
    def test_a_forked_child_remembers_it(self, path, lost):
        with made(path) as store:
            nbytes = path.stat().st_size
            _inherited.append(store)
            store.write(8 * K, contents(1)[: 8 * K])
            lost.append(lambda fd: os.ftruncate(fd, nbytes))
            with pytest.raises(StoreError, match="lost"):
                store.flush()
            with living_child() as one:
                store.close()
                with pytest.raises(ChildFailed, match="has lost what was written"):
                    one.run(_flush)


_inherited: list[CompressedStore] = []


def _flush() -> None:
    _inherited[-1].flush()


def again(store: CompressedStore, how: str) -> CompressedStore:
    """Return a store that opens the file anew."""
    if how == "pickled":
        return pickle.loads(pickle.dumps(store))
    store.close()
    return store
