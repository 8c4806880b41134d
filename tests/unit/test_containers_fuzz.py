"""Headers that were changed: an error that is meant, or what is in the file; never much memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import random, resource, struct, sys, tempfile, warnings, pathlib
import numpy as np
from pagemove.containers.formats import contents_of
from pagemove.containers.layout import Packed
from pagemove.containers.npy import read_header
from pagemove.containers.reading import Reading
from pagemove.stores import FileStore

kind, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
folder = pathlib.Path(tempfile.mkdtemp(dir=sys.argv[4]))
path = folder / "x"
arrays = {"a": np.arange(300.0).reshape(20, 15), "b": np.arange(7, dtype="u1")}
arrays["c"] = np.arange(64, dtype="f4")
if kind == "npz":
    with path.open("wb") as file:
        np.savez(file, **arrays)
elif kind == "npy":
    with path.open("wb") as file:
        np.save(file, arrays["a"])
elif kind == "safetensors":
    from safetensors.numpy import load, save
    path.write_bytes(save({name * 40: array for name, array in arrays.items()}))
else:
    import gguf
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokens", ["x", "yy"] * 20)
    for name in ("a", "c"):
        writer.add_tensor(name, arrays[name])
    writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file()
    writer.close()
whole = path.read_bytes()
if kind == "npz":
    heads = [i for i in range(len(whole)) if whole[i : i + 2] == b"PK"]
    places = [i for head in heads for i in range(head, min(head + 180, len(whole)))]
elif kind == "safetensors":
    places = list(range(8 + struct.unpack_from("<Q", whole)[0]))
elif kind == "npy":
    places = list(range(128))
else:
    places = list(range(len(whole) - arrays["a"].nbytes - arrays["c"].nbytes))
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (160 << 20),) * 2)
warnings.simplefilter("ignore")
random = random.Random(seed)
fine = refused = 0
for number in range(count):
    data = bytearray(whole)
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.choice(places)
        if at >= len(data):
            break
        match random.randrange(5):
            case 0: data[at] = random.randrange(256)
            case 1: data[at] ^= 1 << random.randrange(8)
            case 2:
                wide = random.choice((b"\\xff" * 8, bytes(8), b"\\0" * 7 + b"\\x7f"))
                data[at : at + 8] = wide
            case 3: data[at : at + 1] = random.choice((b"[", b"9", b"{", b'"', b"-", b"("))
            case 4: data = data[: random.randrange(len(data))] or bytearray(1)
    path.write_bytes(data)
    with FileStore(path) as store:
        try:
            if kind == "npy":
                found = {"": read_header(store)}
                if found[""] is None or found[""].offset + found[""].nbytes > len(data):
                    raise ValueError("truncated")
            else:
                contents = contents_of(Reading(store))
                found = {}
                for name in contents.names():
                    try:
                        found[name] = contents.find(name)
                    except (ValueError, TypeError) as error:
                        assert str(path) in str(error), error
        except (ValueError, TypeError) as error:
            refused += 1
            assert kind == "npy" or str(path) in str(error), error
            continue
        for name, layout in found.items():
            if isinstance(layout, Packed):
                continue
            assert 0 <= layout.offset and layout.offset + layout.nbytes <= len(data), (name, layout)
            np.ndarray(layout.shape, layout.dtype, bytes(data), layout.offset)
        if kind == "safetensors":
            try:
                loaded = load(bytes(data))
            except Exception:
                loaded = {}
            for name, array in loaded.items():
                part = bytes(data[found[name].offset :][: found[name].nbytes])
                assert part == array.tobytes(), name
        fine += 1
print(fine, refused)
"""


@pytest.mark.parametrize("kind", ["npz", "npy", "safetensors", "gguf"])
@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_changed_headers(tmp_path: Path, kind: str, count: int) -> None:
    if kind in ("safetensors", "gguf"):
        pytest.importorskip(kind)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind, str(count), "2014", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    fine, refused = map(int, done.stdout.split())
    assert fine + refused == count
    assert fine
    assert refused
