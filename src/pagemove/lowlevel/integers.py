"""What the raw calls take: integers, and a name as bytes."""

from __future__ import annotations

from typing import Any

import numpy as np


def integers(call: str, *values: Any) -> tuple[Any, ...]:
    """Return the values, or refuse what is no integer: the native call would cut a float to one."""
    for value in values:
        if not isinstance(value, int | np.integer | bytes):
            raise TypeError(f"{call} takes integers, not the {type(value).__name__} {value!r}")
    return values
