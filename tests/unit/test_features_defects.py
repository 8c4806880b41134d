"""probing.py: which kernels have which defects."""

import pytest

from pagemove.kernel import DEFECTS
from pagemove.probing import (
    defects_of,
    stable_release,
)


class TestDefects:
    REFUSED, HUGE_ZERO, SPLIT = "CVE-2024-27007", "CVE-2026-31397", "split-spin"
    OF_THE_BATCH = ("stale-EAGAIN", "holes-spin")

    @pytest.mark.parametrize(
        ("release", "expected"),
        [
            ("6.7.12", (REFUSED,)),
            ("6.8.7", (REFUSED,)),
            ("6.8.8", (SPLIT,)),
            ("6.12.107", (SPLIT,)),
            ("6.15", (SPLIT,)),
            ("6.15.11", (SPLIT,)),
            ("6.16", (HUGE_ZERO, SPLIT)),
            ("6.17.13", (HUGE_ZERO, SPLIT)),
            ("6.18.0", (HUGE_ZERO, *OF_THE_BATCH, SPLIT)),
            ("6.18.0-rc3", (HUGE_ZERO, *OF_THE_BATCH, SPLIT)),
            ("6.18.19", (HUGE_ZERO, *OF_THE_BATCH, SPLIT)),
            ("6.18.20", (*OF_THE_BATCH, SPLIT)),
            ("6.18.43", (*OF_THE_BATCH, SPLIT)),
            ("6.18.44", OF_THE_BATCH),
            ("6.18.44-fc-v595", OF_THE_BATCH),
            ("6.19.0", (HUGE_ZERO, *OF_THE_BATCH, SPLIT)),
            ("6.19.9", (HUGE_ZERO, *OF_THE_BATCH, SPLIT)),
            ("6.19.10", (*OF_THE_BATCH, SPLIT)),
            ("7.0.1", (*OF_THE_BATCH, SPLIT)),
            ("7.1.13", (*OF_THE_BATCH, SPLIT)),
            ("7.2.5", (*OF_THE_BATCH, SPLIT)),
            ("7.2.6", (SPLIT,)),
            ("7.3.3", (SPLIT,)),
            ("7.3.4", ()),
            ("7.4.0", ()),
            # Distributions that count stable releases themselves: the numbers are true.
            ("6.8.7-200.fc39.x86_64", (REFUSED,)),
            ("6.8.12-4-pve", (SPLIT,)),
            ("6.12.43+deb13-amd64", (SPLIT,)),
            ("6.12.37-61.105.amzn2023.x86_64", (SPLIT,)),
            # Distributions that stay at .0: it may have every defect.
            ("6.8.0-51-generic", (REFUSED, HUGE_ZERO, *OF_THE_BATCH)),
            ("6.12.0-55.9.1.el10_0.x86_64", (HUGE_ZERO, *OF_THE_BATCH, SPLIT)),
            ("7.4.0-12.el11", (HUGE_ZERO, *OF_THE_BATCH, SPLIT)),
            ("nonsense", (REFUSED,)),
            ("", (REFUSED,)),
        ],
    )
    def test_of_a_release(self, release, expected):
        assert defects_of(release) == expected
        assert set(expected) <= set(DEFECTS)

    @pytest.mark.parametrize(
        ("release", "signature", "expected"),
        [
            ("6.8.0-51-generic", "Ubuntu 6.8.0-51.52-generic 6.8.12", "6.8.12"),
            ("6.18.44", "", "6.18.44"),
            ("6.8.0-51-generic", "something else", "6.8.0-51-generic"),
            ("6.8.0-51-generic", "Ubuntu 6.8.0-51.52-generic 6.8.x", "6.8.0-51-generic"),
        ],
    )
    def test_stable_release(self, release, signature, expected):
        assert stable_release(release, signature) == expected
