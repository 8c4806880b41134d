"""Files whose bytes have changed: an error or the right contents, in bounded memory."""

from __future__ import annotations

import os
import random
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pagemove import StoreError, open_array
from pagemove.paging import working_set
from pagemove.stores import CompressedStore, blockfile
from pagemove.stores.blockfile import Header, Layout, Place
from support import child
from support.layers import Counting, K, layered, read, top_file

CASES = int(150 * float(os.environ.get("PAGEMOVE_SOAK", "1")))
#: What no file of some kilobytes may take, whatever it says.
ROOM = 512 << 20

EDGES = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 4095, 4096, 65535, 2**31 - 1, 2**31, 2**32 - 1)
EDGES += (2**62, 2**63 - 1, 2**63, 2**64 - 1)


def mutated(chance: random.Random, data: bytes, head: int) -> bytes:
    """Change bytes, most of them near the beginning, or the length."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(min(head, len(found)) if chance.random() < 0.7 else len(found))
        kind = chance.randrange(6)
        if kind == 0:
            found[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            found[at] = chance.choice(b"\0\xff0129(),:'{}-[]LfO<>|\n ")
        elif kind == 2:
            edge = chance.choice(EDGES).to_bytes(8, "little")[: chance.choice((2, 4, 8))]
            found[at : at + len(edge)] = edge
        elif kind == 3:
            del found[max(1, at) :]
        elif kind == 4:
            found[at:at] = chance.randbytes(chance.randrange(1, 40))
        else:
            del found[max(1, at) : at + chance.randrange(1, 40)]
    return bytes(found)


def _bounded(run: Callable[..., int], *arguments: object) -> int:
    """Run it with little memory more than there is now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    return run(*arguments)


def _compressed(path: Path) -> int:
    nbytes = 64 * K
    chance, contents = random.Random(1), np.random.default_rng(1).bytes(nbytes)
    with CompressedStore(nbytes, path=path, block_size=4 * K) as store:
        store.write(0, contents)
        store.flush()
    whole, refused = path.read_bytes(), 0
    for number in range(CASES):
        path.write_bytes(mutated(chance, whole, (64, 4096, 8192)[number % 3]))
        try:
            with CompressedStore(path=path) as store:
                assert read(store) == contents, number
        except (ValueError, StoreError):
            refused += 1
    return refused


def _sealed(path: Path) -> int:
    """Fields that are drawn, with all checksums right: there is no telling what is right then."""
    chance, refused = random.Random(2), 0
    for _ in range(CASES):
        nbytes = chance.choice((*EDGES, 64 * K)) & (2**64 - 1)
        size = chance.choice((4 * K, 4 * K, 64 * K, *EDGES[:13])) & (2**32 - 1)
        header = Header.new(Layout(nbytes, size))
        with path.open("wb") as file:
            blockfile.write_header(file.fileno(), header)
            chain = header.seed
            file.seek(0, 2)
            for number in range(chance.randrange(6)):
                data = chance.randbytes(chance.choice((0, 1, 30, 5000)))
                length = len(data) if chance.random() < 0.7 else chance.choice(EDGES[:13])
                block = chance.choice((0, 1, 2, *EDGES))
                checksum = blockfile.checksum_of(header, block, number, data)
                head = blockfile.record_head(block, Place(0, length, checksum, number), chain)
                chain = blockfile.chain_of(head)
                file.write(head + data)
        try:
            with CompressedStore(path=path) as store:
                for block in range(3):
                    at = block * store.block_size
                    read(store, at, max(0, min(store.block_size, store.nbytes - at)))
        except (ValueError, StoreError):
            refused += 1
    return refused


def _map(path: Path) -> int:
    chance, refused = random.Random(3), 0
    bottom = Counting()
    with layered(path, bottom, cache=False) as store:
        store.write(8 * K, b"b" * 8 * K)
        contents = read(store)
    file = path.with_name("top.map")
    whole = file.read_bytes()
    for number in range(CASES):
        changed = mutated(chance, whole, (80, len(whole))[number % 2])
        file.write_bytes(changed)
        try:
            with layered(path, bottom, cache=False) as store:
                assert read(store) == contents, number
        except ValueError:
            refused += 1
            assert file.read_bytes() == changed
    return refused


def _npy(text: str, version: int, contents: bytes) -> bytes:
    kind, head = ("<H", 10) if version == 1 else ("<I", 12)
    text = text.ljust(-(-(head + len(text) + 1) // 64) * 64 - head - 1) + "\n"
    return (
        b"\x93NUMPY" + bytes((version, 0)) + struct.pack(kind, len(text)) + text.encode() + contents
    )


TYPES = ("<u8", "<f4", ">i2", "|b1", "|O", "<U5", "|V0", "<M8[ns]", "|S0", "<U999999999", "<u9")
TYPES += ("[('a', '<u4'), ('b', '<u4')]",)
SHAPES = ("(512,)", "(8, 64)", "()", "(0,)", "(-1,)", "(2**70,)", f"({2**63},)", f"({2**62}, 4)")
SHAPES += ("(1e3,)", "512", "[512]", "(True,)", "('a',)", "(512L,)", "None", f"({2**32}, {2**32})")


def _arrays(path: Path) -> int:
    chance, refused = random.Random(4), 0
    words = np.arange(512, dtype=np.uint64)
    for number in range(CASES):
        kind, shape = "'<u8'", "(512,)"
        if number % 2:
            kind = repr(chance.choice(TYPES)) if chance.random() < 0.8 else TYPES[-1]
            shape = chance.choice(SHAPES)
        text = f"{{'descr': {kind}, 'fortran_order': {chance.choice((False, True))}, "
        text += f"'shape': {shape}, }}"
        whole = _npy(text, chance.choice((1, 2, 3)), words.tobytes())
        changed = whole if number % 2 else mutated(chance, whole, 128)
        path.write_bytes(changed)
        try:
            array = open_array(path, prefetch="off")
        except (ValueError, TypeError):
            refused += 1
            continue
        assert array.nbytes <= len(changed), text
        data = array.tobytes("A")
        assert data == changed[len(changed) - len(data) :] or data in changed, text
        del array
    return refused


def _replayed(path: Path) -> int:
    chance, refused = random.Random(5), 0
    working_set.save(path, np.arange(64, dtype=np.uint32).tobytes(), 4 * K)
    whole = path.read_bytes()
    for _ in range(CASES):
        path.write_bytes(mutated(chance, whole, 128))
        try:
            numbers = np.frombuffer(working_set.load(path, 64 * 4 * K, 4 * K), np.uint32)
        except ValueError:
            refused += 1
            continue
        assert len(np.unique(numbers)) == len(numbers)
        assert not len(numbers) or numbers.max() < 64
    return refused


@pytest.mark.parametrize("run", [_compressed, _sealed, _map, _replayed])
def test_an_error_or_what_was_there(tmp_path, run):
    if run in (_compressed, _sealed):
        pytest.importorskip("zstandard")
    path = top_file(tmp_path) if run is _map else tmp_path / "file"
    assert child(_bounded, run, path, deadline=120) > CASES // 4


@pytest.mark.needs("paging")
def test_arrays_are_what_their_headers_say(tmp_path):
    assert child(_bounded, _arrays, tmp_path / "x.npy", deadline=120) > CASES // 4
