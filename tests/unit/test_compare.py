"""`pagemove compare`: every method and outcome really done, and the whole command once."""

from __future__ import annotations

import builtins
import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from pagemove import PAGE_SIZE, features
from pagemove.cli import app
from pagemove.compare import (
    contention,
    document,
    growth,
    methods,
    outcomes,
    plot,
    report,
    scenarios,
)
from pagemove.compare.plan import FULL, QUICK, Bench, Plan
from pagemove.compare.verdicts import Finding, Verdict
from pagemove.kernel import Problem
from pagemove.measuring import child, drawing, machine, outputs
from pagemove.measuring.endings import Unmeasurable


@pytest.mark.needs("move")
class TestRun:
    def argued(self, monkeypatch, measure):
        for key in scenarios.MEASUREMENTS:
            replaced = scenarios.Measurement(measure, 0.25)
            monkeypatch.setitem(scenarios.MEASUREMENTS, key, replaced)
        shares = []
        argument = scenarios.run(QUICK, lambda _what, share: shares.append(share))
        return argument, shares

    @pytest.mark.parametrize("error", [Unmeasurable("no way"), OSError(1, "no way")])
    def test_what_cannot_be_measured_says_why(self, monkeypatch, error):
        def measure(bench):
            bench.tick("trying", 0.5)
            raise error

        argument, shares = self.argued(monkeypatch, measure)
        assert argument.measured == {}
        assert shares == [0.125, 0.375, 0.625, 0.875, 1.0]
        for _, finding in argument.findings:
            assert finding.verdict is Verdict.UNMEASURED
            assert "no way" in finding.why
        console = Console(record=True, width=100, file=open("/dev/null", "w"))  # noqa: SIM115
        with console.file:
            report.show(argument, console)
        assert console.export_text().count("could not be measured: ") == len(scenarios.SCENARIOS)
        assert document.document(argument)["measurements"] == {}

    def test_where_pages_cannot_be_moved(self, monkeypatch):
        problem = Problem("MOVE", "no UFFD_FEATURE_MOVE", "boot another kernel", needed=True)
        found = dataclasses.replace(
            features(),
            userfaultfd_user_mode=False,
            userfaultfd_device=False,
            userfaultfd_syscall=False,
            uffd_features=(),
            problems=(problem,),
        )
        monkeypatch.setattr(scenarios, "features", lambda: found)

        def measure(bench):
            raise AssertionError("measured what cannot be")

        argument, _ = self.argued(monkeypatch, measure)
        for _, finding in argument.findings:
            assert finding == Finding(
                Verdict.UNMEASURED, "no UFFD_FEATURE_MOVE; `pagemove doctor` says what to do"
            )

    def test_a_figure_of_nothing(self, monkeypatch, tmp_path):
        pytest.importorskip("matplotlib")

        def measure(bench):
            raise Unmeasurable("no way")

        argument, _ = self.argued(monkeypatch, measure)
        plot.draw(argument, tmp_path / "figure.svg")
        assert (tmp_path / "figure.svg").stat().st_size > 1000

    def test_scenarios_name_their_measurements(self):
        assert {s.measurement for s in scenarios.SCENARIOS} == set(scenarios.MEASUREMENTS)
        assert math.isclose(sum(m.share for m in scenarios.MEASUREMENTS.values()), 1)
        assert len({s.key for s in scenarios.SCENARIOS}) == len(scenarios.SCENARIOS)

    def test_plans(self):
        for plan in (QUICK, FULL):
            labels = [size.label for size in plan.sizes()]
            assert {"1", "4", "16", "64", "512", "whole range"} <= set(labels)
            assert plan.range_pages > max(plan.pages)


class TestChild:
    def test_failure_has_a_reason(self):
        with pytest.raises(Unmeasurable, match="KeyError: 'copying'"):
            child.run_in_child(growth.__name__, "grow_here", "copying", 1)

    def test_ends_in_time(self):
        with pytest.raises(Unmeasurable, match="did not end within"):
            child.run_in_child(growth.__name__, "grow_here", growth.MREMAP, 1000, timeout=0.001)


@pytest.mark.needs("move")
class TestReallyDone:
    def test_area_keeps_its_distance(self):
        before = growth.count_vmas()
        with machine.Area(3 * PAGE_SIZE) as area:
            area.fill(area.address, PAGE_SIZE)
            assert bytes(area.view(area.address, 2)) == b"ZZ"
            area.map(area.address, PAGE_SIZE)
            assert bytes(area.view(area.address, 2)) == b"\0\0"
        assert growth.count_vmas() <= before + 1

    @pytest.mark.parametrize("kind", methods.ALL, ids=lambda kind: kind.__name__)
    @pytest.mark.parametrize("slots", [1, 3])
    def test_every_means_brings_the_content_over_and_back(self, kind, slots):
        one = kind(methods.Size("4", 4, slots))
        try:
            length = one.size.nbytes
            for number, (_, source) in enumerate(one.pairs):
                one.source.view(source, length)[:] = bytes([65 + number]) * length
            before = growth.count_vmas()
            for _ in range(2):
                one.run()
                for number, (destination, _) in enumerate(one.pairs):
                    found = bytes(one.destination.view(destination, length))
                    assert found == bytes([65 + number]) * length
                one.restore()
                for number, (_, source) in enumerate(one.pairs):
                    found = bytes(one.source.view(source, length))
                    assert found == bytes([65 + number]) * length
            assert growth.count_vmas() <= before + 1
        finally:
            one.close()

    def test_few_moves_are_counted(self):
        data = child.run_in_child(growth.__name__, "grow_here", growth.MREMAP, 10)
        assert data["moves"] == 10
        assert data["ended_by"] is None
        assert data["points"][-1] == [10, 28]

    @pytest.mark.needs("fork")
    def test_outcomes(self):
        table = outcomes.measure(Bench(QUICK, None, 0.0, lambda *_: None))
        codes = {(c.situation, c.method): c.code for c in table.cells}
        own, other, kept, detecting = (
            outcomes.REMAP_ANON_PAGES,
            outcomes.MREMAP,
            outcomes.MREMAP_KEPT,
            outcomes.MREMAP_DETECTING,
        )
        expected = {
            outcomes.MAPPINGS_ADDED: ("0", "3", "2", "0"),
            outcomes.SOURCE_AFTERWARDS: ("hole", "unmapped", "hole", "hole"),
            outcomes.DESTINATION_OCCUPIED: ("EEXIST", "replaced", "replaced", "replaced"),
            outcomes.SOURCE_HOLE: ("ENOENT", "hole", "hole", "hole"),
            outcomes.DESTINATION_UNMAPPED: ("EINVAL", "mapped", "mapped", "mapped"),
            outcomes.CHILD_ALIVE: ("EBUSY", "moved", "moved", "moved"),
            outcomes.CHILD_GONE: ("EBUSY", "moved", "moved", "moved"),
        }
        assert codes == {
            (situation, name): code
            for situation, row in expected.items()
            for name, code in zip((own, other, kept, detecting), row, strict=True)
        }
        texts = {(c.situation, c.method): c.text for c in table.cells}
        assert texts[outcomes.SOURCE_AFTERWARDS, other].endswith("SIGSEGV")
        assert texts[outcomes.CHILD_GONE, own] == "EBUSY until unshare()"
        assert "untouched" in texts[outcomes.DESTINATION_OCCUPIED, own]
        assert outcomes.judge(table).verdict is Verdict.HOLDS

    @pytest.mark.needs("two_cpus")
    def test_a_sibling_runs(self):
        with machine.pinned() as cpu, machine.running_sibling(cpu) as sibling:
            machine.Chill()()
            assert 0 < sibling.share() <= 1.1
        assert machine.machine().pinned

    def test_alone_on_one_cpu(self, monkeypatch):
        monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0})
        with machine.pinned() as cpu:
            assert cpu is None
        assert not machine.machine().pinned
        bench = Bench(QUICK, None, 0.0, lambda *_: None)
        with pytest.raises(Unmeasurable, match="two CPUs"):
            contention.measure(bench)


class TestOutputs:
    def call(self, *arguments):
        return CliRunner().invoke(app, ["compare", "--quick", *arguments], env={"COLUMNS": "200"})

    @pytest.fixture(autouse=True)
    def _never_measure(self, monkeypatch):
        def run(*_):
            raise AssertionError("measured in spite of a wrong argument")

        monkeypatch.setattr(scenarios, "run", run)

    @pytest.mark.parametrize(
        ("option", "path", "reason"),
        [
            ("--plot", "figure.pdf", "must end in .png or .svg"),
            ("--plot", "nowhere/figure.png", "create it first"),
            ("--json", "nowhere/all.json", "create it first"),
            ("--json", ".", "is a directory"),
        ],
    )
    def test_refused_before_measuring(self, tmp_path, monkeypatch, option, path, reason):
        monkeypatch.chdir(tmp_path)
        result = self.call(option, path)
        assert result.exit_code == 2
        assert reason in result.output

    def test_without_matplotlib(self, tmp_path, monkeypatch):
        real = builtins.__import__

        def without(name, *arguments, **keywords):
            if name.startswith("matplotlib"):
                raise ImportError(name)
            return real(name, *arguments, **keywords)

        monkeypatch.setattr(builtins, "__import__", without)
        result = self.call("--plot", str(tmp_path / "figure.png"))
        assert result.exit_code == 2
        assert "pip install 'pagemove[plot]'" in result.output
        assert not (tmp_path / "figure.png").exists()

    def test_unwritable(self, tmp_path, monkeypatch):
        monkeypatch.setattr(outputs.os, "access", lambda *_: False)
        with pytest.raises(outputs.UnusableOutput, match="may not be written"):
            outputs.check_file(tmp_path / "all.json")


def test_progress_bar_keeps_its_width(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    widths = set()
    for what in ("timing", "timing " + "a very long name of a measurement " * 3):
        with report.progress_bar() as progress:
            progress(what, 0.5)
        drawn = [line for line in capsys.readouterr().err.split("\r") if "timing" in line]
        assert drawn
        widths.update(line.count("\N{BOX DRAWINGS HEAVY HORIZONTAL}") for line in drawn)
    assert len(widths) == 1
    assert widths.pop() >= 20


def test_progress_is_drawn_on_a_terminal_only(capsys):
    with report.progress_bar() as progress:
        progress("timing", 0.5)
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""


def test_labels_move_apart_in_order():
    placed = drawing.spread_apart([1.0, 1.0, 5.0, 1.1], 1.0)
    assert placed[2] == 5.0
    assert placed[3] > max(placed[:2])
    assert min(abs(a - b) for a in placed for b in placed if a is not b) >= 0.99


def test_labels_of_two_lines_have_the_room_of_two():
    one, two, next_one = sorted(drawing.spread_apart([0.0, 0.1, 0.2], 1.0, [1, 2, 1]))
    assert two - one >= 1.49
    assert next_one - two >= 1.49


def _checked(text: str, folder: Path, plan: Plan) -> None:
    """Look at what a run has printed and written of all scenarios."""
    for scenario in scenarios.SCENARIOS:
        assert scenario.title in text
    assert text.count("Verdict: ") == len(scenarios.SCENARIOS)
    assert "timing" not in text
    data = json.loads((folder / "all.json").read_text())
    assert data["schema"] == document.SCHEMA
    assert data["machine"]["kernel"]
    assert data["machine"]["cpus"] >= 1
    assert isinstance(data["machine"]["pinned"], bool)
    assert [s["key"] for s in data["scenarios"]] == [s.key for s in scenarios.SCENARIOS]
    verdicts = {s["key"]: s["verdict"] for s in data["scenarios"]}
    assert set(verdicts.values()) <= {verdict.value for verdict in Verdict}
    assert verdicts["mappings"] == verdicts["outcomes"] == "holds"
    for cost in data["measurements"]["costs"]["costs"]:
        ns = cost["ns"]
        assert 0 < ns["lower"] <= ns["median"] <= ns["upper"]
        assert 1 <= ns["samples"] <= plan.sittings * plan.rounds
    growths = {g["method"]: g for g in data["measurements"]["mappings"]["growths"]}
    assert growths["remap_anon_pages"]["points"][-1][1] < 10
    if data["measurements"]["mappings"]["limit"] < 2 * plan.most_moves:
        assert growths["mremap"]["ended_by"] == "ENOMEM"


@pytest.mark.needs("move", "fork")
def test_everything_is_really_done_and_judged(tmp_path, monkeypatch):
    plan = dataclasses.replace(
        QUICK,
        seconds=3.0,
        pages=(1, 4),
        range_pages=64,
        sittings=1,
        most_moves=2_000,
        fault_rounds=2,
    )
    monkeypatch.setattr("pagemove.cli.compare.QUICK", plan, raising=False)
    command = ["compare", "--quick", "--json", str(tmp_path / "all.json")]
    done = CliRunner().invoke(app, command)
    assert (done.exit_code, done.stderr) == (0, "")
    _checked(done.stdout, tmp_path, plan)


@pytest.mark.slow
@pytest.mark.needs("move", "fork")
def test_the_quick_version_from_end_to_end(tmp_path):
    pytest.importorskip("matplotlib")
    json_path, figure = tmp_path / "all.json", tmp_path / "figure.png"
    outputs_named = ["--json", str(json_path), "--plot", str(figure)]
    done = subprocess.run(
        [sys.executable, "-m", "pagemove", "compare", "--quick", *outputs_named],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    _checked(done.stdout, tmp_path, QUICK)
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert len(figure.read_bytes()) > 50_000
