"""`pagemove compare`: timing and judging with made-up figures, then everything really done once."""

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
    child,
    claims,
    contention,
    costs,
    document,
    growth,
    machine,
    means,
    outcomes,
    outputs,
    plot,
    report,
    scenarios,
)
from pagemove.compare.costs import COLD, WARM, Cost, Costs
from pagemove.compare.measure import (
    Crossover,
    Spread,
    Task,
    below,
    crossovers,
    interleave,
    spread,
)
from pagemove.compare.plan import FULL, QUICK, Bench, Unmeasurable
from pagemove.compare.verdicts import Finding, Verdict
from pagemove.remedies import Problem

OWN = means.RemapAnonPages.name


def exactly(value: float) -> Spread:
    return Spread(value, value * 0.99, value * 1.01, 9)


class TestSpread:
    @pytest.mark.parametrize(
        ("samples", "expected"),
        [
            ([7], Spread(7, 7, 7, 1)),
            ([4, 1, 3, 2, 5], Spread(3, 2, 4, 5)),
            ([1, 2, 3, 4], Spread(2.5, 1.75, 3.25, 4)),
            ([5, 5, 5, 5_000_000], Spread(5, 5, 1_250_003.75, 4)),
        ],
    )
    def test_median_and_quartiles(self, samples, expected):
        assert spread(samples) == expected

    def test_of_nothing(self):
        with pytest.raises(ValueError, match="no measurements"):
            spread([])

    @pytest.mark.parametrize(
        ("first", "second", "expected"),
        [
            (Spread(10, 9, 11, 9), Spread(20, 12, 40, 9), True),
            (Spread(20, 19, 21, 9), Spread(10, 9, 11, 9), False),
            (Spread(10, 9, 11, 9), Spread(10.5, 9, 11, 9), False),
            (Spread(10, 5, 30, 9), Spread(20, 12, 40, 9), None),
            (Spread(20, 12, 40, 9), Spread(10, 5, 30, 9), None),
            (Spread(-1, -20, 20, 9), Spread(-1, -20, 20, 9), None),
            (Spread(10, 9, 11, 2), Spread(20, 19, 21, 9), None),
        ],
    )
    def test_below(self, first, second, expected):
        assert below(first, second) is expected


class TestInterleave:
    def test_turns_prepare_run_restore(self):
        log = []

        def task(name):
            return Task(
                name,
                lambda: log.append(name),
                prepare=lambda: log.append(f"prepare {name}"),
                restore=lambda: log.append(f"restore {name}"),
            )

        interleave([task("a"), task("b")], 2, before_group=lambda: log.append("--"))
        turn = {n: [f"prepare {n}", n, f"restore {n}"] for n in "ab"}
        assert log == ["--", *turn["a"], *turn["b"], "--", *turn["b"], *turn["a"]]

    def test_times_only_the_run(self):
        now = [0]

        def passing(ns):
            def pass_time():
                now[0] += ns

            return pass_time

        tasks = [
            Task("slow", passing(800), 4, prepare=passing(10_000), restore=passing(50_000)),
            Task("fast", passing(40), 2),
        ]
        times = interleave(tasks, 3, before_group=passing(7), clock=lambda: now[0])
        assert times == {"slow": [200.0] * 3, "fast": [20.0] * 3}

    def test_disturbed_measurements_are_repeated(self):
        class Doorbell:
            """Rings in the first run of a, and in every run of c."""

            def __init__(self):
                self.calls = []

            def start(self):
                pass

            def disturbed(self, elapsed):
                assert elapsed >= 0
                return self.calls == ["a"] or self.calls[-1] == "c"

        bell = Doorbell()
        tasks = [Task(name, lambda name=name: bell.calls.append(name)) for name in "abc"]
        times = interleave(tasks, 2, watch=bell)
        assert {name: len(samples) for name, samples in times.items()} == dict.fromkeys("abc", 2)
        assert {name: bell.calls.count(name) for name in "abc"} == {"a": 3, "b": 2, "c": 4}

    def test_one_measurement_a_round(self):
        tasks = [Task(name, lambda: None) for name in "abc"]
        times = interleave(tasks, 5)
        assert {name: len(samples) for name, samples in times.items()} == dict.fromkeys("abc", 5)
        assert interleave([], 3) == {}


class TestCrossovers:
    def test_interpolated_on_logarithmic_axes(self):
        (found,) = crossovers([1, 4, 16], [4, 4, 4], [1, 2, 8], ("flat", "rising"))
        assert found.cheaper == "flat"
        assert math.isclose(found.size, 8)

    def test_none(self):
        assert crossovers([1, 2, 4], [1, 2, 3], [2, 3, 4], ("a", "b")) == []

    def test_there_and_back(self):
        found = crossovers([1, 4, 16], [1, 9, 1], [3, 3, 3], ("a", "b"))
        assert [crossing.cheaper for crossing in found] == ["b", "a"]
        assert found == [Crossover(pytest.approx(2), "b"), Crossover(pytest.approx(8), "a")]

    def test_a_tie_is_no_crossing_by_itself(self):
        assert crossovers([1, 2, 4], [1, 3, 1], [2, 3, 2], ("a", "b")) == []
        (found,) = crossovers([1, 2, 4], [1, 3, 4], [2, 3, 2], ("a", "b"))
        assert found.cheaper == "b"


class TestFinding:
    @pytest.mark.parametrize(
        ("answers", "expected"),
        [
            ([True, True], Verdict.HOLDS),
            ([True, None], Verdict.HOLDS),
            ([True, False], Verdict.IN_PART),
            ([False, None], Verdict.FAILS),
            ([None, None], Verdict.UNMEASURED),
            ([], Verdict.UNMEASURED),
        ],
    )
    def test_of(self, answers, expected):
        assert Finding.of(answers, "figures").verdict is expected


def grown(means_name: str, added: int, moves: int, ended_by: str | None) -> growth.Growth:
    return growth.Growth(means_name, ((1, added // moves), (moves, added)), moves, ended_by)


class TestGrowthJudged:
    def judged(self, *growths):
        return growth.judge(growth.Mappings(65_530, growths))

    def test_holds(self):
        finding = self.judged(
            grown(growth.REMAP_ANON_PAGES, 1, 40_000, None),
            grown(growth.MREMAP, 65_400, 21_800, "ENOMEM"),
            grown(growth.MREMAP_KEPT, 80_000, 40_000, None),
        )
        assert finding.verdict is Verdict.HOLDS
        assert "3 mappings a move and ends with ENOMEM after 21,800" in finding.why
        assert "extrapolated: after about 32,765" in finding.why

    def test_fails_where_mremap_adds_none_and_moving_does(self):
        finding = self.judged(
            grown(growth.REMAP_ANON_PAGES, 80_000, 40_000, None),
            grown(growth.MREMAP, 0, 40_000, None),
            grown(growth.MREMAP_KEPT, 0, 40_000, None),
        )
        assert finding.verdict is Verdict.FAILS
        assert "extrapolated" in finding.why

    def test_in_part_where_neither_adds_any(self):
        names = (growth.REMAP_ANON_PAGES, growth.MREMAP, growth.MREMAP_KEPT)
        assert self.judged(*(grown(n, 0, 9, None) for n in names)).verdict is Verdict.IN_PART


class TestOutcomesJudged:
    def judged(self, *codes):
        places = [
            (outcomes.DESTINATION_OCCUPIED, outcomes.MREMAP),
            (outcomes.DESTINATION_OCCUPIED, outcomes.REMAP_ANON_PAGES),
            (outcomes.SOURCE_AFTERWARDS, outcomes.MREMAP),
            (outcomes.SOURCE_AFTERWARDS, outcomes.REMAP_ANON_PAGES),
        ]
        cells = (outcomes.Outcome(*p, c, c) for p, c in zip(places, codes, strict=True))
        return outcomes.judge(outcomes.Outcomes(tuple(cells))).verdict

    def test_holds(self):
        assert self.judged("replaced", "EEXIST", "unmapped", "hole") is Verdict.HOLDS

    def test_in_part(self):
        assert self.judged("EEXIST", "EEXIST", "unmapped", "hole") is Verdict.IN_PART

    def test_fails(self):
        assert self.judged("EEXIST", "replaced", "hole", "unmapped") is Verdict.FAILS


SIZES = (("1", 1), ("16", 16), ("512", 512))


def made_up(sibling=(False, True), huge=True, **by_means) -> Costs:
    """Costs as functions of (pages, caches, sibling), by the class name of the means."""
    found = []
    sizes = [(label, pages, False) for label, pages in SIZES]
    if huge:
        sizes.append(("one huge page", 512, True))
    for kind in means.ALL:
        cost = by_means.get(kind.__name__, lambda pages, caches, sibling: 1000.0 * pages)
        for label, pages, is_huge in sizes:
            for beside in sibling:
                for caches in (COLD, WARM):
                    ns = cost(1 if is_huge else pages, caches, beside)
                    ns = ns if isinstance(ns, Spread) else exactly(ns)
                    found.append(Cost(kind.name, label, pages, is_huge, caches, beside, ns))
    measured = Costs(tuple(found), (), {"nothing": exactly(60)}, 1 << 26, (), 0.99, 0.98)
    return dataclasses.replace(measured, crossings=costs.find_crossings(measured))


class TestOneUnitJudged:
    def test_holds_with_the_size_from_which_mremap_is_cheaper(self):
        finding = claims.one_unit(
            made_up(
                RemapAnonPages=lambda pages, *_: 1000 * pages,
                Mremap=lambda pages, *_: 64_000,
            )
        )
        assert finding.verdict is Verdict.HOLDS
        assert "one page alone: 1 against 64 us" in finding.why
        assert "from about 64 pages (alone) and 64 pages (beside a running thread)" in finding.why

    def test_fails(self):
        finding = claims.one_unit(made_up(RemapAnonPages=lambda *_: 9000, Mremap=lambda *_: 3000))
        assert finding.verdict is Verdict.FAILS

    def test_in_part_where_a_running_thread_changes_it(self):
        data = made_up(
            RemapAnonPages=lambda pages, caches, sibling: 9000 if sibling else 1000,
            Mremap=lambda *_: 3000,
        )
        assert claims.one_unit(data).verdict is Verdict.IN_PART

    def test_noise_is_no_answer(self):
        noisy = Spread(9000, 100, 20_000, 9)
        data = made_up(RemapAnonPages=lambda *_: noisy, Mremap=lambda *_: noisy)
        finding = claims.one_unit(data)
        assert finding.verdict is Verdict.UNMEASURED
        assert "noise" in finding.why

    def test_nothing_measured(self):
        nothing = dataclasses.replace(made_up(), costs=(), crossings=())
        for judge in (claims.one_unit, claims.detection, claims.copying):
            with pytest.raises(Unmeasurable):
                judge(nothing)


class TestDetectionJudged:
    def judged(self, can, cannot):
        return claims.detection(
            made_up(
                RemapAnonPages=lambda *_: 1000,
                MremapOccupied=lambda *_: 8000,
                DetectingMremap=lambda *_: can,
                DetectingMremapFailing=lambda *_: cannot,
            )
        )

    def test_holds(self):
        finding = self.judged(4000, 12_000)
        assert finding.verdict is Verdict.HOLDS
        assert "at 4 of 4 sizes; one page: 8 us become 12" in finding.why

    def test_in_part(self):
        assert self.judged(4000, 8000).verdict is Verdict.IN_PART

    def test_fails(self):
        assert self.judged(1000, 8000).verdict is Verdict.FAILS


class TestCopyingJudged:
    def test_in_part(self):
        finding = claims.copying(
            made_up(
                RemapAnonPages=lambda pages, *_: 4000,
                Memcpy=lambda pages, caches, _: pages * (1000 if caches == COLD else 250),
            )
        )
        assert finding.verdict is Verdict.IN_PART
        assert "cold caches, alone: they change places at 4.0 pages" in finding.why
        assert "warm caches, alone: they change places at 16" in finding.why

    def test_holds(self):
        data = made_up(RemapAnonPages=lambda *_: 10**7, Memcpy=lambda pages, *_: 100 * pages)
        finding = claims.copying(data)
        assert finding.verdict is Verdict.HOLDS
        assert f"{means.Memcpy.name} is cheaper at every size" in finding.why

    def test_fails(self):
        data = made_up(RemapAnonPages=lambda *_: 10, Memcpy=lambda pages, *_: 100 * pages)
        assert claims.copying(data).verdict is Verdict.FAILS


class TestContentionJudged:
    def judged(self, ours, theirs):
        lost = {OWN: ours, means.Mremap.name: theirs, means.MemcpyFresh.name: exactly(7000)}
        data = contention.Contention(
            exactly(1000),
            tuple(
                contention.Disturbance(name, pages, exactly(2000), lost[name], exactly(50))
                for pages in (1, 512)
                for name in lost
            ),
        )
        return contention.judge(data)

    def test_holds(self):
        finding = self.judged(exactly(2000), exactly(9000))
        assert finding.verdict is Verdict.HOLDS
        assert "2.0 us for remap_anon_pages, 9.0 us for mremap" in finding.why

    def test_fails(self):
        assert self.judged(exactly(8000), exactly(8000)).verdict is Verdict.FAILS

    def test_noise(self):
        noisy = Spread(8000, 0, 20_000, 5)
        assert self.judged(noisy, noisy).verdict is Verdict.UNMEASURED


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
            child.run_in_child("growth", "grow_here", "copying", 1)

    def test_ends_in_time(self):
        with pytest.raises(Unmeasurable, match="did not end within"):
            child.run_in_child("growth", "grow_here", growth.MREMAP, 1000, timeout=0.001)


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

    @pytest.mark.parametrize("kind", means.ALL, ids=lambda kind: kind.__name__)
    @pytest.mark.parametrize("slots", [1, 3])
    def test_every_means_brings_the_content_over_and_back(self, kind, slots):
        one = kind(means.Size("4", 4, slots))
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
        data = child.run_in_child("growth", "grow_here", growth.MREMAP, 10)
        assert data["moves"] == 10
        assert data["ended_by"] is None
        assert data["points"][-1] == [10, 28]

    @pytest.mark.needs("fork")
    def test_outcomes(self):
        table = outcomes.measure(Bench(QUICK, None, 0.0, lambda *_: None))
        codes = {(c.situation, c.means): c.code for c in table.cells}
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
        texts = {(c.situation, c.means): c.text for c in table.cells}
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


def test_progress_is_drawn_on_a_terminal_only(capsys):
    with report.progress_bar() as progress:
        progress("timing", 0.5)
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""


def test_labels_move_apart_in_order():
    placed = plot.spread_apart([1.0, 1.0, 5.0, 1.1], 1.0)
    assert placed[2] == 5.0
    assert placed[3] > max(placed[:2])
    assert min(abs(a - b) for a in placed for b in placed if a is not b) >= 0.99


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Everything really done, once."""
    folder = tmp_path_factory.mktemp("compare")
    outputs_named = ["--json", str(folder / "all.json")]
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        pass
    else:
        outputs_named += ["--plot", str(folder / "figure.png")]
    done = subprocess.run(
        [sys.executable, "-m", "pagemove", "compare", "--quick", *outputs_named],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done, folder


@pytest.mark.needs("move", "fork")
class TestEndToEnd:
    def test_prints_every_claim_and_verdict(self, quick):
        done, _ = quick
        for scenario in scenarios.SCENARIOS:
            assert scenario.title in done.stdout
        assert done.stdout.count("Verdict: ") == len(scenarios.SCENARIOS)
        assert "timing" not in done.stdout
        assert done.stderr == ""

    def test_json(self, quick):
        _, folder = quick
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
            assert 1 <= ns["samples"] <= QUICK.sittings * QUICK.rounds
        growths = {g["means"]: g for g in data["measurements"]["mappings"]["growths"]}
        assert growths["remap_anon_pages"]["points"][-1][1] < 10
        if data["measurements"]["mappings"]["limit"] < 2 * QUICK.most_moves:
            assert growths["mremap"]["ended_by"] == "ENOMEM"

    def test_figure(self, quick):
        _, folder = quick
        pytest.importorskip("matplotlib")
        figure = Path(folder / "figure.png").read_bytes()
        assert figure.startswith(b"\x89PNG")
        assert len(figure) > 50_000
