"""paging/memmap.py: numpy.memmap's own tests, and what NumPy does not test of it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import numpy._core.tests.test_memmap as numpys
import pytest

import pagemove
from pagemove.stores import FileStore

pytestmark = pytest.mark.needs("paging")


class TestAsNumPyTestsIt(numpys.TestMemmap):
    @pytest.fixture(autouse=True)
    def ours(self, monkeypatch):
        monkeypatch.setattr(numpys, "memmap", pagemove.memmap)

    def test_view(self):
        """But for its last line: under this array there is another one, and no mmap object."""
        array = pagemove.memmap(self.tmpfp, dtype=self.dtype, shape=self.shape)
        once = array.view()
        assert once.base is array
        assert once.view().base is array
        assert type(np.asarray(array)) is np.ndarray
        assert np.shares_memory(np.asarray(array), array)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    np.arange(1000, dtype="<i4").tofile(path)
    return path


ARGUMENTS = [
    {"mode": "r"},
    {"mode": "readonly", "dtype": "<i4"},
    {"mode": "c", "dtype": "<i4", "offset": 8, "shape": 5},
    {"mode": "copyonwrite", "dtype": "<i4", "offset": 2, "shape": (3, 4)},
    {"mode": "r+", "dtype": "<i4", "shape": (10, 100), "order": "F"},
    {"mode": "readwrite", "dtype": "<i4", "shape": [2, 3, 4], "order": "F"},
    {"mode": "r+", "dtype": "<i4", "shape": (4, 5), "order": None},
    {"mode": "r+", "dtype": "<i4", "shape": (4, 5), "order": "f"},
    {"mode": "r", "dtype": "<i4", "shape": (4, 5), "order": "c"},
    {"mode": "r+", "dtype": "<i4", "shape": 1500},
    {"mode": "r+", "dtype": "<i4", "shape": (10,), "offset": 5000},
    {"mode": "w+", "dtype": "<f8", "shape": (7, 9)},
    {"mode": "write", "dtype": "<f8", "shape": np.array([7, 9])},
    {"mode": "r", "dtype": "<i4", "shape": ()},
    {"mode": "r", "dtype": "<i4", "shape": (0, 3)},
    {"mode": "r", "dtype": [("a", "<i2"), ("b", "S2")]},
    {"mode": "r", "dtype": ("<i2", (2, 5)), "shape": (3,)},
    {"mode": "r", "dtype": ">i4"},
    {"mode": "r", "dtype": [("a", "i1"), ("b", ">f8")], "offset": 3, "shape": (4,)},
    {"mode": "r+", "dtype": np.dtype([("a", "i1"), ("b", "<f8")], align=True), "shape": 7},
    {"mode": "r", "dtype": "V0", "shape": 5},
    {"mode": "r", "dtype": None},
    {"mode": "w+", "shape": 0},
    {"mode": "w+", "shape": (), "offset": 100},
    {"mode": "r", "offset": 4000},
]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
@pytest.mark.parametrize("named", [str, Path, open], ids=["str", "Path", "file"])
def test_the_same_as_numpy(path, named, arguments):
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    if named is open:
        with path.open("r+b") as ours, other.open("r+b") as numpys:
            mine, theirs = pagemove.memmap(ours, **arguments), np.memmap(numpys, **arguments)
    else:
        mine = pagemove.memmap(named(path), **arguments)
        theirs = np.memmap(named(other), **arguments)
    assert isinstance(mine, pagemove.PagedArray)
    assert (mine.dtype, mine.shape, mine.strides) == (theirs.dtype, theirs.shape, theirs.strides)
    assert mine.flags.writeable == theirs.flags.writeable
    assert mine.tobytes("A") == theirs.tobytes("A")
    assert (mine.mode, mine.offset) == (theirs.mode, theirs.offset)
    assert Path(mine.filename) == path
    assert Path(theirs.filename) == other
    assert type(mine.filename) is type(theirs.filename)
    if mine.flags.writeable and mine.size:
        mine.flat[-1] = theirs.flat[-1] = np.zeros(1, mine.dtype)[0]
        mine.flush()
        theirs.flush()
    if mine.mode == "c":
        assert path.read_bytes() == np.arange(1000, dtype="<i4").tobytes()
    assert path.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("shape", "found"), [(-1, (1000,)), ((-1, 10), (100, 10)), ((4, -1, 5), (4, 50, 5))]
)
def test_a_length_that_follows_from_the_file(path, shape, found):
    array = pagemove.memmap(path, dtype="<i4", mode="r", shape=shape)
    assert array.shape == found
    assert int(array.sum()) == sum(range(1000))


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"mode": "x"}, ValueError, "mode must be one of"),
        ({"mode": "w+"}, ValueError, "shape must be given"),
        ({"mode": "w+", "shape": (-1, 2)}, ValueError, "no length of it -1"),
        ({"order": "A"}, ValueError, "order must be 'C' or 'F', not 'A'.*: pass 'C'"),
        ({"order": "k"}, ValueError, "order must be 'C' or 'F', not 'k'.*: pass 'C'"),
        ({"offset": 5000}, ValueError, "ends 1000 bytes before its offset, which needs a shape"),
        ({"dtype": np.dtypes.StringDType(), "shape": 3}, TypeError, "holds Python objects"),
        ({"offset": -1}, ValueError, "must not be negative"),
        ({"shape": (-1, -1)}, ValueError, "has negative lengths"),
        ({"shape": -2}, ValueError, "has negative lengths"),
        ({"shape": (-1, 7)}, ValueError, "not a multiple of the 7"),
        ({"dtype": "S3"}, ValueError, "not a multiple of the 3"),
        ({"dtype": object}, TypeError, "holds Python objects"),
        ({"mode": "r", "shape": 5000}, ValueError, "only modes 'r\\+' and 'w\\+' extend"),
        ({"mode": "c", "offset": 5000}, ValueError, "not a multiple|needs"),
        ({"shape": (2**40, 2**40)}, ValueError, "too large"),
        ({"shape": 2.5}, TypeError, "float"),
    ],
)
def test_what_cannot_be_leaves_the_file_as_it_is(path, arguments, error, says):
    before = path.read_bytes()
    with pytest.raises(error, match=says):
        pagemove.memmap(path, **arguments)
    assert path.read_bytes() == before


def test_no_path_and_no_file():
    with pytest.raises(TypeError, match="must be a path or an open file, not int"):
        pagemove.memmap(5)


def test_a_file_that_was_opened_for_reading(path):
    with path.open("rb") as file:
        assert int(pagemove.memmap(file, dtype="<i4", mode="r")[-1]) == 999
        with pytest.raises(PermissionError, match="was not opened for reading and writing"):
            pagemove.memmap(file, mode="r+")


def test_what_is_buffered_counts():
    with tempfile.TemporaryFile() as file:
        file.write(b"0123456789")
        array = pagemove.memmap(file, mode="r+")
        array[3] = ord("x")
        array.flush()
        assert array.filename is None
        assert os.pread(file.fileno(), 20, 0) == b"012x456789"


def test_a_file_that_somebody_writes_is_not_emptied(path):
    before = path.read_bytes()
    writer = pagemove.memmap(path, dtype="<i4", mode="r+")
    for mode, shape in (("w+", 10), ("r+", 2000)):
        with pytest.raises(BlockingIOError, match="lock=False"):
            pagemove.memmap(path, dtype="<i4", mode=mode, shape=shape)
        assert path.read_bytes() == before
    other = pagemove.memmap(path, dtype="<i4", mode="r+", lock=False)
    other[7] = -1
    other.flush()
    assert np.fromfile(path, "<i4")[7] == -1
    del writer


def test_a_new_file_is_sparse_and_paged_under_its_limit(tmp_path):
    path = tmp_path / "large"
    array = pagemove.memmap(path, dtype="<u8", mode="w+", shape=1 << 30, resident_limit="1MiB")
    assert path.stat().st_blocks * 512 < 1 << 20
    for start in range(0, 1 << 30, 1 << 26):
        array[start] = start
    assert array.region.stats().resident_nbytes <= 1 << 20
    array.flush()
    assert [int(each) for each in array[:: 1 << 26]] == list(range(0, 1 << 30, 1 << 26))
    assert path.stat().st_blocks * 512 < 16 << 20


def test_attributes_of_what_open_array_gives(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.arange(10.0))
    array = pagemove.open_array(path)
    assert (array.filename, array.offset, array.mode) == (path, 128, "r")
    assert array[2:].filename == path
    copied = array.view(pagemove.PagedArray)[[1, 2]]
    assert type(copied) is np.ndarray
    lone = np.ones(3).view(pagemove.PagedArray)
    assert (lone.filename, lone.offset, lone.mode, lone.region) == (None, None, None, None)
    lone.flush()
    lone.prefetch(wait=True)
    with FileStore(path) as store, pagemove.PagedMemory(store) as region:
        assert region.asarray("u1").view(pagemove.PagedArray).mode is None


@pytest.mark.parametrize(
    "compute",
    [
        lambda a: np.dot(a, a.T),
        lambda a: a.dot(a.T),
        lambda a: a.repeat(2),
        lambda a: a.argsort(),
        lambda a: a.argpartition(2),
        lambda a: a.argmin(axis=0),
        lambda a: a.argmax(axis=1),
        lambda a: a.byteswap(),
        lambda a: a.compress([True, False, True], axis=0),
        lambda a: a.view("i8").choose(np.arange(12)[:, None, None], mode="clip"),
        lambda a: a.reshape(-1, order="F"),
        lambda a: a.T.reshape(-1),
        lambda a: a.T.reshape((6, 2)),
        lambda a: np.repeat(a, 2, axis=0),
        lambda a: np.tile(a, 2),
        lambda a: a.ravel("F"),
        np.zeros_like,
        np.empty_like,
        np.sort,
        np.cumsum,
        lambda a: np.concatenate([a, a]),
        lambda a: np.where(a > 3, a, 0),
        lambda a: np.median(a, axis=0),
        lambda a: a @ a.T,
        lambda a: a.sum(axis=0),
        lambda a: np.flip(a) + 1,
    ],
)
def test_what_is_computed_is_plain(tmp_path, compute):
    plain = np.arange(12.0).reshape(3, 4)
    np.save(tmp_path / "x.npy", plain)
    array = pagemove.open_array(tmp_path / "x.npy")
    found = compute(array)
    assert type(found) is np.ndarray
    expected = compute(plain)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    if compute is not np.empty_like:
        assert np.array_equal(found, expected)


def test_views_are_not(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(12.0).reshape(3, 4))
    array = pagemove.open_array(tmp_path / "x.npy")
    for view in (
        array.ravel(),
        np.transpose(array),
        np.reshape(array, -1),
        np.flip(array),
        array.reshape(2, 6),
        array.T.reshape((4, 3), order="F"),
    ):
        assert type(view) is pagemove.PagedArray
        assert view.region is array.region


def test_prefetch_reads_the_blocks_of_a_view(tmp_path):
    path = tmp_path / "file"
    np.arange(1 << 20, dtype="u1").tofile(path)
    array = pagemove.memmap(path, mode="r", block_size="4KiB", shape=(256, 4096), prefetch="off")
    array[::64, :8].prefetch(wait=True)
    assert array.region.stats().prefetched == 4
    array[5:7].prefetch(wait=True)
    assert array.region.stats().prefetched == 6
    array[:0].prefetch(wait=True)
    assert array.region.stats().prefetched == 6


def test_dump_to_its_own_file_is_refused(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.arange(10))
    array = pagemove.open_array(path)
    with pytest.raises(ValueError, match="the file that the array is read from"):
        array.dump(path)
    assert np.load(path).tolist() == array.tolist() == list(range(10))


@pytest.mark.parametrize(
    ("mode", "limit", "block"),
    [
        ("w+", "96MiB", 2 << 20),
        ("w+", "16MiB", 256 << 10),
        ("w+", "1MiB", 65536),
        ("r+", "96MiB", 65536),
    ],
)
def test_the_blocks_of_a_new_file_suit_writing_in_order(tmp_path, mode, limit, block):
    path, items = tmp_path / "x", 100 << 20
    with path.open("wb") as file:
        file.truncate(items)
    array = pagemove.memmap(path, mode=mode, shape=items, resident_limit=limit)
    assert array.region.block_size == block
    array[-1] = 7
    array.close()
    assert int(np.memmap(path, mode="r")[-1]) == 7


def test_an_unknown_keyword():
    with pytest.raises(TypeError, match=r"memmap\(\) has no keyword 'block_sise'.*'block_size'"):
        pagemove.memmap("x", block_sise=4096)


def test_an_unknown_keyword_of_a_reference(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(10))
    array = pagemove.open_array(tmp_path / "x.npy")
    for reference in (pagemove.reference(array), pagemove.reference(array, copy=True)):
        with pytest.raises(
            TypeError, match=r"Reference.open\(\) has no .*'resident_limt'; did you"
        ):
            reference.open(resident_limt=1 << 20)


def test_an_unknown_option_of_a_hand_over():
    with pytest.raises(
        TypeError, match=r"storage_options of pagemove.* has no 'backin'; did .*ing'"
    ):
        pagemove.open_array("pagemove+unix:///no/where", storage_options={"backin": "memory"})
