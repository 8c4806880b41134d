"""Numbers of bytes as people write them: ``"256MiB"``."""

from __future__ import annotations

import operator
import re
from typing import SupportsIndex

_SIZE = re.compile(r"(\d+)(?:\.(\d+))?\s*([a-z]*)", re.IGNORECASE | re.ASCII)
_LETTERS = "kmgtp"
_UNITS: dict[str, int] = (
    {"": 1, "b": 1}
    | {f"{letter}b": 1000**power for power, letter in enumerate(_LETTERS, 1)}
    | {f"{letter}ib": 1024**power for power, letter in enumerate(_LETTERS, 1)}
)


def nbytes_of(size: SupportsIndex | str, what: str) -> int:
    """Take a number of bytes, or a string such as ``"256MiB"``, ``"1.5 GiB"``, ``"100kB"``.

    kB, MB, ... are powers of 1000; KiB, MiB, ... powers of 1024; case does not matter. A fraction
    of a byte is dropped. `what` names the argument in the `ValueError` of anything else.
    """
    if not isinstance(size, str):
        try:
            return operator.index(size)
        except TypeError:
            raise TypeError(
                f"{what} must be a number of bytes or a string such as '256MiB', not "
                f"{type(size).__name__}"
            ) from None
    found = _SIZE.fullmatch(size.strip())
    unit = _UNITS.get(found[3].lower()) if found else None
    if found is None or unit is None:
        raise ValueError(
            f"{what} {size!r} is not a number of bytes: write for instance '256MiB', '1.5 GiB' or "
            "'100kB', with B, kB, MB, GB, TB, PB, or KiB, MiB, GiB, TiB, PiB"
        )
    decimals = found[2] or ""
    return int(found[1] + decimals) * unit // int(10 ** len(decimals))


def text_of(nbytes: float) -> str:
    """Write a number of bytes for people: ``256 MiB``, ``1.46 GiB``, ``17 B``."""
    value, unit = float(nbytes), "B"
    for letter in _LETTERS.upper():
        if abs(value) < 1024:
            break
        value, unit = value / 1024, f"{letter}iB"
    # Three digits, but no exponent and no zeros at the end.
    digits = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{digits} {unit}"


def span(nbytes: int, offset: int, length: int | None) -> tuple[int, int]:
    """Give first byte and length of a range of a region; ValueError if it is not within that."""
    start = operator.index(offset)
    count = nbytes - start if length is None else operator.index(length)
    if start < 0 or count < 0 or start + count > nbytes:
        raise ValueError(
            f"bytes {start} to {start + count} are not within the {nbytes} of the region"
        )
    return start, count
