"""record() and replay: the order of first touches is kept, and read ahead the next time."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pagemove import PagedMemory
from pagemove.stores import FileStore
from support import child, wait_for
from support.helpers import numbered, reined, touch

pytestmark = pytest.mark.needs("paging", "fork")

K = 1024
B = 16 * K
COUNT = 256
#: Scattered, in no order, next to none of the others, and the last one of all.
ORDER = [*random.Random(7).sample(range(0, COUNT - 1, 3), 40), COUNT - 1]
OFFSETS = [B * number for number in ORDER]


def _made(folder: Path, kind: str, **how: Any) -> tuple[Any, Any]:
    """Make the store, and what has the file and the reins."""
    store = reined(folder, numbered(COUNT * B), concurrency=1)
    return (FileStore(store._path) if kind == "file" else store), store


def _record(folder: Path, kind: str) -> Path:
    path = folder / "order.npy"
    source, _ = _made(folder, kind)
    with PagedMemory(source, block_size=B, prefetch="off", resident_limit=8 * B) as region:
        touch(region.address + 5 * 3 * B + B)  # before it is asked to
        region.record(path)
        for offset in OFFSETS:
            touch(region.address + offset + 100)
            # Only the first touch counts, also of what has left since.
            touch(region.address + OFFSETS[0])
        assert not path.exists()
    return path


def _recorded(folder: Path, kind: str) -> list[int]:
    return [int(offset) for offset in np.load(_record(folder, kind))]


@pytest.mark.parametrize("kind", ["file", "helper"])
def test_the_order_of_first_touches_is_recorded(tmp_path, kind):
    assert child(_recorded, tmp_path, kind, deadline=60) == OFFSETS


def _replayed(folder: Path, kind: str, block: int, limit: int | None) -> dict[str, Any]:
    path = _record(folder, kind)
    source, reins = _made(folder, kind)
    reins = reins.reins
    peak = 0
    with PagedMemory(
        source, block_size=block, prefetch="off", resident_limit=limit, replay=path
    ) as region:
        distinct = list(dict.fromkeys(offset // block for offset in OFFSETS))
        room = len(distinct) if limit is None else min(len(distinct), limit // block * 3 // 4)

        def there() -> bool:
            nonlocal peak
            stats = region.stats()
            peak = max(peak, stats.resident_nbytes)
            return stats.prefetched >= room

        wait_for(there)
        asked = reins.offsets
        faults = region.stats().faults
        for number in distinct[:room]:
            got = touch(region.address + number * block, block)
            assert got == numbered(COUNT * B)[number * block // 8 :][: block // 8].tobytes()
        new = region.stats().faults - faults
        prefetched = region.stats().prefetched
    return {
        "room": room,
        "asked": asked,
        "blocks": [number * block for number in distinct[:room]],
        "faults": new,
        "prefetched": prefetched,
        "peak": peak,
    }


@pytest.mark.parametrize("block", [4 * K, B, 64 * K, 256 * K])
@pytest.mark.parametrize("kind", ["file", "helper"])
def test_it_is_read_ahead_in_that_order(tmp_path, kind, block):
    """Whatever the blocks are now."""
    found = child(_replayed, tmp_path, kind, block, None, deadline=60)
    assert found["faults"] == 0
    assert found["prefetched"] == found["room"]
    if kind == "helper":
        # Blocks that are neighbours now may be one request.
        asked, blocks = found["asked"], found["blocks"]
        assert [offset for offset in blocks if offset in asked] == asked
        assert asked[0] == blocks[0]


@pytest.mark.parametrize("kind", ["file", "helper"])
@pytest.mark.parametrize("blocks", [4, 8, 16])
def test_the_limit_holds(tmp_path, kind, blocks):
    found = child(_replayed, tmp_path, kind, B, blocks * B, deadline=60)
    assert found["prefetched"] == found["room"] == blocks * 3 // 4
    assert found["peak"] <= blocks * B


def _in_turn(folder: Path) -> tuple[list[int], list[int]]:
    """Record what a replayed region does: the same again."""
    path = _record(folder, "helper")
    source, _ = _made(folder, "helper")
    again = folder / "again.npy"
    with PagedMemory(source, block_size=B, prefetch="off", replay=path) as region:
        region.record(again)
        wait_for(lambda: region.stats().prefetched == len(OFFSETS))
        touch(region.address + B)
    return [int(offset) for offset in np.load(again)], OFFSETS


def test_what_was_read_ahead_counts_as_needed(tmp_path):
    again, offsets = child(_in_turn, tmp_path, deadline=60)
    # It may have begun before it was recorded.
    assert again[-1] == B
    assert again[:-1] == offsets[len(offsets) + 1 - len(again) :]


def _shorter(folder: Path) -> bytes:
    path = _record(folder, "file")
    store = reined(folder, numbered(10 * B))
    with PagedMemory(store, block_size=B, replay=path) as region:
        return touch(region.address + 9 * B, B)


def test_offsets_beyond_the_end_are_left_out(tmp_path):
    assert child(_shorter, tmp_path, deadline=60) == numbered(10 * B)[9 * B // 8 :].tobytes()


def _header(count: int) -> bytes:
    """Make the header of a record of so many blocks."""
    file = io.BytesIO()
    layout = {"descr": "<u8", "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, layout)
    return file.getvalue()


class TestOtherFiles:
    @pytest.mark.parametrize(
        "content",
        [
            np.zeros(3, np.float64),
            np.zeros((2, 2), "<u8"),
            np.zeros(2, "<i8"),
            np.array([{"a": 1}], dtype=object),
            b"",
            b"not an array",
            b"\x93NUMPY\x01\x00",
            b"PK\x05\x06" + bytes(18),
            _header(1 << 40),
            _header(3) + bytes(8 * 2),
            _header(3) + bytes(8 * 4),
        ],
        ids=[
            "floats",
            "two dimensions",
            "signed",
            "objects",
            "empty",
            "text",
            "truncated",
            "zip",
            "more than there can be",
            "shorter than it says",
            "longer than it says",
        ],
    )
    def test_they_are_refused(self, tmp_path, content):
        path = tmp_path / "other.npy"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            np.save(path, content)
        data = tmp_path / "data"
        data.write_bytes(bytes(8 * B))
        with (
            FileStore(data) as store,
            pytest.raises(
                ValueError, match=r"is not a record of a working set: .*; record\(\) makes one"
            ),
        ):
            PagedMemory(store, replay=path)

    def test_a_pipe_is_not_waited_for(self, tmp_path):
        data = tmp_path / "data"
        data.write_bytes(bytes(8 * B))
        os.mkfifo(tmp_path / "pipe")
        with FileStore(data) as store, pytest.raises(ValueError, match="no regular file"):
            PagedMemory(store, replay=tmp_path / "pipe")

    def test_one_that_is_not_there(self, tmp_path):
        data = tmp_path / "data"
        data.write_bytes(bytes(8 * B))
        with FileStore(data) as store, pytest.raises(FileNotFoundError):
            PagedMemory(store, replay=tmp_path / "nothing.npy")

    def test_an_empty_record(self, tmp_path):
        path = tmp_path / "order.npy"
        np.save(path, np.zeros(0, "<u8"))
        data = tmp_path / "data"
        data.write_bytes(bytes(8 * B))
        with FileStore(data) as store, PagedMemory(store, replay=path) as region:
            assert region.stats().prefetched == 0
