"""stores/blockfile.py: what a file of blocks says of itself; damage is never taken for data."""

from __future__ import annotations

import os
import random
import struct
import zlib
from pathlib import Path

import pytest

from pagemove import StoreError
from pagemove.stores import CompressedStore, blocklog
from support.blocks import K, N, contents, made, read

pytestmark = pytest.mark.needs("zstandard")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of a file that is compacted soon."""
    monkeypatch.setattr(blocklog, "SLACK", 16 * K)
    return tmp_path / "blocks"


class TestHeader:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"block_size": 0}, "claims 65536 bytes in blocks of 0"),
            ({"block_size": 3}, "in blocks of 3,"),
            ({"block_size": 4 << 20}, "in blocks of 4194304"),
            ({"block_size": 0xFFFFFFFF}, "in blocks of 4294967295"),
            ({"nbytes": 0}, "claims 0 bytes"),
            ({"nbytes": 2**63}, "claims 9223372036854775808 bytes"),
            ({"version": 3}, r"later version of pagemove \(format 3, flags 0x0\)"),
            ({"flags": 4}, r"later version of pagemove \(format 2, flags 0x4\)"),
            ({"version": 1}, "has format 1, .* write what is in it into a new file"),
        ],
    )
    def test_what_no_store_has_is_refused(self, path, change, message):
        made(path).close()
        fields = dict(
            zip(
                ("magic", "version", "block_size", "nbytes", "identity", "generation", "flags"),
                struct.unpack_from("<16sIIQQII", path.read_bytes()),
                strict=True,
            )
        )
        head = struct.pack("<16sIIQQII", *(fields | change).values())
        head += zlib.crc32(head).to_bytes(4, "little")
        path.write_bytes(head + path.read_bytes()[len(head) :])
        before = path.read_bytes()
        with pytest.raises(ValueError, match=message):
            CompressedStore(path=path)
        assert path.read_bytes() == before

    @pytest.mark.parametrize("what", [bytes(5000), b"x", b"pagemove blocks\n"])
    def test_other_files_are_left_as_they_are(self, path, what):
        path.write_bytes(what)
        with pytest.raises(ValueError, match="not a file of compressed blocks"):
            CompressedStore(N, path=path)
        assert path.read_bytes() == what

    def test_an_empty_file_is_a_new_one(self, path):
        path.touch()
        inode = path.stat().st_ino
        with made(path) as store:
            assert read(store) == contents(0)
        assert path.stat().st_ino == inode

    def test_a_device_is_not_empty(self):
        with pytest.raises(ValueError, match="not a file of compressed blocks"):
            CompressedStore(N, path="/dev/null")


class TestDamage:
    def test_flipped_bits_are_an_error_or_nothing(self, path):
        """Any number of them, anywhere, with and without a flush before: never wrong bytes."""
        with CompressedStore(N, path=path, block_size=4 * K) as store:
            for seed in range(3):
                store.write(0, contents(seed)[: 20 * K].ljust(N, b"x"))
                if seed == 1:
                    store.flush()
            expected = read(store)
        whole = path.read_bytes()
        numbers = random.Random(3)
        errors = 0
        for turn in range(180):
            changed = bytearray(whole)
            first = (0, 0, 4096)[turn % 3]
            end = (64, len(whole), len(whole))[turn % 3]
            for _ in range(numbers.choice((1, 1, 2, 9))):
                changed[numbers.randrange(first, end)] ^= 1 << numbers.randrange(8)
            path.write_bytes(changed)
            try:
                with CompressedStore(path=path) as store:
                    assert read(store) == expected
            except (StoreError, ValueError):
                errors += 1
        assert errors > 100

    def test_bytes_of_another_place_or_time_are_not_taken(self, path):
        """A device gives a whole record that was right once, or somewhere else."""
        with CompressedStore(N, path=path, block_size=4 * K) as store:
            store.write(0, contents(0))
            store.flush()
        whole = path.read_bytes()
        size = (len(whole) - 4096) // 16
        assert 4 * K < size < 5 * K
        for source, at in ((0, 1), (3, 15), (15, 0)):
            record = whole[4096 + source * size :][:size]
            changed = whole[: 4096 + at * size] + record + whole[4096 + (at + 1) * size :]
            path.write_bytes(changed)
            with CompressedStore(path=path) as store, pytest.raises(StoreError, match="damaged"):
                read(store)
            # The bytes alone, behind the fields of the place.
            changed = whole[: 4096 + at * size + 28] + record[28:] + whole[4096 + (at + 1) * size :]
            path.write_bytes(changed)
            damaged = pytest.raises(StoreError, match=f"block {at} is damaged")
            with CompressedStore(path=path) as store, damaged:
                read(store, at * 4 * K, 4 * K)

    def test_an_older_version_is_not_taken(self, path):
        """Torn, written again at the same place, and the disk gives what was torn."""
        with made(path) as store:
            size = path.stat().st_size
            store.write(0, b"old version".ljust(4 * K))
            old = path.read_bytes()[size:]
        os.truncate(path, size)
        with CompressedStore(path=path) as store:
            store.write(0, b"new version".ljust(4 * K))
            store.flush()
        new = path.read_bytes()
        assert len(new) == size + len(old)
        path.write_bytes(new[:size] + old)
        with CompressedStore(path=path) as store, pytest.raises(StoreError, match="damaged"):
            read(store)

    def test_compaction_does_not_make_damage_right(self, path):
        with made(path) as store:
            whole = bytearray(path.read_bytes())
            whole[4096 + 3000] ^= 1
            path.write_bytes(whole)
            for _ in range(6):
                store.write(16 * K, contents(1)[16 * K :])
            assert store.stats()["compactions"] == 0
            with pytest.raises(StoreError, match="block 0 is damaged"):
                read(store, 0, 10)
            store.write(0, contents(1)[: 16 * K])
            for _ in range(12):
                store.write(16 * K, contents(1)[16 * K :])
            assert store.stats()["compactions"] > 0
            assert read(store) == contents(1)

    def test_a_bomb_takes_no_memory(self, path):
        """A block that says it is 4 GiB, with all checksums right."""
        import zstandard

        packer = zstandard.ZstdCompressor().compressobj(size=4 << 30)
        zeros = bytes(1 << 20)
        bomb = b"".join(packer.compress(zeros) for _ in range(64))
        unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(200 << 20))
        with made(path) as store:
            for packed in (bomb, unsized):
                store._shelf.put(0, packed[: 4 * K])
                with pytest.raises(StoreError, match="another length than it should"):
                    read(store, 0, 10)
                with pytest.raises(StoreError, match="another length than it should"):
                    store.write(0, b"part")

    def test_a_block_that_is_too_long_is_not_read(self, path):
        """Of a damaged length nothing is allocated."""
        with made(path) as store:
            store._shelf.put(0, bytes(64 * K))
            store.flush()
        with CompressedStore(path=path) as store, pytest.raises(StoreError, match="damaged"):
            read(store)
