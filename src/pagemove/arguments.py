"""Arguments that are numbers, and names of mappings."""

from __future__ import annotations

import contextlib
import operator
from typing import SupportsIndex

_BYTES = "a number of bytes, such as 8 << 20 for 8 MiB"
# The kernel allows printable ASCII but for these, and 79 bytes (prctl(2), PR_SET_VMA_ANON_NAME).
_NAME_FORBIDDEN = set("[]\\$`")
_NAME_LONGEST = 79


def whole_number(value: SupportsIndex, what: str, wanted: str = _BYTES) -> int:
    """Take an integer of any kind but a truth value; `what` names it in the TypeError of others."""
    # A flag that was meant as an option would become one byte.
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            return operator.index(value)
    raise TypeError(f"{what} must be {wanted}, not {value!r}")


def checked_name(name: str | None) -> bytes:
    """Return the name of a mapping as the kernel takes it; ValueError if it does not."""
    text = "pagemove" if name is None else name
    if not isinstance(text, str):
        raise TypeError(f"name must be a str, not {type(text).__name__}")
    bad = [c for c in text if not " " <= c <= "~" or c in _NAME_FORBIDDEN]
    if bad or len(text) > _NAME_LONGEST:
        raise ValueError(
            f"name {text!r}: at most {_NAME_LONGEST} printable ASCII characters, none of []\\$`"
        )
    return text.encode()
