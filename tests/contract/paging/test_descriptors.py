"""Descriptors in a process that is not the library's: closed by others, reused, none below 3."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pagemove import PagedMemory, StoreError
from pagemove.stores import FileStore
from support import child
from support.paging import KIB, MODES, expected, wrong_words
from support.programs import program

pytestmark = pytest.mark.needs("paging")

_NBYTES = 64 * 64 * KIB

_CLOSE = {
    "closerange": "os.closerange(3, 1000)",
    "close_range": "ctypes.CDLL(None).close_range(3, 0x7FFFFFFF, 0)",
    "one by one": "[os.close(int(n)) for n in os.listdir('/proc/self/fd') if int(n) > 2 "
    "and os.path.exists(f'/proc/self/fd/{n}')]",
}


class TestClosedWhileItIsOpened:
    @pytest.mark.parametrize("kind", ["file", "config", "log"])
    def test_what_has_got_the_number_is_not_taken_for_it(self, file, kind):
        """Neither paged, unpickled nor written to: the program's bytes may be anybody's."""
        path = file(_NBYTES)
        data = path.with_suffix(".data")
        data.write_bytes(b"data" * 1000)
        done = program(
            f"""
            import contextlib
            from pagemove.paging import region as regions
            real, kind = regions.serving, {kind!r}

            @contextlib.contextmanager
            def serving(*arguments, **keywords):
                with real(*arguments, **keywords) as found:
                    served, _ = found
                    helper = served["helper"]
                    fd = served["fd"] if kind == "file" else helper[1 + (kind == "log")]
                    kept = os.dup(fd)
                    os.dup2(os.open(sys.argv[2], os.O_RDWR), fd)
                    try:
                        yield found
                    finally:
                        os.dup2(kept, fd)

            regions.serving = serving
            if kind == "file":
                store = pagemove.stores.FileStore(path)
            else:
                store = pagemove.stores.CompressedStore(1 << 20)
            try:
                pagemove.PagedMemory(store)
            except OSError as error:
                print(error.errno, error)
            """,
            path,
            data,
        )
        assert done.stdout.split()[:2] == ["9", "[Errno"]
        assert "closed the descriptors that the library had just opened" in done.stdout
        assert data.read_bytes() == b"data" * 1000


class TestClosedByOthers:
    @pytest.mark.parametrize("how", _CLOSE)
    def test_changes_are_saved_and_flush_raises(self, file, how):
        path = file(_NBYTES)
        done = program(
            f"""
            a = pagemove.open_array(path, dtype="u8", mode="r+", resident_limit="512KiB")
            a += 1
            region = pagemove.region_of(a)
            {_CLOSE[how]}
            print(lost(region), flush=True)
            try:
                region.flush()
            except pagemove.StoreError as error:
                print(error.errno, error)
            print(region.stats().dirty_nbytes)
            """,
            path,
        )
        first, second, third = done.stdout.strip().split("\n")
        assert (first, second.split()[0], third) == ("True", "9", "0")
        assert "closed the descriptors" in second
        assert "saved" in second
        assert str(path) in done.stderr
        assert "could not be saved" not in done.stderr
        found = np.fromfile(path, np.uint64) - np.uint64(1)
        assert wrong_words(found) is None

    def test_changes_are_saved_that_cannot_be_mapped_for_want_of_memory(self, file):
        """They are in a slot, and brought back once there is some; others are not kept by them."""
        path = file(_NBYTES)
        done = program(
            f"""
            import errno
            from pagemove._native import pager
            from pagemove.testing import Fault, FaultyStore
            store = FaultyStore(path, writable=True, faults=[Fault("write", 0, 1, errno=5)])
            region = pagemove.PagedMemory(store, mode="r+", prefetch="off", store_timeout=1)
            array = region.asarray("u8")
            array[:: 8 * {KIB}] += 1
            for call in range(2):
                pager.set_trouble(call, 0, 2**62, 0, errno.ENOMEM)
            try:
                region.evict(0, 64 * {KIB})
            except pagemove.StoreError as error:
                print(error.errno == errno.ENOMEM)
            os.closerange(3, 1000)
            print(lost(region), flush=True)
            for call in range(2):
                pager.set_trouble(call, 0, 0, 0, 0)
            try:
                region.flush()
            except pagemove.StoreError as error:
                print(error.errno == errno.EBADF)
            print(region.stats().dirty_nbytes)
            """,
            path,
        )
        assert done.stdout.split() == ["True", "True", "True", "0"]
        found = np.fromfile(path, np.uint64)
        found[:: 8 * KIB] -= np.uint64(1)
        assert wrong_words(found) is None

    def test_a_sync_that_failed_once_is_never_told_as_saved(self, file):
        path = file(_NBYTES)
        done = program(
            """
            from pagemove.testing import Fault, FaultyStore
            store = FaultyStore(path, writable=True, faults=[Fault("flush", errno=5)])
            region = pagemove.PagedMemory(
                store, mode="r+", resident_limit=None, writeback_interval=None
            )
            array = region.asarray("u8")
            array += 1
            os.closerange(3, 1000)
            print(lost(region))
            for each in (region.flush, region.flush, region.close):
                try:
                    each()
                except pagemove.StoreError as error:
                    print(error.errno, "could not be made durable" in str(error))
            sys.stdout.flush()
            os._exit(0)
            """,
            path,
        )
        assert done.stdout.split() == ["True", *["9", "True"] * 3]

    def test_a_flush_under_way_does_not_keep_others_from_saving(self, file):
        """What it retries cannot be done in the region any more."""
        path = file(_NBYTES)
        program(
            f"""
            import pathlib, threading
            region = pagemove.region_of(array := pagemove.open_array(
                path, dtype="u8", mode="r+", store_timeout=50, writeback_interval=None,
                resident_limit=None,
            ))
            array += 1
            os.truncate(path, 0)
            codes = []
            def flush():
                try:
                    region.flush()
                except pagemove.StoreError as error:
                    codes.append((error.errno, "all changes are saved" in str(error)))
            thread = threading.Thread(target=flush)
            thread.start()
            def calls():
                tasks = pathlib.Path("/proc/self/task").iterdir()
                return sum((task / "comm").read_text() == "pagemove-calls\\n" for task in tasks)
            while not calls():
                time.sleep(0.001)
            os.closerange(3, 1000)
            assert lost(region)
            os.truncate(path, {_NBYTES})
            thread.join(20)
            assert codes == [(9, True)], codes
            assert not region.counters()["dirty"]
            """,
            path,
        )
        assert wrong_words(np.fromfile(path, np.uint64) - np.uint64(1)) is None

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("there", [False, True], ids=["absent", "resident"])
    def test_a_touch_is_a_signal_and_a_message(self, file, mode, there):
        path = file(_NBYTES)
        done = program(
            f"""
            a = pagemove.open_array(path, dtype="u8", mode={mode!r}, prefetch="off")
            print(int(a[0]))
            os.closerange(3, 1000)
            print(lost(pagemove.region_of(a)), flush=True)
            print(int(a[0 if {there} else 100_000]), flush=True)
            """,
            path,
            status=-11,
        )
        assert done.stdout.split() == [str(expected(_NBYTES)[0]), "True"]
        assert f"descriptors of paged memory over {path}" in done.stderr

    def test_a_touch_at_once_is_never_zeros(self, file):
        """Before it is noticed the region is as sound as ever."""
        path = file(_NBYTES)

        def touch(at: int) -> int:
            with FileStore(path) as store:
                region = PagedMemory(store, prefetch="off")
            array = region.asarray(np.uint64)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.closerange(10, 1000)
            os._exit(0 if array[at] == expected(_NBYTES)[at] else 1)

        for at in range(0, _NBYTES // 8, _NBYTES // 8 // 20):
            pid = os.fork()
            if not pid:
                touch(at)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (0, -11)

    def test_a_thread_that_waits_for_a_page_finds_out(self, file):
        path = file(_NBYTES)
        program(
            """
            import threading
            from pagemove.testing import Fault, FaultyStore
            store = FaultyStore(path, faults=[Fault("read", count=0, delay=20)])
            region = pagemove.PagedMemory(store, prefetch="off")
            word = ctypes.create_string_buffer(8)
            copy, address = ctypes.CDLL(None).memcpy, ctypes.c_void_p(region.address)
            threading.Thread(target=lambda: copy(word, address, 8)).start()
            while not region.counters()["faults"]:
                time.sleep(0.001)
            os.closerange(3, 1000)
            time.sleep(30)
            """,
            path,
            status=-11,
        )

    def test_a_region_in_a_helper_is_saved_too(self, tmp_path):
        done = program(
            """
            store = pagemove.stores.CompressedStore(1 << 20, path=path, block_size=65536)
            region = pagemove.PagedMemory(store, mode="r+", resident_limit="512KiB")
            a = region.asarray("u8")
            a[:] = np.arange(len(a))
            os.closerange(3, 1000)
            print(lost(region))
            try:
                region.flush()
            except pagemove.StoreError as error:
                print(error.errno)
            print(region.stats().dirty_nbytes, flush=True)
            os._exit(0)
            """,
            tmp_path / "store",
        )
        assert done.stdout.split() == ["True", "9", "0"]

    def test_a_number_that_is_used_again_is_left_alone(self, file, tmp_path):
        path, other = file(_NBYTES), tmp_path / "other"
        done = program(
            """
            store = pagemove.stores.FileStore(path, writable=True)
            region = pagemove.PagedMemory(store, mode="r+", resident_limit="512KiB")
            a = region.asarray("u8")
            a += 1
            os.closerange(3, 1000)
            mine = [os.open(sys.argv[2], os.O_RDWR | os.O_CREAT) for _ in range(40)]
            os.write(mine[0], b"mine")
            print(lost(region))
            for each in (region.flush, lambda: store.write(0, b"12345678")):
                try:
                    each()
                except pagemove.StoreError as error:
                    print(error.errno)
            del a
            region.close()
            store.close()
            pid = os.fork()
            if not pid:
                os._exit(sum(os.fstat(fd).st_size != 4 for fd in mine))
            print(os.waitpid(pid, 0)[1])
            print(sum(os.fstat(fd).st_size != 4 for fd in mine))
            """,
            path,
            other,
        )
        assert done.stdout.split() == ["True", "9", "9", "0", "0"]
        assert other.read_bytes() == b"mine"
        found = np.fromfile(path, np.uint64) - np.uint64(1)
        assert wrong_words(found) is None

    def test_a_store_says_so(self, file):
        def use(path: Path) -> list[int | None]:
            codes: list[int | None] = []
            with FileStore(path, writable=True) as store:
                os.close(store.fileno())
                for each in (
                    lambda: store.read_into(0, bytearray(8)),
                    lambda: store.write(0, b"12345678"),
                    store.flush,
                ):
                    with pytest.raises(StoreError) as caught:
                        each()
                    codes.append(caught.value.errno)
            return codes

        assert child(use, file(_NBYTES)) == [9, 9, 9]


class TestCoreDumps:
    @pytest.mark.parametrize("asked", [False, True])
    def test_the_region_is_in_them_only_if_that_is_asked_for(self, file, asked):
        done = program(
            """
            a = pagemove.open_array(path, dtype="u8")
            a[0]
            at = a.ctypes.data
            vma = next(v for v in pagemove.vmas() if v.start <= at < v.end)
            print("dd" in vma.flags)
            """,
            file(_NBYTES),
            PAGEMOVE_CORE_DUMPS="1" if asked else "0",
        )
        assert done.stdout.split() == [str(not asked)]
