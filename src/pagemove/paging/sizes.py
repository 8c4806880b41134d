"""Numbers of bytes as people write them: ``"256MiB"``."""

from __future__ import annotations

import re
from typing import SupportsIndex

from pagemove.arguments import whole_number

# As many digits as int() takes without a word, and no exponent that takes long to compute.
_SIZE = re.compile(
    r"(\d{1,999})(?:\.(\d{1,999}))?(?:e\+?(\d{1,3}))?\s*([a-z]*)", re.IGNORECASE | re.ASCII
)
_LETTERS = "kmgtp"
_UNITS: dict[str, int] = {"": 1, "b": 1} | {
    letter + rest: base**power
    for power, letter in enumerate(_LETTERS, 1)
    # A letter alone is what limits of memory are written with elsewhere, in powers of 1024: docker
    # run --memory 1g, MemoryMax=1G of systemd, java -Xmx1g.
    for rest, base in (("b", 1000), ("ib", 1024), ("", 1024), ("i", 1024))
}


def nbytes_of(size: SupportsIndex | str, what: str) -> int:
    """Take a number of bytes, or a string such as ``"256MiB"``, ``"1.5g"``, ``"100kB"``, ``"1e9"``.

    kB, MB, ... are powers of 1000; KiB, MiB, ... powers of 1024, and so are k, m, g, t, p alone;
    case does not matter. A fraction of a byte is dropped. `what` names the argument in the
    `ValueError` of anything else.
    """
    if not isinstance(size, str):
        return whole_number(size, what, "a number of bytes or a string such as '256MiB'")
    found = _SIZE.fullmatch(size.strip())
    unit = _UNITS.get(found[4].lower()) if found else None
    if found is None or unit is None:
        raise ValueError(
            f"{what} {size!r} is not a number of bytes: write for instance '256MiB', '1.5g' or "
            "'100kB', with B, kB, MB, GB, TB, PB (powers of 1000), or KiB, MiB, GiB, TiB, PiB, or "
            "k, m, g, t, p (powers of 1024)"
        )
    decimals = found[2] or ""
    digits = int(found[1] + decimals) * int(10 ** int(found[3] or 0))
    return digits * unit // int(10 ** len(decimals))


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


def span(nbytes: int, offset: SupportsIndex, length: SupportsIndex | None) -> tuple[int, int]:
    """Return first byte and length of a range of a region; ValueError if it is not within that."""
    start = whole_number(offset, "offset")
    count = nbytes - start if length is None else whole_number(length, "length")
    if start < 0 or count < 0 or start + count > nbytes:
        raise ValueError(
            f"bytes {start} to {start + count} are not within the {nbytes} of the region"
        )
    return start, count
