"""Array programs under `pagemove run` at parts of the memory that they need, against no limit.

Not one of `python -m benchmarks`: it takes minutes. ``--memopro PYTHON`` adds the same limits by
memopro in an interpreter that has it, if a command of it runs programs as ``COMMAND``.
"""

from __future__ import annotations

import argparse
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from pagemove.paging.sizes import nbytes_of, text_of

_HEAD = """
import hashlib, sys
import numpy as np
n = int(sys.argv[1]) << 17  # numbers of 8 bytes
random = np.random.default_rng(0)
def end(*arrays):
    digest = hashlib.sha256()
    for array in arrays:
        flat = np.ascontiguousarray(array).reshape(-1)
        for first in range(0, len(flat), 1 << 16):
            digest.update(flat[first:first + (1 << 16)].tobytes())
    print(digest.hexdigest())
"""

#: Each needs some times the megabytes that it is passed.
PROGRAMS = {
    "sum, five times": "x = np.arange(n) % 1000\nend([int(x.sum()) for _ in range(5)])",
    "add in place": "x = np.zeros(n)\nfor i in range(5):\n    x += i\nend(x)",
    "expression": "x = np.linspace(0, 1, n // 4)\ny = np.sqrt(x * x + 2 * x + 1) - x\nend(y)",
    "sort": "x = random.integers(1 << 40, size=n // 2)\nx.sort()\nend(x)",
    "standardise": (
        "x = random.standard_normal((n // 32, 16))\nx -= x.mean(axis=0)\nx /= x.std(axis=0)\nend(x)"
    ),
    "matrix product": (
        "m = int((n // 3) ** 0.5)\na = (np.arange(m * m) % 97.0).reshape(m, m)\n"
        "end((a @ a.T)[::64])"
    ),
    "transform": ("x = random.standard_normal(n // 4)\nend(np.abs(np.fft.rfft(x))[::64].round(6))"),
    "stencil": (
        "m = int((n // 2) ** 0.5)\nx = np.zeros((m, m))\nx[0] = 1\n"
        "for _ in range(3):\n    y = x.copy()\n"
        "    y[1:-1, 1:-1] = (x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:]) / 4\n"
        "    x = y\nend(x)"
    ),
    "take rows": (
        "x = np.arange(n // 2, dtype=float).reshape(-1, 256)\n"
        "end(x[random.integers(len(x), size=len(x) // 4)].sum(axis=1))"
    ),
    "unique": "x = random.integers(1 << 16, size=n // 3)\nend(*np.unique(x, return_counts=True))",
}

_SHARES = (75, 50, 30)


class Cost(NamedTuple):
    """What one run took, in seconds, and what it printed."""

    elapsed: float
    cpu: float
    printed: str
    said: str


def run(command: list[str], program: str, megabytes: int) -> Cost:
    """Run a program to its end."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [*command, "-c", _HEAD + program, str(megabytes)],
        capture_output=True,
        text=True,
        check=True,
    )
    elapsed, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(elapsed, cpu, done.stdout, done.stderr)


def needed(said: str) -> int:
    """Return the most bytes of arrays, as the report says."""
    found = re.search(r"at most ([\d.]+ \w+) at a time", said)
    assert found is not None, said
    return nbytes_of(found[1], "need")


def main() -> None:
    """Measure, and print a table of ratios to no limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--spill", action="store_true", help="to a file, not compressed")
    parser.add_argument("--only", default="", help="programs with this in their names")
    parser.add_argument("--memopro", nargs="+", metavar="WORD", help="{limit} is a number of bytes")
    options = parser.parse_args()
    totals: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        paged = [sys.executable, "-m", "pagemove", "run", "--report"]
        paged += ["--spill", folder] if options.spill else []
        for name, program in PROGRAMS.items():
            if options.only not in name:
                continue
            first = run([*paged, "--limit", "64GiB"], program, options.megabytes)
            need = needed(first.said)
            ways = {"none": [sys.executable], "no pressure": [*paged, "--limit", "64GiB"]}
            for share in _SHARES:
                limit = str(need * share // 100)
                ways[f"{share} %"] = [*paged, "--limit", limit]
                if options.memopro:
                    words = [word.replace("{limit}", limit) for word in options.memopro]
                    ways[f"memopro {share} %"] = words
            measure(name, program, ways, need, options, totals)
    for way, ratios in totals.items():
        print(f"median of all, {way}: {statistics.median(ratios):.2f} x elapsed")


def measure(
    name: str,
    program: str,
    ways: dict[str, list[str]],
    need: int,
    options: argparse.Namespace,
    totals: dict[str, list[float]],
) -> None:
    """Run one program all ways in turn, and print its lines."""
    costs: dict[str, list[Cost]] = {way: [] for way in ways}
    for _ in range(options.passes):
        for way, command in ways.items():
            costs[way].append(run(command, program, options.megabytes))
    print(f"{name} ({text_of(need)})")
    plain = costs.pop("none")
    elapsed, cpu = (
        statistics.median(getattr(one, what) for one in plain) for what in Cost._fields[:2]
    )
    print(f"    no limit: {elapsed:.2f} s, {cpu:.2f} s of CPU")
    for way, some in costs.items():
        assert {one.printed for one in some} == {plain[0].printed}, f"{name}: other results"
        ratio = statistics.median(one.elapsed for one in some) / elapsed
        busy = statistics.median(one.cpu for one in some) / cpu
        totals.setdefault(way, []).append(ratio)
        print(f"    {way}: {ratio:.2f} x elapsed, {busy:.2f} x CPU", flush=True)


if __name__ == "__main__":
    main()
