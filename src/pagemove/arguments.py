"""Arguments that are numbers."""

from __future__ import annotations

import contextlib
import operator
from typing import SupportsIndex

_BYTES = "a number of bytes, such as 8 << 20 for 8 MiB"


def whole_number(value: SupportsIndex, what: str, wanted: str = _BYTES) -> int:
    """Take an integer of any kind but a truth value; `what` names it in the TypeError of others."""
    # A flag that was meant as an option would become one byte.
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            return operator.index(value)
    raise TypeError(f"{what} must be {wanted}, not {value!r}")
