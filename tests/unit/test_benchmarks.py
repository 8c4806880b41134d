"""Every benchmark runs, once and with tiny sizes, and its figures are figures."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import pagemove
from pagemove._native import remap
from support.selection import few

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(
    path.stem for path in (ROOT / "benchmarks").glob("*.py") if not path.stem.startswith("_")
)
TIMED = [name for name in NAMES if name.startswith(("one_", "many_"))]
OF_THEIR_OWN = ["import_time", "mappings_added", "memory_for_indices"]
OTHERS = [name for name in NAMES if name not in {*TIMED, *OF_THEIR_OWN}]

pytestmark = pytest.mark.needs("move")


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT))
    allowed = os.sched_getaffinity(0)
    yield importlib.import_module("benchmarks")
    assert os.sched_getaffinity(0) == allowed


def findings(name: str, **changes: int) -> list[Any]:
    """Run one benchmark; skip the test where it cannot be run here."""
    import dataclasses

    report = importlib.import_module("benchmarks._report")
    effort = importlib.import_module("benchmarks._measure").TINY
    measure = importlib.import_module(f"benchmarks.{name}").measure
    answer = report.collect(measure, dataclasses.replace(effort, **changes))
    if isinstance(answer, str):
        pytest.skip(answer)
    return list(answer)


def _one_in_lean(names: list[str]) -> list[object]:
    return [names[0], *(pytest.param(name, marks=pytest.mark.slow) for name in names[1:])]


@pytest.mark.parametrize("name", _one_in_lean(TIMED))
def test_a_ratio_is_that_of_its_times(benchmarks: ModuleType, name: str) -> None:
    defects = remap.defects()
    found = findings(name)
    assert len(found) % 2 == 0, "kernels without the defect, and with it"
    for finding in found:
        assert finding.unit == "x"
        assert finding.figure.samples == 3
        assert 0 < finding.figure.lower <= finding.figure.median <= finding.figure.upper
        assert finding.subject_ns.median > 0
        assert finding.baseline_ns.median > 0
        assert finding.target is not None
        assert finding.reached == (finding.figure.median <= finding.target)
    assert remap.defects() == defects


def test_memory_for_indices(benchmarks: ModuleType) -> None:
    int64, int32 = findings("memory_for_indices", indices=few(400_000, 200_000))
    # An int64 array is used in place; an int32 one is converted, 8 bytes an index.
    assert int64.figure.median < 1.5
    assert 2 < int32.figure.median < 8


def test_mappings_added(benchmarks: ModuleType) -> None:
    ours, mremap, kept = findings("mappings_added", moves=500)
    assert ours.figure.median == 0
    assert mremap.figure.median >= 2 * 500
    assert kept.figure.median >= 500
    assert ours.target == 0
    assert ours.reached
    assert mremap.reached is None


def test_import_time(benchmarks: ModuleType) -> None:
    (finding,) = findings("import_time")
    assert finding.unit == "ms"
    assert 0 < finding.figure.median < 10_000


@pytest.mark.parametrize("name", _one_in_lean(OTHERS))
def test_the_others_are_measured(benchmarks: ModuleType, name: str) -> None:
    for finding in findings(name):
        figure = finding.figure
        assert 0 <= figure.lower <= figure.median <= figure.upper < math.inf
        if finding.unit != "x":
            continue
        assert figure.lower > 0
        assert finding.subject_ns.median > 0
        assert finding.baseline_ns.median > 0


def test_ratios_of_time_and_of_speed(benchmarks: ModuleType) -> None:
    paging = importlib.import_module("benchmarks._paging")
    # The first, which warms up, does not count.
    times = {"ours": iter([90.0, 2.0, 20.0, 2.0]), "theirs": iter([1.0, 4.0, 40.0, 4.0])}
    ways = [paging.Way(name, times[name].__next__) for name in times]
    samples = paging.in_turn(ways, 3)
    assert samples == {"ours": [2, 20, 2], "theirs": [4, 40, 4]}
    dearer = paging.cost(samples, "ours", "theirs", 0.4)
    faster = paging.speed(samples, "ours", "theirs", 1.9)
    assert (dearer.figure.median, dearer.at_least, dearer.reached) == (0.5, False, False)
    assert (faster.figure.median, faster.at_least, faster.reached) == (2, True, True)


def test_the_baselines_page_what_is_in_the_file(benchmarks: ModuleType) -> None:
    baselines = importlib.import_module("benchmarks._baselines")
    paging = importlib.import_module("benchmarks._paging")
    block, blocks = 1 << 16, 64
    nbytes, limit = block * blocks, 4 * block
    with paging.cached_file(nbytes) as file:
        for memory in (
            baselines.bare_loop(file.fd, nbytes, block),
            baselines.bare_loop(file.fd, nbytes, block, limit=limit),
            baselines.bare_loop(file.fd, nbytes, block, limit=limit, writable=True),
            baselines.copy_ahead(file.fd, nbytes, block, limit=limit),
        ):
            with contextlib.closing(memory):
                for _ in range(2):
                    assert baselines.sum_words(memory.address, nbytes) == file.total
                # Backwards nothing that was read ahead is of use.
                backwards = np.arange(blocks, dtype=np.uint64)[::-1] * np.uint64(block)
                before = memory.faults
                baselines.touch_each(memory.address, backwards)
                assert memory.faults - before <= blocks


def test_a_baseline_writes_back(benchmarks: ModuleType) -> None:
    baselines = importlib.import_module("benchmarks._baselines")
    paging = importlib.import_module("benchmarks._paging")
    block, blocks = 1 << 14, 32
    nbytes = block * blocks
    with (
        paging.cached_file(nbytes) as file,
        contextlib.closing(
            baselines.bare_loop(file.fd, nbytes, block, limit=4 * block, writable=True)
        ) as memory,
    ):
        offsets = np.arange(blocks, dtype=np.uint64) * np.uint64(block)
        # Blocks that come for a write, and blocks that are written after they came for a read.
        baselines.touch_each(memory.address, offsets[::2], write=1)
        for offset in offsets[1::2]:
            both = np.array([offset, offset + np.uint64(8)], np.uint64)
            baselines.touch_each(memory.address, both[:1])
            baselines.touch_each(memory.address, both[1:], write=2)
        baselines.sum_words(memory.address, nbytes)
        baselines.sum_words(memory.address, nbytes)
        words = np.frombuffer(os.pread(file.fd, nbytes, 0), np.uint64).reshape(blocks, -1)
        assert (words[::2, 0] == 1).all()
        assert (words[1::2, 1] == 2).all()


def test_the_runner_asks_every_question(benchmarks: ModuleType) -> None:
    modules = importlib.import_module("benchmarks.__main__").MODULES
    assert sorted(module.__name__.removeprefix("benchmarks.") for module in modules) == NAMES
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    for name in NAMES:
        assert f"`{name}`" in readme


def test_the_report_says_what_was_missed(
    benchmarks: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measuring = importlib.import_module("benchmarks._measure")
    report = importlib.import_module("benchmarks._report")
    three = measuring.spread([1.0, 2.0, 3.0])

    def measure(effort: object) -> list[Any]:
        return [
            measuring.Finding("slow", "fast", three, 1.5),
            measuring.Finding("small", "nothing", three, 2, unit="MiB"),
            measuring.Finding("other", "nothing", three, None, unit="mappings", note="so be it"),
            measuring.Finding("fast", "slow", three, 1.75, at_least=True),
            measuring.Finding("kept", "all", three, 2.5, unit="%", at_least=True),
        ]

    def impossible(effort: object) -> list[Any]:
        raise measuring.Unmeasurable("not on this machine")

    measure.__module__ = impossible.__module__ = "benchmarks._report"
    report.run([measure], ["--tiny", "--json", str(tmp_path / "figures.json")])
    printed = capsys.readouterr().out
    assert "2 of 4 figures reached" in printed
    assert "≤ 1.50 x" in printed
    assert "≥ 1.75 x" in printed
    assert "2.00 x" in printed
    assert "1.50 x - 2.50 x" in printed
    assert "so be it" in printed
    document = json.loads((tmp_path / "figures.json").read_text())
    figures = document["questions"][0]["figures"]
    assert [figure["reached"] for figure in figures] == [False, True, None, True, False]
    assert [figure["at_least"] for figure in figures] == [False] * 3 + [True] * 2
    assert figures[0]["figure"]["median"] == 2
    assert document["machine"]["page_size"] == pagemove.PAGE_SIZE

    report.run([impossible], ["--tiny"])
    assert "not on this machine" in capsys.readouterr().out


def test_a_stale_answer_is_measured_again(benchmarks: ModuleType) -> None:
    measuring = importlib.import_module("benchmarks._measure")
    report = importlib.import_module("benchmarks._report")
    calls = []

    def measure(effort: object) -> list[Any]:
        calls.append(effort)
        if len(calls) < report._ATTEMPTS:
            raise measuring.Disturbed("once more")
        return []

    assert report.collect(measure, measuring.TINY) == []
    assert len(calls) == report._ATTEMPTS


def test_ratios_are_taken_within_a_round(
    benchmarks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring = importlib.import_module("benchmarks._measure")
    # The machine becomes ten times slower half way: no ratio may notice.
    samples = {"base": [9.0, 1.0, 1.0, 10.0], "subject": [9.0, 2.0, 2.0, 20.0]}
    monkeypatch.setattr(measuring, "interleave", lambda *_, **__: samples)
    tasks = [measuring.Task(name, lambda: None) for name in samples]
    (finding,) = measuring.ratios(tasks[0], [(tasks[1], 1.0)], 3)
    assert math.isclose(finding.figure.median, 2)
    assert finding.figure.lower == finding.figure.upper == 2
    assert finding.reached is False


def test_the_baseline_is_built_where_there_is_a_compiler(
    benchmarks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring = importlib.import_module("benchmarks._measure")
    naive = importlib.import_module("benchmarks._naive")
    naive._library.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    with pytest.raises(measuring.Unmeasurable, match="no-such-compiler"):
        naive.Naive()
    monkeypatch.delenv("CC")
    if shutil.which("cc"):
        naive.Naive()
        assert not list(Path(tempfile.gettempdir()).glob("*/naive.so"))
    assert "benchmarks._naive" in sys.modules
