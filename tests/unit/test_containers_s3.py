"""Arrays in containers on S3: only headers and the blocks that are touched are fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pagemove import open_array, open_arrays
from support.counting import Relay
from support.servers import Moto, free_ports

pytestmark = pytest.mark.needs("move", "s3", "obstore")

K = 1 << 10
BIG = np.arange(1 << 20, dtype="f8")
SMALL = np.arange(1000, dtype="f4")
BLOCK = 64 * K


def npz(path: Path) -> None:
    np.savez(path, big=BIG, small=SMALL)


def safetensors(path: Path) -> None:
    pytest.importorskip("safetensors.numpy").save_file({"big": BIG, "small": SMALL}, path)


def gguf(path: Path) -> None:
    writer = pytest.importorskip("gguf").GGUFWriter(path, "llama")
    writer.add_tensor("big", BIG)
    writer.add_tensor("small", SMALL)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def hdf5(path: Path) -> None:
    with pytest.importorskip("h5py").File(path, "w") as file:
        file["big"], file["small"] = BIG, SMALL


def arrow(path: Path) -> None:
    feather = pytest.importorskip("pyarrow.feather")
    table = pytest.importorskip("pyarrow").table({"big": BIG, "other": BIG + 1})
    feather.write_feather(table, str(path), compression="uncompressed", chunksize=len(BIG))


FORMATS: dict[str, Callable[[Path], None]] = {
    "x.npz": npz,
    "x.safetensors": safetensors,
    "x.gguf": gguf,
    "x.h5": hdf5,
    "x.feather": arrow,
}


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    with (
        Moto(tmp_path_factory.mktemp("s3"), free_ports(1)[0]) as server,
        Relay(server.port).running() as relay,
    ):
        yield relay


def touched(view: np.ndarray) -> np.ndarray:
    """Touch a view without the GIL, which the relay needs: its threads are in this process."""
    view.prefetch(wait=True)
    return view


@pytest.mark.parametrize("name", FORMATS)
def test_headers_and_touched_blocks_are_all_that_is_fetched(tmp_path, relay, name):
    import s3fs

    FORMATS[name](tmp_path / name)
    length = (tmp_path / name).stat().st_size
    options = {"key": "test", "secret": "test", "endpoint_url": relay.url}
    filesystem = s3fs.S3FileSystem(**options)
    if not filesystem.exists("bucket"):
        filesystem.mkdir("bucket")
    filesystem.pipe(f"bucket/{name}", (tmp_path / name).read_bytes())
    paging = {"block_size": BLOCK, "prefetch": "off", "store_timeout": 60.0}
    relay.forget()
    with open_arrays(
        f"s3://bucket/{name}", storage_options={**options, "timeout": 60}, **paging
    ) as arrays:
        assert "big" in arrays
        # Pieces of 64 KiB of the header, and of what stands at the end of the file.
        assert relay.sent <= 6 * BLOCK
        assert len(relay.asked) <= 8
        big = arrays["big"]
        relay.forget()
        assert touched(big[500_000:500_001]) == 500_000
        # Two blocks where the item's is not aligned; and what it takes to connect.
        assert relay.sent <= 2 * BLOCK + 16 * K
        assert len(relay.asked) <= 4
        np.testing.assert_array_equal(touched(big), BIG)
        if "small" in arrays:
            np.testing.assert_array_equal(touched(arrays["small"]), SMALL)
        assert arrays.regions[0].stats().bytes_read <= length + BLOCK
    relay.forget()
    array = open_array(
        f"s3://bucket/{name}#big", storage_options={**options, "timeout": 60}, **paging
    )
    assert touched(array[-1:]) == BIG[-1]
    assert relay.sent <= 8 * BLOCK
    assert array.flags.aligned
