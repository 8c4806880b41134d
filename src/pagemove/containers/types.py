"""Types of items that NumPy does not have."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np

#: By the name that files have for them: the name in ml_dtypes, and as what they are raw.
_WIDE = {
    "BF16": ("bfloat16", "<u2"),
    "F8_E4M3": ("float8_e4m3fn", "u1"),
    "F8_E5M2": ("float8_e5m2", "u1"),
    "F8_E8M0": ("float8_e8m0fnu", "u1"),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", "u1"),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", "u1"),
}


def is_learned(name: str) -> bool:
    """Whether it is a type of ml_dtypes."""
    return name in _WIDE


def learned(name: str, what: str) -> np.dtype[Any]:
    """Return the type of ml_dtypes, or the integers that it is stored as, with a warning."""
    own, raw = _WIDE[name]
    try:
        found: np.dtype[Any] = np.dtype(getattr(importlib.import_module("ml_dtypes"), own))
    except (ImportError, AttributeError):
        warnings.warn(
            f"{what} is {name}, which NumPy does not have: its raw bits are shown as "
            f"{np.dtype(raw)}; for numbers pip install 'pagemove[ml-dtypes]'",
            UserWarning,
            stacklevel=2,
        )
        return np.dtype(raw)
    return found


def raw_itemsize(name: str) -> int:
    """Return how many bytes an item has."""
    return np.dtype(_WIDE[name][1]).itemsize
