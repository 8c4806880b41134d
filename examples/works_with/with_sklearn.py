"""scikit-learn over a paged array: what works in batches copies nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from shown import Shown, numbers, paged
from sklearn.linear_model import LinearRegression, SGDRegressor
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_array


def descent(rows: Any) -> Any:
    """Fit a model that goes through the rows."""
    model = SGDRegressor(max_iter=1, tol=None, shuffle=False, learning_rate="constant", eta0=1e-4)
    return model.fit(rows, np.ones(len(rows), rows.dtype)).coef_


def scale(rows: Any) -> Any:
    """Fit a model batch by batch."""
    model = StandardScaler()
    for start in range(0, len(rows), 8192):
        model.partial_fit(rows[start : start + 8192])
    return model.scale_


def line(rows: Any) -> Any:
    """Fit a model that works on a copy."""
    return LinearRegression().fit(rows[:, :-1], rows[:, -1]).coef_


def main() -> None:
    """Show it."""
    values = numbers(64)
    with paged(values) as array:
        shown = Shown("scikit-learn", array.region)
        shown.view("check_array", check_array(array), array)
        shown.call("SGDRegressor.fit", descent, array, values)
        shown.call("StandardScaler.partial_fit", scale, array, values)
        shown.call("LinearRegression.fit", line, array, values, copies=True)
        shown.end()


if __name__ == "__main__":
    main()
