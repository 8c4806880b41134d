"""`pagemove compare` keeps what it has when somebody presses Ctrl-C."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal

import pytest
from typer.testing import CliRunner

from pagemove.cli import app
from pagemove.compare import contention, costs, document, scenarios
from pagemove.compare.plan import QUICK, Bench
from pagemove.compare.verdicts import Verdict
from pagemove.measuring.endings import Stopped

pytestmark = pytest.mark.needs("move")

SMALL = dataclasses.replace(QUICK, pages=(1, 2), range_pages=8, sittings=3, rounds=3)


def bench(plan=SMALL, cpu=None):
    return Bench(plan, cpu, float("inf"), lambda *_: None)


def interrupt_at(monkeypatch, owner, name, number):
    """Press Ctrl-C when a function is called for that time, counted from 0."""
    real, calls = getattr(owner, name), itertools.count()

    def called(*arguments, **keywords):
        if next(calls) == number:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments, **keywords)

    monkeypatch.setattr(owner, name, called)


class TestCosts:
    def test_the_sizes_that_were_timed_are_kept(self, monkeypatch):
        interrupt_at(monkeypatch, costs, "_prepared", 2)
        with pytest.raises(Stopped) as caught:
            costs.measure(bench())
        found = caught.value.measured
        assert found.labels() == ["1", "2"]
        assert all(cost.ns.samples <= SMALL.rounds for cost in found.costs)
        assert "interrupted" in found.left_out[-1]

    def test_of_nothing_nothing_is_kept(self, monkeypatch):
        interrupt_at(monkeypatch, costs, "_prepared", 0)
        with pytest.raises(KeyboardInterrupt) as caught:
            costs.measure(bench())
        assert not isinstance(caught.value, Stopped)


@pytest.fixture
def sampled(monkeypatch):
    """Have every sample of faults count, also those that a busy machine spoils."""
    real, instead = contention._sample, contention._Sample(1000.0, 1.0, 1.0)
    monkeypatch.setattr(contention, "_sample", lambda *arguments: real(*arguments) or instead)


@pytest.mark.needs("two_cpus")
@pytest.mark.usefixtures("sampled")
def test_rounds_of_faults_are_kept(monkeypatch):
    plan = dataclasses.replace(SMALL, fault_pages=(1,), fault_rounds=50)
    # After the first round and before the second is over.
    interrupt_at(monkeypatch, contention, "_sample", 12)
    monkeypatch.setattr(contention, "_LEAST_SHARE", 0.0)
    cpu = max(os.sched_getaffinity(0))
    with pytest.raises(Stopped) as caught:
        contention.measure(bench(plan, cpu))
    assert caught.value.measured.pages() == [1]


@pytest.mark.needs("two_cpus")
@pytest.mark.usefixtures("sampled")
def test_interrupted_on_a_busy_machine_it_ends_all_the_same(monkeypatch):
    plan = dataclasses.replace(SMALL, fault_pages=(1,), fault_rounds=50)
    interrupt_at(monkeypatch, contention, "_sample", 12)
    monkeypatch.setattr(contention, "_LEAST_SHARE", 2.0)
    with pytest.raises(KeyboardInterrupt):
        contention.measure(bench(plan, max(os.sched_getaffinity(0))))


@pytest.mark.needs("two_cpus")
def test_a_thread_that_has_ended_before_it_is_looked_at_is_no_sample(monkeypatch):
    """So it is where other processes have the CPU of the thread that measures."""
    start = contention._Faulter.start

    def start_and_wait(faulter):
        start(faulter)
        faulter._thread.join()

    monkeypatch.setattr(contention._Faulter, "start", start_and_wait)
    faulter = contention._Faulter(256, max(os.sched_getaffinity(0)))
    try:
        assert contention._sample(faulter, 0.001, None) is None
    finally:
        faulter.close()


@pytest.fixture
def interrupted(monkeypatch):
    """Have the costs of small sizes interrupted, after the first of them; nothing else measured."""
    interrupt_at(monkeypatch, costs, "_prepared", 1)
    monkeypatch.setattr("pagemove.cli.compare.QUICK", SMALL, raising=False)
    measurement = scenarios.Measurement(costs.measure, 1.0)
    for key in scenarios.MEASUREMENTS.copy():
        monkeypatch.delitem(scenarios.MEASUREMENTS, key)
    for key in ("costs", "mappings", "outcomes", "faults"):
        monkeypatch.setitem(scenarios.MEASUREMENTS, key, measurement)


def test_what_was_measured_is_judged_and_the_rest_named(interrupted):
    argument = scenarios.run(SMALL, lambda *_: None)
    assert argument.interrupted
    assert set(argument.measured) == {"costs"}
    findings = {scenario.key: finding for scenario, finding in argument.findings}
    for key in ("mappings", "outcomes", "faults"):
        assert findings[key].verdict is Verdict.UNMEASURED
        assert "interrupted before this was measured" in findings[key].why
    # Before that it may say that the differences drown in the noise.
    assert "remap_anon_pages against mremap: one page alone" in findings["one-unit"].why


def test_report_json_and_figure_are_written_and_the_status_is_130(interrupted, tmp_path):
    pytest.importorskip("matplotlib")
    json_path, figure = tmp_path / "all.json", tmp_path / "figure.png"
    result = CliRunner().invoke(
        app, ["compare", "--quick", "--json", str(json_path), "--plot", str(figure)]
    )
    assert result.exit_code == 130, result.output
    assert result.stdout.count("Verdict: ") == len(scenarios.SCENARIOS)
    data = json.loads(json_path.read_text())
    assert data["interrupted"] is True
    assert {cost["size"] for cost in data["measurements"]["costs"]["costs"]} == {"1"}
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_json_on_standard_output_has_it_to_itself(interrupted):
    result = CliRunner().invoke(app, ["compare", "--quick", "--json", "-"])
    assert result.exit_code == 130
    assert json.loads(result.stdout)["schema"] == document.SCHEMA
    assert result.stderr == ""
