"""What the examples of this folder share: a file larger than its limit, and what is measured.

A call is tried on a small array first, for what a library allocates once. Then it is made over the
paged array, and over the same values in memory. Said is whether the results are equal, what the
process grew by at most, and whether the region stayed within its limit.
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import pagemove

NBYTES = 32 << 20
LIMIT = 8 << 20
MIB = 1 << 20


def numbers(columns: int, dtype: str = "f4", nbytes: int = NBYTES) -> Any:
    """Make a table of so many bytes."""
    rows = nbytes // np.dtype(dtype).itemsize // columns
    values = np.random.default_rng(2014).standard_normal((rows, columns), "f4")
    return values.astype(dtype, copy=False)


@contextmanager
def paged(values: Any, **how: Any) -> Iterator[Any]:
    """Write an array to a file, and page it with a limit of a quarter."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "values.npy"
        np.save(path, values)
        yield pagemove.open_array(path, resident_limit=LIMIT, **how)


def memory(field: str) -> int:
    """Return a figure of the process as the kernel has it: VmRSS, VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = [line for line in lines if line.startswith(f"{field}:")]
    return int(found.split()[1]) << 10


def growth_of(call: Callable[[], Any]) -> tuple[Any, int]:
    """Return what a call returns, and what the process grew by at most meanwhile."""
    ctypes.CDLL(None).malloc_trim(0)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest value is from now on
    result = call()
    return result, memory("VmHWM") - before


class Shown:
    """What is shown of a library, and whether all of it was as it is said to be."""

    def __init__(self, package: str, region: Any) -> None:
        self._region = region
        self._as_said = True
        print(f"{package} {version(package)}: {NBYTES // MIB} MiB through {LIMIT // MIB} MiB")

    def call(
        self,
        what: str,
        call: Callable[[Any], Any],
        array: Any,
        values: Any,
        *,
        copies: bool = False,
        small: Any = None,
    ) -> Any:
        """Make a call over both arrays; `copies` is what is expected of it."""
        call(values[:4096] if small is None else small)
        result, growth = growth_of(lambda: call(array))
        copied = growth > LIMIT + NBYTES // 2
        resident = self._region.stats().resident_nbytes
        same = bool(np.array_equal(np.asarray(result), np.asarray(call(values)), equal_nan=True))
        self._as_said &= same and copied == copies and 0 < resident <= LIMIT
        print(
            f"{what}: {'the same' if same else 'ANOTHER result'}, "
            f"{'copies all' if copied else 'copies nothing large'} (the process grew by "
            f"{growth / MIB:.0f} MiB), {resident / MIB:.1f} MiB resident"
        )
        return result

    def view(self, what: str, view: Any, array: Any) -> None:
        """Say whether an array that the library returns is the paged memory."""
        shares = np.shares_memory(view, array)
        self._as_said &= shares
        print(f"{what}: {'the paged memory itself' if shares else 'A COPY'}")

    def check(self, what: str, right: bool) -> None:
        """Say something else."""
        self._as_said &= right
        print(f"{what}: {'yes' if right else 'NO'}")

    def end(self) -> None:
        """Exit with 0 if all was as said."""
        print("All as said." if self._as_said else "Not as said.")
        sys.exit(0 if self._as_said else 1)
