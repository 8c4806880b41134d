"""Compressed memory in this process: contents, what it takes, and what happens where it is full."""

from __future__ import annotations

import contextlib
import errno
import json
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pagemove import PAGE_SIZE, PagedMemory, StoreError
from pagemove._native import pager
from support import fresh_interpreter
from support.descriptors import files_in
from support.paging import Words, noise

pytestmark = [
    pytest.mark.needs("paging"),
    pytest.mark.skipif(pager.codec() is None, reason="no liblz4.so.1 nor libzstd.so.1"),
]

MIB = 1 << 20
_BLOCK = 65536


def _kinds(nbytes: int) -> dict[str, Words]:
    """Contents of every kind that is kept in another way."""
    random = np.random.default_rng(1)
    words = {
        "zeros": np.zeros(nbytes // 8),
        "one value": np.full(nbytes // 8, 1.1),
        "64-bit numbers": np.arange(nbytes // 8),
        "32-bit numbers": random.integers(0, 1000, nbytes // 4, dtype=np.int32),
        "bytes": np.resize(np.frombuffer(Path(__file__).read_bytes(), np.uint8), nbytes),
        "noise": noise(nbytes),
    }
    return {name: np.ascontiguousarray(each).view(np.uint64) for name, each in words.items()}


def _kept(region: PagedMemory) -> dict[str, float]:
    return dict(region.stats().store)


@pytest.mark.parametrize("block", [PAGE_SIZE, _BLOCK, 2 * MIB])
def test_every_kind_of_contents_comes_back(block):
    kinds = _kinds(4 * block)
    nbytes = len(kinds) * 4 * block - 24  # the last block is not whole
    everything = np.concatenate(list(kinds.values()))[: nbytes // 8]
    with PagedMemory(nbytes=nbytes, resident_limit=4 * block, block_size=block) as region:
        words = region.asarray("u8")
        words[:] = everything
        region.evict()
        kept = _kept(region)
        assert (words == everything).all()
        words[::1001] += np.uint64(1)
        region.evict()
        everything[::1001] += np.uint64(1)
        assert (words == everything).all()
        del words
    assert kept["blocks"] == 20  # zeros take nothing
    assert kept["same_value_blocks"] == 4
    assert kept["compressed_blocks"] == 12
    assert kept["incompressible_blocks"] == 4
    assert kept["stored_nbytes"] < kept["memory_nbytes"] < 12 * block + MIB


def test_what_is_one_value_is_stored_to_without_a_second_fault():
    with PagedMemory(nbytes=64 * _BLOCK, resident_limit=16 * _BLOCK, block_size=_BLOCK) as region:
        words = region.asarray("u8")
        words[:] = 7
        region.evict()
        for first in range(0, 64 * _BLOCK // 8, _BLOCK // 8):
            block = words[first : first + _BLOCK // 8]
            assert (block == 7).all()
            block += np.uint64(first)
        assert region.stats().write_faults == 0
        expected = np.repeat(np.arange(64, dtype="u8") * (_BLOCK // 8) + 7, _BLOCK // 8)
        assert (words == expected).all()
        del block, words


def test_numbers_are_put_together_by_their_bytes():
    """Without that LZ4 halves integers that count up, at most."""
    with PagedMemory(nbytes=4 * MIB, resident_limit=MIB) as region:
        words = region.asarray("i8")
        words[:] = np.arange(words.size)
        region.evict()
        assert _kept(region)["ratio"] > 20
        del words


def test_memory_is_returned_when_blocks_shrink():
    with PagedMemory(nbytes=16 * MIB, resident_limit=MIB) as region:
        words = region.asarray("u8")
        words[:] = noise(16 * MIB)
        region.evict()
        before = _kept(region)
        words[MIB // 8 :] = 5
        region.evict()
        after = _kept(region)
        resident = _rss()
        words[:] = 0
        region.evict()
        freed = resident - _rss()
        assert (words == 0).all()
        del words
    assert before["memory_nbytes"] >= 16 * MIB
    assert after["incompressible_blocks"] == 16
    assert MIB <= after["memory_nbytes"] <= MIB + 2 * 4 * _BLOCK
    assert freed > MIB // 2


def _rss() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) << 10


def test_little_is_lost_between_blocks_of_all_sizes():
    """Blocks that change their size all the time leave gaps, which are closed."""
    random = np.random.default_rng(5)
    with PagedMemory(nbytes=32 * MIB, resident_limit=MIB) as region:
        blocks = region.asarray("u8").reshape(-1, _BLOCK // 8)
        shadow = np.zeros_like(blocks)
        for turn in range(3 * len(blocks)):
            number = random.integers(len(blocks))
            noisy = random.integers(0, 7 * _BLOCK // 64)
            shadow[number] = turn
            shadow[number, :noisy] = random.integers(0, 2**64, noisy, np.uint64)
            blocks[number] = shadow[number]
        region.evict()
        kept = _kept(region)
        assert (blocks == shadow).all()
        del blocks
    assert kept["stored_nbytes"] > 8 * MIB
    assert kept["memory_nbytes"] < 1.1 * kept["stored_nbytes"] + 4 * MIB


def test_a_full_store_says_so_and_goes_on_when_something_is_freed():
    content = noise(4 * MIB)
    with PagedMemory(
        nbytes=8 * MIB, resident_limit=9 * MIB, store_limit="2MiB", store_timeout=0.2
    ) as region:
        # No touch needs another block to leave: where one cannot, that is a signal (the next test).
        words = region.asarray("u8")
        words[: 4 * MIB // 8] = content
        with pytest.raises(StoreError, match=r"(?s)store_limit is full.*spill=") as caught:
            region.evict()
        assert caught.value.errno == errno.ENOSPC
        kept = _kept(region)
        assert kept["memory_nbytes"] <= 2 * MIB
        assert region.stats().dirty_nbytes > MIB
        assert (words[: 4 * MIB // 8] == content).all()
        words[: 2 * MIB // 8] = 0
        # First what frees, for what has no room is not tried for long.
        region.evict(0, 2 * MIB)
        region.evict()
        assert region.stats().dirty_nbytes == 0
        assert (words[2 * MIB // 8 : 4 * MIB // 8] == content[2 * MIB // 8 :]).all()
        assert not words[: 2 * MIB // 8].any()
        del words


def test_a_thread_that_needs_room_in_a_full_store_gets_a_signal_and_a_reason():
    program = """if True:
        import warnings
        import numpy as np, pagemove
        warnings.simplefilter("ignore", pagemove.KernelFaultsWarning)
        region = pagemove.PagedMemory(
            nbytes=8 << 20, resident_limit="1MiB", store_limit="1MiB", store_timeout=0.2
        )
        region.asarray("u8")[:] = np.random.default_rng(0).integers(0, 2**64, 1 << 20, "u8")
        """
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGBUS, done.stderr
    assert "store_limit is full" in done.stderr
    assert "raise store_limit, name a directory with spill=" in done.stderr


@contextlib.contextmanager
def _files_of_at_most(nbytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestSpill:
    def test_what_does_not_shrink_goes_to_the_file(self, tmp_path):
        content = noise(4 * MIB)
        with PagedMemory(
            nbytes=8 * MIB, resident_limit=MIB, store_limit=MIB, spill=tmp_path
        ) as region:
            words = region.asarray("u8")
            words[: content.size] = content
            words[content.size :] = np.arange(content.size)
            region.evict()
            kept = _kept(region)
            assert not list(tmp_path.iterdir())
            assert (words[: content.size] == content).all()
            assert (words[content.size :] == np.arange(content.size)).all()
            words[: content.size] = 1
            region.evict()
            again = _kept(region)
            assert (words[: content.size] == 1).all()
            del words
        assert kept["spilled_blocks"] == 64
        assert kept["spilled_nbytes"] == 4 * MIB
        assert kept["incompressible_blocks"] == 0
        assert kept["memory_nbytes"] <= MIB
        assert (again["spilled_blocks"], again["same_value_blocks"]) == (0, 64)

    def test_what_has_changed_there_is_an_error(self, tmp_path):
        """The file has no name, but a device may change it."""
        with PagedMemory(nbytes=8 * MIB, resident_limit=MIB, spill=tmp_path) as region:
            words = region.asarray("u8")
            words[:] = noise(region.nbytes)
            region.evict()
            block = noise(region.nbytes).tobytes()[3 * _BLOCK : 4 * _BLOCK]
            (spilled,) = files_in(tmp_path).values()
            with spilled.open("r+b") as file:
                place = file.read().index(block)
                file.seek(place + 1000)
                file.write(bytes([~block[1000] & 0xFF]))
            with pytest.raises(StoreError, match="the block has changed in the unnamed file"):
                region.prefetch(3 * _BLOCK, _BLOCK, wait=True)
            assert (words[: 3 * _BLOCK // 8] == noise(region.nbytes)[: 3 * _BLOCK // 8]).all()
            del words

    def test_so_does_what_has_no_room(self, tmp_path):
        half = np.where(np.arange(MIB) % 2, noise(8 * MIB), 0).astype(np.uint64)
        with PagedMemory(
            nbytes=8 * MIB, resident_limit=MIB, store_limit=MIB, spill=tmp_path
        ) as region:
            words = region.asarray("u8")
            words[:] = half
            region.evict()
            kept = _kept(region)
            assert (words == half).all()
            del words
        assert kept["compressed_blocks"] > 0
        assert kept["spilled_blocks"] > 64
        assert kept["memory_nbytes"] <= MIB

    def test_what_the_file_does_not_take_stays_in_memory(self, tmp_path):
        content = noise(4 * MIB)
        with (
            PagedMemory(nbytes=4 * MIB, resident_limit=MIB, spill=tmp_path) as region,
            _files_of_at_most(MIB),
        ):
            words = region.asarray("u8")
            words[:] = content
            region.evict()
            kept = _kept(region)
            assert (words == content).all()
            del words
        assert (kept["spilled_blocks"], kept["incompressible_blocks"]) == (16, 48)

    def test_if_neither_takes_it_both_are_named(self, tmp_path):
        with (
            PagedMemory(
                nbytes=4 * MIB,
                resident_limit=4 * MIB,
                store_limit=MIB,
                store_timeout=0.2,
                spill=tmp_path,
            ) as region,
            _files_of_at_most(MIB),
        ):
            words = region.asarray("u8")
            words[:] = content = noise(4 * MIB)
            with pytest.raises(StoreError, match="store_limit is full") as caught:
                region.evict()
            assert f"{tmp_path} (spill) takes none: File too large" in str(caught.value)
            assert (words == content).all()
            del words

    def test_a_directory_that_is_none(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            PagedMemory(nbytes=MIB, spill=tmp_path / "none")
        (tmp_path / "file").touch()
        with pytest.raises(NotADirectoryError, match="spill must be a directory"):
            PagedMemory(nbytes=MIB, spill=tmp_path / "file")


def test_many_threads_store_at_once():
    with PagedMemory(nbytes=16 * MIB, resident_limit=2 * MIB, block_size=16384) as region:
        parts = np.array_split(region.asarray("u8"), 4)
        wrong = []

        def work(number: int) -> None:
            part, random = parts[number], np.random.default_rng(number)
            shadow = part.copy()
            for _ in range(60):
                first = random.integers(part.size - 20_000)
                step = random.integers(0, 3, 20_000, np.uint64) << np.uint64(random.integers(60))
                part[first : first + 20_000] += step
                shadow[first : first + 20_000] += step
            if not (part == shadow).all():
                wrong.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        parts.clear()
        assert region.stats().errors == 0
    assert not wrong


def test_nothing_is_left_after_close():
    def use() -> None:
        with PagedMemory(nbytes=16 * MIB, resident_limit=MIB) as region:
            words = region.asarray("u8")
            words[:] = noise(16 * MIB)
            del words

    use()
    before = _rss()
    for _ in range(3):
        use()
    # Three times what was stored would be 45 MiB.
    assert _rss() - before < 20 * MIB


def test_close_compresses_nothing_that_nobody_will_read():
    # If it did, it would be refused.
    region = PagedMemory(nbytes=4 * MIB, resident_limit="unlimited", store_limit=1)
    region.asarray("u8")[:] = noise(4 * MIB)
    assert region.stats().dirty_nbytes == 4 * MIB
    region.close()
    assert region.closed


def test_private_changes_are_not_kept_there():
    with PagedMemory(nbytes=2 * MIB, resident_limit=MIB, mode="c") as region:
        words = region.asarray("u8")
        words[:] = np.arange(words.size)
        assert (words == np.arange(words.size)).all()
        assert _kept(region)["blocks"] == 0
        del words


def test_the_limits_are_checked():
    with pytest.raises(ValueError, match="store_limit must be a positive"):
        PagedMemory(nbytes=MIB, store_limit=0)
    with pytest.raises(ValueError, match="store_limit 'much' is not a number of bytes"):
        PagedMemory(nbytes=MIB, store_limit="much")


def test_a_store_has_neither(file):
    from pagemove.stores import FileStore

    without = "store_limit and spill are for a region without a store"
    with FileStore(file(MIB)) as store, pytest.raises(TypeError, match=without):
        PagedMemory(store, store_limit=MIB)


_PROGRAM = """
import json
import numpy as np, pagemove, warnings
warnings.simplefilter("ignore", pagemove.KernelFaultsWarning)
with pagemove.PagedMemory(nbytes=1 << 20, resident_limit="256KiB") as region:
    a = region.asarray("i8")
    a[:] = np.arange(a.size)
    a[-8192:] = np.random.default_rng(0).integers(0, 2**62, 8192)
    a += 1
    region.evict()
    right = int(a[:-8192].sum()) == (a.size - 8192) * (a.size - 8191) // 2
    del a
    print(json.dumps([right, type(region.store).__name__, pagemove.features().compression,
                      region.stats().store["ratio"]]))
"""


@pytest.mark.parametrize("codec", ["lz4", "zstd", "none"])
def test_the_library_is_chosen_at_run_time(codec, monkeypatch):
    """Without any a helper keeps the blocks."""
    if codec == "none":
        pytest.importorskip("zstandard")
    monkeypatch.setenv("PAGEMOVE_CODEC", codec)
    right, store, name, ratio = json.loads(fresh_interpreter(_PROGRAM))
    assert right
    assert ratio > 5
    if codec == "none":
        assert (store, name) == ("CompressedStore", "")
    else:
        assert store == "CompressedMemory"
        assert name.lower().startswith(codec)
