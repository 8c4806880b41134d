"""paging/sizes.py: "256MiB" as a number, and a number as "256 MiB"."""

from __future__ import annotations

import numpy as np
import pytest

from pagemove.paging.sizes import nbytes_of, text_of


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("256MiB", 256 << 20),
        ("1.5 GiB", 3 << 29),
        ("100kB", 100_000),
        ("100KB", 100_000),
        ("100 kib", 102_400),
        ("17", 17),
        ("17B", 17),
        ("  2 TiB ", 2 << 40),
        ("1PB", 10**15),
        ("0.5MB", 500_000),
        ("0.1 KiB", 102),
        ("1.000000000000001 PiB", 1125899906842625),
        ("0", 0),
        # As docker run --memory, MemoryMax= and java -Xmx have it.
        ("1g", 1 << 30),
        ("4k", 4096),
        ("2G", 2 << 30),
        ("1.5g", 3 << 29),
        ("64M", 64 << 20),
        ("1 t", 1 << 40),
        ("8Ki", 8192),
        ("1GB", 10**9),
        ("1e9", 10**9),
        ("1.5E+3", 1500),
        ("2e3 kB", 2_000_000),
        ("1e26", 10**26),
        ("9" * 26, 10**26 - 1),
        (4096, 4096),
        (np.int64(7), 7),
        (-1, -1),
    ],
)
def test_nbytes(text, nbytes):
    found = nbytes_of(text, "limit")
    assert found == nbytes
    assert type(found) is int


@pytest.mark.parametrize(
    "text",
    [
        "",
        "MiB",
        "1.5.2MiB",
        "64x",
        "64 Kbit",
        "-1MiB",
        "1e",
        "1e-3",
        "1e3e3",
        "1e9999",
        "1gi b",
        "9" * 1000,
        "1,5 MiB",
        "0x10",
        "1 EiB",
        "٣MiB",
        "5 %",
    ],
)
def test_anything_else_is_refused_with_examples(text):
    with pytest.raises(ValueError, match="'256MiB'") as caught:
        nbytes_of(text, "resident_limit")
    assert f"resident_limit {text!r}" in str(caught.value)


@pytest.mark.parametrize("wrong", [1.5, None, b"1MiB", [1], True, np.False_])
def test_other_types(wrong):
    with pytest.raises(TypeError, match="limit must be a number of bytes or a string") as caught:
        nbytes_of(wrong, "limit")
    assert str(caught.value).endswith(f"not {wrong!r}")


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (17, "17 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (65536, "64 KiB"),
        (256 << 20, "256 MiB"),
        (3 << 29, "1.5 GiB"),
        (1_570_000_000, "1.46 GiB"),
        (1 << 50, "1 PiB"),
        (1 << 62, "4096 PiB"),
    ],
)
def test_text(nbytes, text):
    assert text_of(nbytes) == text
