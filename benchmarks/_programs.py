"""Array programs under `pagemove run` at parts of the memory that they need, against no limit.

Not one of `python -m benchmarks`: it takes minutes. All ways to run a program are interleaved, and
what is compared are medians, with and without what it takes to start (an empty program, run the
same way). ``--memopro PYTHON`` names an interpreter with memopro 0.1.10, for the same limits by it;
``--zram`` measures the kernel's swap on zram in a memory control group, as root.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from benchmarks import _zram
from benchmarks._array_programs import HEAD, PROGRAMS
from benchmarks._measure import Unmeasurable
from pagemove.paging.sizes import nbytes_of, text_of

_SHARES = (75, 50, 30)
_NO_LIMIT = "64GiB"
#: The process may have so much beside its libraries, what is resident, and the store.
_BESIDE = 32 << 20

#: The same limit for the same arrays; the process's own memory is not in it either.
_MEMOPRO = """
import sys
limit, code = int(sys.argv[1]), sys.argv[3]
sys.argv[1:] = sys.argv[4:]
from memopro.rt import transparent
with transparent(limit, threshold="1MiB", process_budget=False):
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
"""
_OWN_MEMORY = "end([])\nsys.stderr.write(open('/proc/self/status').read())"


class Cost(NamedTuple):
    """What one run took, in seconds, and what it printed."""

    elapsed: float
    cpu: float
    printed: str
    said: str

    def size(self, pattern: str) -> int:
        """Return a size that it has said."""
        found = re.search(pattern, self.said)
        assert found is not None, self.said
        return nbytes_of(found[1].replace("kB", "KiB"), "size")


def run(command: list[str], program: str, megabytes: int, limit: int = 0) -> Cost:
    """Run a program to its end, under a control group's limit if there is one."""
    with contextlib.ExitStack() as undo:
        if limit:
            group = undo.enter_context(_zram.group(limit))
            enter = f'echo $$ >{shlex.quote(str(group))}/cgroup.procs; exec "$@"'
            command = ["sh", "-c", enter, "sh", *command]
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as said:
            start = time.perf_counter()
            child = subprocess.Popen(
                [*command, "-c", HEAD + program, str(megabytes)], stdout=out, stderr=said
            )
            _, status, used = os.wait4(child.pid, 0)
            elapsed = time.perf_counter() - start
            child.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0)
            said.seek(0)
            cost = Cost(elapsed, used.ru_utime + used.ru_stime, out.read(), said.read())
    if limit and child.returncode == -signal.SIGKILL:
        raise Killed
    assert child.returncode == 0, f"{command} ended with {child.returncode}: {cost.said}"
    return cost


class Killed(Exception):  # noqa: N818 (what a run came to, and no error of this program)
    """A program had more than its control group may have."""


class Ways:
    """The commands that run a program under a limit."""

    def __init__(self, options: argparse.Namespace, folder: str) -> None:
        self._options = options
        self.paged = [sys.executable, "-m", "pagemove", "run", "--report"]
        self.paged += ["--spill", folder] if options.spill else []
        empty = run([*self.paged, "--limit", _NO_LIMIT], "end([])", options.megabytes)
        self.beside = empty.size(r"process at most ([\d.]+ \w+)") + _BESIDE
        plain = run([sys.executable], _OWN_MEMORY, options.megabytes)
        self.own = plain.size(r"RssAnon:\s*(\d+ kB)")
        starts: dict[str, list[tuple[float, float]]] = {}
        for _ in range(2 * options.passes + 1):
            for way, (command, _) in self.of(64 << 20).items():
                starts.setdefault(_kind(way), []).append(
                    run(command, "end([])", options.megabytes)[:2]
                )
        self._starts = {way: _medians(some) for way, some in starts.items()}

    def start(self, way: str) -> tuple[float, float]:
        """Return what an empty program takes that is run this way."""
        return self._starts[_kind(way)]

    def of(self, need: int) -> dict[str, tuple[list[str], int]]:
        """Return the ways to run what needs so many bytes, by name, each with a group's limit."""
        ways = {
            "none": ([sys.executable], 0),
            "no pressure": ([*self.paged, "--limit", _NO_LIMIT], 0),
        }
        for share in _SHARES:
            limit = need * share // 100
            ways[f"{share} %"] = ([*self.paged, "--limit", str(limit)], 0)
            if self._options.memopro:
                ways[f"memopro {share} %"] = (
                    [self._options.memopro, "-c", _MEMOPRO, str(limit)],
                    0,
                )
            if self._options.zram:
                ways[f"zram {share} %"] = ([sys.executable], limit + self.own)
        return ways


def main() -> None:
    """Measure, and print a table of ratios to no limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--spill", action="store_true", help="a directory for what has no room")
    parser.add_argument("--only", default="", help="programs with this in their names")
    parser.add_argument("--memopro", metavar="PYTHON", help="an interpreter that has it")
    parser.add_argument("--zram", action="store_true", help="swap on zram, too; needs root")
    options = parser.parse_args()
    ratios: dict[str, list[tuple[float, float]]] = {}
    with contextlib.ExitStack() as undo:
        folder = undo.enter_context(tempfile.TemporaryDirectory())
        if options.zram:
            try:
                print("zram:", undo.enter_context(_zram.swap(16 * options.megabytes << 20)))
            except Unmeasurable as error:
                print(f"no comparison with zram: {error}")
                options.zram = False
        ways = Ways(options, folder)
        for name, program in PROGRAMS.items():
            if options.only in name:
                measure(name, program, ways, options, ratios)
    for way, some in ratios.items():
        elapsed, cpu = _medians(some)
        worst, most = (max(column) for column in zip(*some, strict=True))
        print(
            f"all, {way}: median {elapsed:.2f} x elapsed, {cpu:.2f} x CPU; "
            f"at most {worst:.2f} x, {most:.2f} x"
        )


def measure(
    name: str,
    program: str,
    ways: Ways,
    options: argparse.Namespace,
    ratios: dict[str, list[tuple[float, float]]],
) -> None:
    """Run one program all ways in turn, and print its lines."""
    first = run([*ways.paged, "--limit", _NO_LIMIT], program, options.megabytes)
    need = first.size(r"at most ([\d.]+ \w+) at a time")
    # What it has beside its arrays is not limited: of a transform, its plan.
    beside = max(ways.beside, first.size(r"process at most ([\d.]+ \w+)") - need + _BESIDE)
    costs: dict[str, list[Cost]] = {}
    killed: set[str] = set()
    for _ in range(options.passes):
        for way, (command, limit) in ways.of(need).items():
            try:
                cost = run(command, program, options.megabytes, limit)
            except Killed:
                killed.add(way)
            else:
                costs.setdefault(way, []).append(cost)
    for way in killed:
        costs.pop(way, None)
    medians = {way: _medians([each[:2] for each in some]) for way, some in costs.items()}
    print(f"{name} ({text_of(need)})")
    plain = medians.pop("none")
    print(f"    no limit: {plain[0]:.2f} s, {plain[1]:.2f} s of CPU")
    computing = {way: _less(some, ways.start(way)) for way, some in medians.items()}
    plain_computing = _less(plain, ways.start("none"))
    for way in medians:
        others = {each.printed for each in costs[way]}
        assert others == {costs["none"][0].printed}, f"{name}, {way}: other results"
        ratio = _ratio(medians[way], plain)
        only = _ratio(computing[way], plain_computing)
        ratios.setdefault(way, []).append(ratio)
        ratios.setdefault(f"{way}, started", []).append(only)
        print(
            f"    {way}: {ratio[0]:.2f} x elapsed, {ratio[1]:.2f} x CPU; "
            f"started: {only[0]:.2f} x, {only[1]:.2f} x",
            flush=True,
        )
    for way in sorted(killed):
        print(f"    {way}: killed by the kernel, for want of memory")
    for share in _SHARES:
        for one in costs[f"{share} %"]:
            check_memory(one, need * share // 100, beside, name)
        for other in ("memopro", "zram"):
            if f"{other} {share} %" in medians:
                for when, costing in (("", medians), (", started", computing)):
                    both = _ratio(costing[f"{share} %"], costing[f"{other} {share} %"])
                    ratios.setdefault(f"against {other} at {share} %{when}", []).append(both)


def _kind(way: str) -> str:
    first = way.split()[0]
    return {"none": "plain", "zram": "plain", "memopro": "memopro"}.get(first, "paged")


def _medians(some: list[tuple[float, float]]) -> tuple[float, float]:
    elapsed, cpu = (statistics.median(column) for column in zip(*some, strict=True))
    return elapsed, cpu


def _less(cost: tuple[float, float], start: tuple[float, float]) -> tuple[float, float]:
    return max(cost[0] - start[0], 1e-3), max(cost[1] - start[1], 1e-3)


def _ratio(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return one[0] / other[0], one[1] / other[1]


def check_memory(cost: Cost, limit: int, beside: int, name: str) -> None:
    """Fail unless the process has kept to the limit, what is compressed, and 32 MiB more."""
    stored = re.search(r"at most ([\d.]+ \w+) of memory", cost.said)
    kept = nbytes_of(stored[1], "size") if stored else 0
    peak = cost.size(r"process at most ([\d.]+ \w+)")
    assert peak <= limit + kept + beside, (
        f"{name}: {text_of(peak)} with a limit of {text_of(limit)} and {text_of(kept)} kept"
    )


if __name__ == "__main__":
    main()
