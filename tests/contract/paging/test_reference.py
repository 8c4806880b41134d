"""Arrays that travel by reference: to processes of every kind, unchanged or not at all."""

from __future__ import annotations

import copy
import errno
import gc
import hashlib
import http.server
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

import pagemove
from pagemove import PagedMemory, StoreError, open_array, reference, region_of
from pagemove.stores import CallableStore, FileStore, FsspecStore
from support.children import newborn

NUMBERS = np.arange(60_000, dtype=np.int64).reshape(200, 300)
VIEWS = {
    "whole": lambda a: a,
    "reversed": lambda a: a[::-1, ::-2],
    "transposed": lambda a: a.T,
    "row": lambda a: a[7],
    "item": lambda a: a[7, 3:4],
    "strided": lambda a: a[3:90:5, 1::7],
    "other dtype": lambda a: a.view("i4")[:, ::3],
    "broadcast": lambda a: np.broadcast_to(a[3], (4, 300), subok=True),
    "no axes": lambda a: a[5, 5, ...],
}


@pytest.fixture
def path(tmp_path):
    np.save(tmp_path / "numbers.npy", NUMBERS)
    return tmp_path / "numbers.npy"


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest(), type(array).__name__


def code_of(error):
    return error.value.errno


class TestViews:
    @pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
    def test_is_the_same_elsewhere(self, path, view):
        array = view(open_array(path, resident_limit="1MiB"))
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            data = pickle.dumps(array, protocol)
            assert len(data) < 1024
            found = pickle.loads(data)
            expected = view(NUMBERS)
            assert (found.shape, found.dtype, found.strides) == (
                expected.shape, expected.dtype, array.strides,
            )  # fmt: skip
            assert type(found) is pagemove.PagedArray
            assert not found.flags.writeable
            assert (found == expected).all()

    def test_nothing_is_read(self, path):
        array = open_array(path)
        pickle.dumps(array[5:])
        assert region_of(array).stats().bytes_read == 0

    def test_equal_ones_share_a_region_and_it_goes_with_the_last(self, path):
        array = open_array(path, resident_limit="1MiB", block_size=4096)
        first, second = (pickle.loads(pickle.dumps(each)) for each in (array[:9], array[9:]))
        shared = region_of(first)
        assert region_of(second) is shared
        assert shared is not region_of(array)
        assert (shared.resident_limit, shared.block_size) == (1 << 20, 4096)
        assert region_of(reference(array).open(block_size=8192)) is not shared
        gone = weakref.ref(shared)
        del first, second, shared
        assert gone() is None
        assert len({reference(array[1:]), reference(array[1:]), reference(array[2:])}) == 2

    def test_a_budget_is_a_limit_elsewhere(self, path):
        array = open_array(path, resident_limit=pagemove.Budget("2MiB"))
        found = region_of(pickle.loads(pickle.dumps(array)))
        assert (found.budget, found.resident_limit) == (None, 2 << 20)

    def test_of_plain_arrays_of_a_region(self, path):
        with FileStore(path) as store, PagedMemory(store) as memory:
            array = memory.asarray(np.int64, offset=128)[100:]
            assert (reference(array).open() == NUMBERS.reshape(-1)[100:]).all()
            del array

    def test_a_deep_copy_is_a_copy(self, path):
        array = open_array(path)
        for made in (copy.copy(array), copy.deepcopy(array)):
            assert type(made) is np.ndarray
            assert made.flags.writeable
            assert (made == NUMBERS).all()

    def test_a_large_region(self, tmp_path):
        with (tmp_path / "big").open("wb") as file:
            file.truncate(100 << 30)
        array = open_array(tmp_path / "big", dtype="f8", resident_limit="1MiB")
        assert len(pickle.dumps(array[1 << 20 :: 3])) < 1024


class TestOtherProcesses:
    @pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
    def test_of_multiprocessing(self, path, method):
        found = newborn(_from_a_pool, str(path), method)
        assert found == [
            (digest(NUMBERS[:100])[0], "PagedArray"),
            (digest(NUMBERS[100:])[0], "PagedArray"),
        ]

    def test_a_store_in_a_process_of_its_own(self):
        assert newborn(_of_a_function) == [49, 49]

    def test_a_forked_child_opens_its_own(self, path):
        array = open_array(path)
        here = reference(array).open()
        data = pickle.dumps(array)
        child = os.fork()
        if not child:
            os._exit(0 if (pickle.loads(data) == NUMBERS).all() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert (here == NUMBERS).all()


def _from_a_pool(path, method):
    array = open_array(path, resident_limit="1MiB")
    with multiprocessing.get_context(method).Pool(1) as pool:
        return pool.map(digest, [array[:100], array[100:]])


def _of_a_function():
    array = open_array(CallableStore(_squares, 80_000), dtype="i8")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return [int(pickle.loads(pickle.dumps(array[5:]))[2]), pool.apply(_item, (array[5:], 2))]


def _squares(offset, size):
    words = np.arange(offset // 8, (offset + size + 7) // 8) ** 2
    return words.tobytes()[offset % 8 :][:size]


def _item(array, index):
    return int(array[index])


class TestChanges:
    def test_are_flushed_first(self, path):
        array = open_array(path, mode="r+")
        array[0] = 7
        found = pickle.loads(pickle.dumps(array))
        assert (found[0] == 7).all()
        assert not found.flags.writeable
        assert np.load(path)[0, 0] == 7

    def test_one_writes_at_a_time(self, path):
        array = open_array(path, mode="r+")
        refers = reference(array)
        with pytest.raises(BlockingIOError, match="writ"):
            refers.open(mode="r+")
        del array
        found = refers.open(mode="r+")
        found[1] = 8
        found.flush()
        assert np.load(path)[1, 5] == 8

    @pytest.mark.parametrize("change", ["write", "grow", "replace"])
    def test_of_the_file_are_an_error_and_not_other_data(self, path, change):
        array = open_array(path)
        data = pickle.dumps(array)
        if change == "replace":
            np.save(path.with_name("other.npy"), NUMBERS + 1)
            os.replace(path.with_name("other.npy"), path)
        else:
            with path.open("r+b") as file:
                file.seek(0 if change == "grow" else -500, os.SEEK_END)
                file.write(b"changed")
            os.utime(path, ns=(1, 1))
        with pytest.raises(StoreError, match=r"changed since|another file|written to") as error:
            pickle.loads(data)
        assert code_of(error) == errno.ESTALE
        with pytest.raises(StoreError, match="open it again") as error:
            reference(array)
        assert code_of(error) == errno.ESTALE
        del error
        gc.collect()

    def test_of_a_file_that_is_open_here_too(self, path):
        refers = reference(open_array(path))
        first = refers.open()
        first[0, 0].item()
        with path.open("r+b") as file:
            file.seek(-500, os.SEEK_END)
            file.write(b"changed")
        os.utime(path, ns=(1, 1))
        with pytest.raises(StoreError, match="written to") as error:
            refers.open()
        assert code_of(error) == errno.ESTALE
        del error
        gc.collect()

    def test_private_ones_are_refused_unless_a_copy_is_asked_for(self, path):
        array = open_array(path, mode="c", resident_limit="1MiB")
        array[3] = 5
        for refused in (reference, pickle.dumps):
            with pytest.raises(ValueError, match="copy=True"):
                refused(array)
        found = pickle.loads(pickle.dumps(reference(array, copy=True))).open()
        assert type(found) is np.ndarray
        assert (found[3] == 5).all()
        assert (found[4] == NUMBERS[4]).all()

    @pytest.mark.needs("zstandard")
    def test_compressed_memory_is_refused(self):
        assert "no other can read" in newborn(_refusal)


def _refusal():
    with pytest.raises(ValueError, match="copy=True") as error:
        reference(PagedMemory(nbytes=1 << 20).asarray("u1"))
    return str(error.value)


class TestSecrets:
    def test_are_left_out_and_what_is_missing_is_said(self):
        content = bytes(range(256)) * 300

        class Guarded(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_HEAD(self):
                self.do_GET(body=False)

            def do_GET(self, *, body=True):
                if "sig=s3cr3t" not in self.path:
                    self.send_error(403)
                    return
                first, last, status = 0, len(content) - 1, 200
                if self.headers.get("Range"):
                    ends = self.headers["Range"].removeprefix("bytes=").split("-")
                    first, last, status = int(ends[0]), min(int(ends[1] or last), last), 206
                self.send_response(status)
                self.send_header("ETag", '"one"')
                self.send_header("Accept-Ranges", "bytes")
                if status == 206:
                    self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
                self.send_header("Content-Length", str(last + 1 - first))
                self.end_headers()
                if body:
                    self.wfile.write(content[first : last + 1])

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Guarded)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/x?sig=s3cr3t"
        try:
            newborn(_signed, url)
        finally:
            server.shutdown()
            server.server_close()

    @pytest.mark.parametrize(
        ("url", "without", "names"),
        [
            ("s3://bucket/key", "s3://bucket/key", ()),
            ("redis://u:p%40w@host:1/0", "redis://host:1/0", ("user and password",)),
            ("https://h/x?v=3", "https://h/x?v=3", ()),
            ("https://h/x?v=3&X-Amz-Signature=abc", "https://h/x", ("query",)),
            ("zip://a.npy::https://u:p@h/x", "zip://a.npy::https://h/x", ("user and password",)),
        ],
    )
    def test_of_urls(self, url, without, names):
        from pagemove.stores.urls import portable

        assert portable(url) == (without, names)

    def test_of_options(self):
        from pagemove.stores.links import portable_options

        given = {
            "anon": False, "key": "k", "secret": "s", "client": object(),
            "client_kwargs": {"region_name": "r", "aws_session_token": "t"},
            "proxy": "http://me:pass@proxy:3128", "headers": [("Authorization", "Bearer x")],
            "pair": ["X-Token", "x"], "pages": [1, 2],
        }  # fmt: skip
        kept, left_out = portable_options(given)
        assert kept == {"anon": False, "client_kwargs": {"region_name": "r"}, "pages": [1, 2]}
        names = ["key", "secret", "client", "client_kwargs.aws_session_token", "proxy", "headers"]
        assert set(left_out) == {*names, "pair"}


def _signed(url):
    array = open_array(url, dtype="u1", storage_options={"timeout": 2.0})
    data = pickle.dumps(array)
    assert b"s3cr3t" not in data
    assert len(data) < 1024
    with pytest.raises(OSError, match="cannot open") as error:
        pickle.loads(data)
    assert "does not have what may be secret (query)" in "".join(error.value.__notes__)
    assert "s3cr3t" not in repr(reference(array))


class TestReferences:
    def test_of_what_is_not_paged(self):
        with pytest.raises(ValueError, match="not in paged memory"):
            reference(np.arange(5))
        found = reference(np.arange(5), copy=True)
        assert pickle.loads(pickle.dumps(found)).open().tolist() == [0, 1, 2, 3, 4]

    def test_memory_of_fsspec_is_of_this_process(self):
        newborn(_in_memory)

    def test_a_program_that_knows_nothing_of_it(self, path, tmp_path):
        (tmp_path / "data").write_bytes(pickle.dumps(open_array(path)[5]))
        code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).sum())"
        found = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "data"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert int(found.stdout) == NUMBERS[5].sum()


def _in_memory():
    import fsspec

    with fsspec.open("memory://reference-test", "wb") as file:
        file.write(bytes(100))
    with pytest.raises(ValueError, match="copy=True"):
        reference(open_array(FsspecStore("memory://reference-test"), dtype="u1"))
