"""xarray over a netCDF file whose variables are paged, by its engine "pagemove"."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from shown import LIMIT, Shown, numbers

import pagemove


def means(data: Any) -> Any:
    """Reduce one variable where it is."""
    return data.mean("y", skipna=False)


def means_of_what_is_there(data: Any) -> Any:
    """Reduce as xarray does by default: it puts zeros for what is missing, into a copy."""
    return data.mean("y")


def means_by_parts(data: Any) -> Any:
    """Reduce some rows at a time, by Dask."""
    parts = data.chunk(time=len(data) // 16)
    return parts.mean("y").compute(scheduler="single-threaded")


def main() -> None:
    """Show it."""
    values = numbers(64).reshape(-1, 32, 64)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weather.nc"
        made = xr.DataArray(values, dims=("time", "y", "x"), attrs={"units": "K"})
        xr.Dataset({"t": made}).to_netcdf(path, engine="h5netcdf")
        with xr.open_dataset(path, engine="pagemove", resident_limit=LIMIT) as weather:
            data = weather["t"]
            shown = Shown("xarray", pagemove.region_of(data.data))
            shown.check("attributes are kept", data.attrs == {"units": "K"})
            shown.view("values", np.asarray(data), data.data)
            small = made[:16]
            shown.call("mean, skipna=False", means, data, made, small=small)
            shown.call("mean by parts", means_by_parts, data, made, small=small)
            shown.call("mean", means_of_what_is_there, data, made, small=small, copies=True)
            shown.end()


if __name__ == "__main__":
    main()
