"""stores/filelock.py: one writer for a file, whoever opens it, and who is told to be it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import pagemove
from pagemove import PagedMemory, StoreError
from pagemove.stores import CompressedStore, FileStore, LayeredStore, filelock
from support.children import child, living_child
from support.slowness import SLOWNESS

N = 64 << 10


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "data.npy"
    np.save(found, np.zeros(N // 8))
    return found


_WRITER = """
import sys, pagemove
array = pagemove.open_array(sys.argv[1], mode="r+")
print("open", flush=True)
sys.stdin.read()
"""


@contextmanager
def writer(path: Path) -> Iterator[int]:
    """Have another program write the file; return its process number."""
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"open\n"
            yield process.pid
        finally:
            process.communicate(timeout=30 * SLOWNESS)


def _positions(path: Path) -> set[int]:
    """Collect where the open files of this process stand that are a file, the pager's too."""
    found = set()
    for each in Path("/proc/self/task").glob("*/fd/*"):
        with contextlib.suppress(OSError):
            if each.readlink() == path:
                text = (each.parent.parent / "fdinfo" / each.name).read_text()
                found.add(int(text.split()[1]))
    return found


@pytest.mark.needs("move")
class TestRegions:
    def test_it_hears_of_a_failed_sync_by_itself(self, path):
        """An open file is told once. So the store and the region have two: two positions."""
        with FileStore(path, writable=True, lock=False) as store:
            os.lseek(store.fileno(), 7, os.SEEK_SET)
            with PagedMemory(store):
                assert _positions(path) == {7}
            with PagedMemory(store, mode="r+"):
                assert _positions(path) == {0, 7}
            assert _positions(path) == {7}

    def test_a_second_writer_gets_the_name_of_the_first(self, path):
        with writer(path) as pid:
            with pytest.raises(
                BlockingIOError, match=rf"written by process {pid} \(python"
            ) as caught:
                pagemove.open_array(path, mode="r+")
            assert caught.value.errno == errno.EAGAIN
            assert caught.value.filename == str(path)
        array = pagemove.open_array(path, mode="r+")
        array[0] = 1
        del array
        assert np.load(path)[0] == 1

    def test_another_region_of_this_process(self, path):
        first = pagemove.open_array(path, mode="r+")
        with pytest.raises(BlockingIOError, match="another store or region of this process"):
            pagemove.open_array(path, mode="r+")
        link = path.with_name("link")
        link.symlink_to(path)
        os.link(path, path.with_name("hard"))
        for name in ("link", "hard"):
            with pytest.raises(BlockingIOError):
                pagemove.open_array(path.with_name(name), mode="r+")
        del first
        del_me = pagemove.open_array(link, mode="r+")
        assert del_me.flags.writeable

    def test_two_regions_over_one_store(self, path):
        with FileStore(path, writable=True) as store, PagedMemory(store, mode="r+") as region:
            with pytest.raises(BlockingIOError, match="this process"):
                PagedMemory(store, mode="r+")
            with pytest.raises(StoreError, match="written by another store or region") as caught:
                store.write(0, b"x")
            assert (caught.value.errno, caught.value.offset) == (errno.EAGAIN, 0)
            region.close()
            store.write(0, b"\x93")
            with PagedMemory(store, mode="r+"):
                pass

    def test_readers_and_private_changes_are_not_refused(self, path):
        array = pagemove.open_array(path, mode="r+")
        array[:] = 5
        pagemove.region_of(array).flush()
        for mode in ("r", "c"):
            assert pagemove.open_array(path, mode=mode).sum() == 5 * N // 8
        with FileStore(path, writable=True) as store:
            assert store.nbytes == path.stat().st_size

    def test_without_a_lock(self, path):
        first = pagemove.open_array(path, mode="r+")
        second = pagemove.open_array(path, mode="r+", lock=False)
        with FileStore(path, writable=True, lock=False) as store:
            assert "lock=False" in repr(store)
            third = pagemove.open_array(store, mode="r+")
            store.write(N, b"\0")
        first[0], second[-1] = 1, 2
        for array in (first, second, third):
            pagemove.region_of(array).flush()

    def test_the_store_may_be_closed_and_pickled(self, path):
        with FileStore(path, writable=True) as store:
            region = PagedMemory(store, mode="r+")
            pickled = pickle.dumps(store)
        with pytest.raises(BlockingIOError):
            pagemove.open_array(path, mode="r+")
        with pickle.loads(pickled) as other:
            with pytest.raises(StoreError, match="written by"):
                other.write(0, b"x")
            region.close()
            other.write(0, b"\x93")

    @pytest.mark.needs("fork")
    def test_a_forked_child_has_no_part_in_it(self, path):
        def use() -> str:
            with pytest.raises(BlockingIOError, match=f"process {os.getppid()} "):
                pagemove.open_array(path, mode="r+")
            return "refused"

        array = pagemove.open_array(path, mode="r+")
        assert child(use) == "refused"
        with pytest.raises(BlockingIOError, match="this process"):
            pagemove.open_array(path, mode="r+")
        with living_child():
            del array
            again = pagemove.open_array(path, mode="r+")
            assert again.flags.writeable

    @pytest.mark.needs("zstandard")
    def test_a_store_in_a_helper_locks_what_it_writes(self, path, tmp_path):
        """Filled here first: the lock goes with the pickle."""
        bottom = CompressedStore(path.stat().st_size)
        with LayeredStore(FileStore(path, writable=True), bottom) as store:
            store.write(0, b"here")
            with PagedMemory(store, mode="r+", store_timeout=20) as region:
                memoryview(region)[8:13] = b"there"
                region.flush()
                with pytest.raises(BlockingIOError, match=r"written by process \d+ \(python"):
                    pagemove.open_array(path, dtype="u1", offset=1, mode="r+")
            assert path.read_bytes()[:13] == b"here\0\0\0\0there"


class TestStores:
    def test_from_the_first_write_until_it_is_closed(self, path):
        with FileStore(path, writable=True) as first, FileStore(path, writable=True) as second:
            first.write(0, b"1")
            with pytest.raises(StoreError, match="this process: close it there first"):
                second.write(0, b"2")
            assert path.read_bytes()[:1] == b"1"
            first.close()
            second.write(0, b"2")
            assert path.read_bytes()[:1] == b"2"

    def test_locks_of_other_programs_count(self, path):
        """Those of fcntl(2) and lockf(3), which belong to a process."""
        code = (
            "import fcntl, os, sys; fd = os.open(sys.argv[1], os.O_RDWR); "
            "fcntl.lockf(fd, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
        )
        with (
            subprocess.Popen(
                [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as other,
            FileStore(path, writable=True) as store,
        ):
            assert other.stdout is not None
            other.stdout.readline()
            with pytest.raises(StoreError, match=f"written by process {other.pid} "):
                store.write(0, b"x")
            other.communicate(timeout=30 * SLOWNESS)
            store.write(0, b"x")

    def test_closing_another_descriptor_does_not_unlock(self, path):
        with FileStore(path, writable=True) as store, FileStore(path, writable=True) as other:
            store.write(0, b"x")
            os.close(os.open(path, os.O_RDWR))
            with FileStore(path) as reader:
                reader.read_into(0, bytearray(10))
            with pytest.raises(StoreError):
                other.write(0, b"y")

    def test_after_privileges_or_proc_are_gone(self, path, monkeypatch):
        real = filelock.Descriptor

        def without_proc(name: str, flags: int) -> filelock.Descriptor:
            if str(name).startswith("/proc"):
                raise FileNotFoundError(errno.ENOENT, "no /proc")
            return real(name, flags)

        monkeypatch.setattr(filelock, "Descriptor", without_proc)
        with FileStore(path, writable=True) as store, FileStore(path, writable=True) as other:
            store.write(0, b"x")
            with pytest.raises(StoreError, match="written by"):
                other.write(0, b"y")

    @pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
    def test_where_there_are_no_locks_one_warning_says_so(self, path, monkeypatch, code):
        def refuse(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(filelock, "_told", set())
        monkeypatch.setattr(fcntl, "fcntl", refuse)
        with FileStore(path, writable=True) as store:
            with pytest.warns(
                RuntimeWarning, match="cannot be locked .* lock=False says so"
            ) as told:
                store.write(0, b"x")
            assert len(told) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with FileStore(path, writable=True) as store:
                store.write(0, b"y")
            with FileStore(path, writable=True, lock=False) as store:
                store.write(0, b"z")
        assert path.read_bytes()[:1] == b"z"

    @pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
    def test_to_be_short_of_something_is_not_to_have_no_locks(self, path, monkeypatch, code):
        """Else two would write it, after a warning that is given once."""

        def refuse(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        with FileStore(path, writable=True) as store:
            with monkeypatch.context() as patch:
                patch.setattr(filelock, "Descriptor", refuse)
                with pytest.raises(StoreError) as caught:
                    store.write(0, b"x")
                assert caught.value.errno == code
                with pytest.raises(OSError, match=os.strerror(code)):
                    store.hand_over_lock()
            assert path.read_bytes()[:1] == b"\x93"
            store.write(0, b"y")
            with FileStore(path, writable=True) as other, pytest.raises(StoreError):
                other.write(0, b"z")

    def test_no_descriptor_below_three(self, path):
        code = (
            "import os, sys\n"
            "from pagemove.stores import FileStore\n"
            "for fd in range(3): os.close(fd)\n"
            "store = FileStore(sys.argv[1], writable=True)\n"
            "store.write(0, b'x')\n"
            "held = store._held._file.fd\n"
            "os._exit(0 if min(store.fileno(), held) > 2 else 9)\n"
        )
        assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == 0
