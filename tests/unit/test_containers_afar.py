"""Arrays in containers behind a URL: only the header and what is touched is fetched."""

from __future__ import annotations

import numpy as np
import pytest

from pagemove import open_array, open_arrays
from pagemove.paging.sources import Source
from support.servers import Web, WebServer, free_ports

pytestmark = pytest.mark.needs("move", "fsspec")

A = np.arange(30_000.0).reshape(100, 300)
CUBE = np.arange(24, dtype="<f4").reshape(2, 3, 4)


class TestFromAfar:
    def test_only_the_header_and_what_is_touched_is_fetched(self, tmp_path):
        numpy = pytest.importorskip("safetensors.numpy")
        big = np.arange(1 << 19, dtype="f8")
        numpy.save_file({"big": big, "small": np.arange(9.0)}, tmp_path / "x.safetensors")
        np.savez(tmp_path / "x.npz", big=big, small=np.arange(9))
        with WebServer(tmp_path).running() as server:
            for file in ("x.safetensors", "x.npz"):
                source = Source(f"{server.url}/{file}#big")
                before = server.sent
                with source.open() as part:
                    assert part.nbytes == big.nbytes
                    assert server.sent - before <= 4 * (64 << 10)
                    before, item = server.sent, bytearray(8)
                    part.read_into(8 * 400_000, item)
                    assert np.frombuffer(item)[0] == 400_000
                    assert server.sent - before <= 4096

    def test_an_array_behind_a_url(self, tmp_path):
        with Web(tmp_path, free_ports(1)[0]) as web:
            np.savez(web.root / "x.npz", a=A, cube=CUBE)
            with open_arrays(f"{web.url}/x.npz", store_timeout=30.0) as arrays:
                np.testing.assert_array_equal(arrays["a"], A)
            h5py = pytest.importorskip("h5py")
            zarr = pytest.importorskip("zarr")
            with h5py.File(web.root / "x.h5", "w") as file:
                file.create_dataset("g/a", data=A, chunks=(10, 300), compression="gzip")
            made = zarr.open_group(str(web.root / "x.zarr"), mode="w")
            made.create_array("g/a", shape=A.shape, dtype=A.dtype, chunks=(10, 300))[...] = A
            for name in ("x.h5", "x.zarr"):
                array = open_array(f"{web.url}/{name}#g/a", store_timeout=60.0)
                np.testing.assert_array_equal(array, A)
                assert str(array.region.store) == f"SlicedStore({web.url}/{name}#g/a)"
                with pytest.raises(ValueError, match="behind a URL, and only read"):
                    open_array(f"{web.url}/{name}#g/a", mode="r+")
            with pytest.raises(ValueError, match="lists no arrays"):
                open_arrays(f"{web.url}/x.zarr")
            cube = open_array(f"{web.url}/x.npz#cube", store_timeout=30.0)
            np.testing.assert_array_equal(cube, CUBE)
