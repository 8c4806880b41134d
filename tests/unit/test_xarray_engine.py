"""xarray.py: engine "pagemove" of xarray says what its other engines say, under the limit."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pagemove
from pagemove import Budget, PagedArray, region_of
from support import fresh_interpreter

xr = pytest.importorskip("xarray", reason="xarray is not installed")

pytestmark = pytest.mark.needs("paging", "xarray")

LIMIT, BLOCK = 256 << 10, 16384
SHAPE = (50, 60, 80)  # 960 kB of float32
KINDS = ("contiguous", "chunked", "zarr")
ENGINES = {"contiguous": "h5netcdf", "chunked": "h5netcdf", "zarr": "zarr"}


def weather() -> Any:
    """Make a dataset with what files have: scaled, missing, times, text, and 2-d coordinates."""
    random = np.random.default_rng(3)
    values = random.normal(280, 10, SHAPE).astype("f4")
    values[3, 4, 5] = np.nan
    axes = ("time", "y", "x")
    return xr.Dataset(
        {
            "kelvin": (axes, values, {"units": "K"}),
            "scaled": (axes, values.astype("f8")),
            "station": (("y",), np.array([f"s{number}" for number in range(60)], dtype="S4")),
        },
        coords={
            "time": np.datetime64("2000-01-01", "ns") + np.arange(50) * np.timedelta64(1, "h"),
            "y": np.arange(60.0),
            "latitude": (("y", "x"), random.random(SHAPE[1:])),
        },
        attrs={"title": "made up"},
    )


def stored(folder: Path, kind: str) -> Path:
    scaled: dict[str, Any] = {"dtype": "i2", "scale_factor": 0.01, "add_offset": 280.0}
    scaled["_FillValue"] = -32768
    encoding: dict[str, dict[str, Any]] = {"scaled": scaled, "kelvin": {}}
    if kind == "zarr":
        encoding["kelvin"]["chunks"] = (20, 60, 50)
        made = weather().drop_vars("station")  # items that version 3 has no name for
        made.to_zarr(folder / "w.zarr", encoding=encoding, consolidated=False)
        return folder / "w.zarr"
    if kind == "chunked":
        for each in encoding.values():
            each.update(chunksizes=(20, 60, 50), zlib=True)
    weather().to_netcdf(folder / "w.nc", engine="h5netcdf", encoding=encoding)
    return folder / "w.nc"


def opened(path: Path, **how: Any) -> Any:
    how = {"resident_limit": LIMIT, "block_size": BLOCK, "store_timeout": 60, **how}
    return xr.open_dataset(path, engine="pagemove", **how)


def other(path: Path, kind: str, **how: Any) -> Any:
    options = {"consolidated": False} if kind == "zarr" else {}
    return xr.open_dataset(path, engine=ENGINES[kind], **options, **how)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_dataset_within_the_limit(tmp_path, kind):
    path = stored(tmp_path, kind)
    with other(path, kind) as expected, opened(path) as found:
        data = found.kelvin.data
        assert type(data) is PagedArray
        stats = data.region.stats
        assert stats().bytes_read <= 16 * BLOCK  # headers, and nothing of what is lazy
        xr.testing.assert_identical(found.drop_encoding(), expected.drop_encoding())
        assert found.scaled.encoding["scale_factor"] == 0.01
        assert 0 < stats().resident_nbytes <= LIMIT < data.nbytes
        assert np.shares_memory(found.kelvin.values, data)
        some = {"time": [1, 5, 7], "x": slice(3, 9)}
        xr.testing.assert_identical(found.isel(some), expected.isel(some))
        points = xr.DataArray([1, 2, 3], dims="point")
        where = {"time": points, "y": points, "x": points}
        xr.testing.assert_identical(found.kelvin.isel(where), expected.kelvin.isel(where))


@pytest.mark.parametrize("kind", KINDS)
def test_undecoded_it_is_what_is_stored(tmp_path, kind):
    path = stored(tmp_path, kind)
    with other(path, kind, decode_cf=False) as raw, opened(path, decode_cf=False) as found:
        assert found.scaled.dtype == np.dtype("i2")
        assert type(found.scaled.data) is PagedArray
        xr.testing.assert_identical(found, raw)


@pytest.mark.parametrize("kind", KINDS)
def test_it_pickles_by_reference_and_works_in_parts(tmp_path, kind):
    path = stored(tmp_path, kind)
    with opened(path, chunks={}) as found, other(path, kind) as expected:
        raw = pickle.dumps(found)
        assert len(raw) < 100_000 < found.kelvin.nbytes
        np.testing.assert_array_equal(found.scaled.max("time"), expected.scaled.max("time"))
        xr.testing.assert_identical(pickle.loads(raw).compute(), expected.compute())
    if kind != "chunked":
        return  # one kind will do for another process, which imports all of it again
    said = fresh_interpreter(
        f"""
        import pickle
        found = pickle.loads({raw!r})
        print(float(found.scaled.max()), int(found.kelvin.isnull().sum()))
        """
    )
    with other(path, kind) as expected:
        assert said.split() == [str(float(expected.scaled.max())), "1"]


def test_one_budget_for_all_variables(tmp_path):
    path = stored(tmp_path, "chunked")
    budget = Budget(LIMIT)
    with opened(path, resident_limit=budget, decode_cf=False) as found:
        arrays = [found[name].data for name in ("kelvin", "scaled", "latitude")]
        for array in arrays:
            array.sum()
            assert region_of(array).stats().resident_nbytes <= LIMIT
            assert 0 < budget.stats().resident_nbytes <= LIMIT
        assert budget.stats().members == 3


def test_closed_it_opens_nothing_more_and_arrays_stay(tmp_path):
    path = stored(tmp_path, "contiguous")
    found = opened(path)
    kelvin = found.kelvin.data
    found.close()
    with pytest.raises(ValueError, match="is closed: open it again"):
        found.latitude.load()
    assert kelvin[0, 0, 0] == weather().kelvin.values[0, 0, 0]
    budget = Budget(LIMIT)
    with opened(path, resident_limit=budget) as found:
        found.isel(time=0).load()
        assert budget.stats().members == 1
    del found
    assert budget.stats().members == 0


def test_groups_and_files_without_dimensions(tmp_path):
    h5py = pytest.importorskip("h5py")
    values = np.arange(24_000.0).reshape(60, 400)
    with h5py.File(tmp_path / "plain.hdf", "w") as file:
        file.create_dataset("run/one", data=values)
        file.create_dataset("run/two", data=values, chunks=(7, 100), compression="gzip")
        file.create_dataset("run/never", (60, 400), "f4", fillvalue=7)
        file["run"].attrs["by"] = "hand"
    with opened(tmp_path / "plain.hdf", group="run") as found:
        assert found.attrs == {"by": "hand"}
        for name in ("one", "two"):
            assert type(found[name].data) is PagedArray
            np.testing.assert_array_equal(found[name], values)
        assert (found.never == 7).all()
        assert found.one.dims == found.two.dims
    weather().to_netcdf(tmp_path / "w.nc", engine="h5netcdf", group="deep/er")
    with opened(tmp_path / "w.nc", group="/deep/er") as found:
        np.testing.assert_array_equal(found.kelvin, weather().kelvin)


def test_a_variable_with_the_name_of_a_dimension_that_it_is_not(tmp_path):
    h5netcdf = pytest.importorskip("h5netcdf")
    values = np.arange(20_000.0)
    with h5netcdf.File(tmp_path / "w.nc", "w") as file:
        file.dimensions = {"x": 20_000, "y": 5}
        file.create_variable("y", ("x",), data=values)
    with opened(tmp_path / "w.nc") as found:
        assert found.y.dims == ("x",)
        assert type(found.y.data) is PagedArray
        np.testing.assert_array_equal(found.y, values)


def test_what_cannot_be_paged_is_said_and_still_there(tmp_path):
    texts = np.array([f"text {number}" for number in range(10_000)], dtype=object)
    made = xr.Dataset({"text": ("x", texts), "number": ("x", np.arange(10_000))})
    made.to_netcdf(tmp_path / "w.nc", engine="h5netcdf")
    with pytest.warns(UserWarning, match=r"w\.nc: text cannot be paged.*drop_variables"):
        found = opened(tmp_path / "w.nc")
    with found:
        assert found.text.values.tolist() == texts.tolist()
        assert type(found.number.data) is PagedArray


def test_what_is_not_for_it_is_refused(tmp_path):
    (tmp_path / "classic.nc").write_bytes(b"CDF\x01" + bytes(100))
    (tmp_path / "short.nc").write_bytes(b"\x89HD")
    (tmp_path / "empty.zarr").mkdir()
    for name, error, text in [
        ("classic.nc", ValueError, "classic netCDF file.*nccopy -k nc4"),
        ("short.nc", ValueError, "neither HDF5, netCDF-4 nor zarr"),
        ("none.nc", FileNotFoundError, "none.nc"),
        ("empty.zarr", FileNotFoundError, "."),
    ]:
        with pytest.raises(error, match=text):
            opened(tmp_path / name)
    with pytest.raises(ValueError, match=r"local files, not the URL 's3://a/x\.nc'"):
        xr.open_dataset("s3://a/x.nc?key=secret", engine="pagemove")
    with pytest.raises(TypeError, match="opens paths, not bytes"):
        xr.open_dataset(b"\x89HDF\r\n\x1a\n", engine="pagemove")
    path = stored(tmp_path, "contiguous")
    with pytest.raises(ValueError, match="block_size must be a power of two"):
        opened(path, block_size=5000).kelvin.load()


def test_no_file_is_opened_with_it_unless_it_is_named(tmp_path):
    path = stored(tmp_path, "contiguous")
    engines = xr.backends.list_engines()
    assert engines["pagemove"].guess_can_open(path) is False
    with xr.open_dataset(path) as found:
        found.kelvin.load()
        with pytest.raises(ValueError, match="not in paged memory"):
            region_of(found.kelvin.data)


def test_the_package_does_not_import_xarray():
    said = fresh_interpreter("import sys, pagemove; print('xarray' in sys.modules)")
    assert said.strip() == "False"
    assert pagemove.__name__ == "pagemove"


def test_a_file_that_was_replaced_is_not_mixed_in(tmp_path):
    path = stored(tmp_path, "contiguous")
    with opened(path) as dataset:
        other = tmp_path / "new"
        other.mkdir()
        stored(other, "contiguous").replace(path)
        with pytest.raises(OSError, match="open the dataset again") as caught:
            dataset.kelvin.mean()
        assert caught.value.errno == errno.ESTALE
