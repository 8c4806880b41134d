"""trial/: what shows it: orders, rates, a run on a file, tables, JSON, the figure."""

from __future__ import annotations

import dataclasses
import functools
import gc
import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pagemove import PagingStats, StoreError
from pagemove.paging import sources
from pagemove.paging.sources import Source
from pagemove.testing import Fault, FaultyStore
from pagemove.trial import document, plot, report, trying
from pagemove.trial.trying import Outcome, Pattern, Plan, Rates, Sample

BLOCK = 4096
N = 40 * BLOCK + 123
CONTENTS = np.random.default_rng(11).bytes(N)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "data.bin"
    found.write_bytes(CONTENTS)
    return found


def plan(path: Path, **changes: object) -> Plan:
    chosen = {
        "limit": 8 * BLOCK,
        "block_size": BLOCK,
        "pattern": Pattern.SEQUENTIAL,
        "write": False,
        "seconds": 0.25,
    }
    return Plan(**{"source": Source(str(path)), **chosen, **changes})


class TestOrders:
    def first(self, pattern, count, number):
        return list(itertools.islice(trying.blocks_in_order(pattern, count), number))

    def test_sequential(self):
        assert self.first(Pattern.SEQUENTIAL, 3, 8) == [0, 1, 2, 0, 1, 2, 0, 1]

    @pytest.mark.parametrize("count", [1, 3, 4, 10, 33])
    def test_strided_touches_every_block_once_a_round(self, count):
        found = self.first(Pattern.STRIDED, count, 2 * count)
        assert sorted(found[:count]) == sorted(found[count:]) == list(range(count))
        if count > trying.STRIDE:
            assert found[1] - found[0] == trying.STRIDE

    def test_random_is_the_same_every_time_and_reaches_everything(self):
        found = self.first(Pattern.RANDOM, 10, 5000)
        assert found == self.first(Pattern.RANDOM, 10, 5000)
        assert set(found) == set(range(10))


class TestRates:
    def sample(self, seconds, touches, nbytes, faults):
        return Sample(seconds, touches, nbytes, PagingStats(faults=faults))

    def test_of_an_interval(self):
        rates = Rates.between(self.sample(1, 10, 10**9, 4), self.sample(3, 30, 5 * 10**9, 9))
        assert rates == Rates(faults=2.5, gigabytes=2.0, hit_rate=0.75)

    def test_of_nothing(self):
        same = self.sample(1, 10, 1, 4)
        assert Rates.between(same, same) == Rates(0, 0, 1)

    def test_more_faults_than_touches(self):
        assert Rates.between(self.sample(0, 0, 0, 0), self.sample(1, 2, 2, 5)).hit_rate == 0


@pytest.mark.needs("move")
@pytest.mark.usefixtures("no_leak")
class TestRun:
    @pytest.mark.parametrize("write", [False, True])
    @pytest.mark.parametrize("pattern", Pattern)
    def test_touches_blocks_under_the_limit_and_changes_nothing(self, path, pattern, write):
        seen: list[Sample] = []
        outcome = trying.run(plan(path, pattern=pattern, write=write), seen.append)
        assert path.read_bytes() == CONTENTS
        assert outcome.samples == tuple(seen)
        first, last = outcome.samples[0], outcome.samples[-1]
        assert (first.touches, first.nbytes) == (0, 0)
        assert last.seconds >= 0.25
        assert last.nbytes > N
        assert 0 < outcome.most_resident <= 8 * BLOCK
        assert outcome.stats.evicted > 0
        assert outcome.nbytes == N
        assert not outcome.interrupted
        assert 0 <= outcome.rates.hit_rate <= 1
        assert (outcome.stats.bytes_written > 0) == write
        assert outcome.stats.dirty_nbytes == 0

    def test_samples_come_at_intervals(self, path):
        outcome = trying.run(plan(path, seconds=0.45), lambda _: None)
        apart = np.diff([sample.seconds for sample in outcome.samples])
        assert len(apart) >= 4
        assert np.median(apart) >= 0.09

    def test_read_only_files_can_be_read(self, path):
        path.chmod(0o400)
        assert trying.run(plan(path), lambda _: None).samples[-1].touches

    def test_a_file_of_less_than_a_block(self, tmp_path):
        (tmp_path / "small").write_bytes(b"small")
        outcome = trying.run(plan(tmp_path / "small", write=True, seconds=0.01), lambda _: None)
        assert (tmp_path / "small").read_bytes() == b"small"
        assert outcome.samples[-1].nbytes == 5 * outcome.samples[-1].touches

    def test_stopped_by_the_user(self, path):
        def observe(sample: Sample) -> None:
            if sample.touches:
                raise KeyboardInterrupt

        outcome = trying.run(plan(path, seconds=30, write=True), observe)
        assert outcome.interrupted
        assert outcome.samples[-1].seconds < 20
        assert outcome.stats.dirty_nbytes == 0
        assert path.read_bytes() == CONTENTS

    def test_changes_that_cannot_be_saved(self, path, monkeypatch, capsys):
        def faulty(named, *, writable, lock):
            fault = Fault("write", count=0, errno=28)
            return FaultyStore(named, writable=writable, lock=lock, faults=[fault])

        impatient = functools.partial(trying.PagedMemory, store_timeout=0)
        monkeypatch.setattr(sources, "FileStore", faulty)
        monkeypatch.setattr(trying, "PagedMemory", impatient)
        with pytest.raises(StoreError, match="ENOSPC"):
            trying.run(plan(path, limit=1 << 30, write=True), lambda _: None)
        gc.collect()
        assert "could not be saved" in capsys.readouterr().err
        assert path.read_bytes() == CONTENTS

    def test_planned(self, path):
        named = Source(str(path))
        found, nbytes = trying.planned(
            named, "1MiB", "8KiB", Pattern.RANDOM, write=True, seconds=2.0
        )
        assert nbytes == N
        assert found == Plan(named, 1 << 20, 8192, Pattern.RANDOM, True, 2.0)
        with pytest.raises(ValueError, match="less than four blocks"):
            trying.planned(named, "1KiB", "8KiB", Pattern.RANDOM, write=False, seconds=1)
        with pytest.raises(FileNotFoundError):
            trying.planned(
                Source(f"{path}.none"), "1MiB", "8KiB", Pattern.RANDOM, write=False, seconds=1
            )


@pytest.fixture
def outcome(path: Path) -> Outcome:
    """Something that did not happen, with numbers that are easy to find again."""
    stats = PagingStats(
        faults=1000,
        write_faults=70,
        soft_faults=30,
        prefetched=200,
        evicted=900,
        written_back=50,
        resident_nbytes=30 << 20,
        bytes_read=7 << 30,
        bytes_written=3 << 20,
        histogram=((10_000, 600), (20_000, 390), (3_000_000, 10)),
    )
    samples = tuple(
        Sample(
            second,
            5000 * second,
            second << 30,
            dataclasses.replace(
                stats,
                faults=500 * second,
                resident_nbytes=(31 - second) << 20,
                dirty_nbytes=1 << 20,
            ),
        )
        for second in range(3)
    )
    chosen = plan(path, limit=32 << 20, block_size=65536, write=True, seconds=2.0)
    return Outcome(chosen, 1 << 30, samples, 0.25, stats, interrupted=True)


class TestReport:
    def shown(self, outcome: Outcome) -> str:
        with Path("/dev/null").open("w") as nowhere:
            console = Console(record=True, width=100, file=nowhere)
            report.show(outcome, console)
        return console.export_text()

    def test_totals(self, outcome):
        text = self.shown(outcome)
        assert "sequential reads and rewrites of data.bin (1 GiB), blocks of 64 KiB" in text
        for what, value in {
            "time": "2.00 s",
            "touched": "10,000 blocks",
            "GB/s": "1.07",
            "faults": "1,000",
            "hit rate": "90.00%",
            "served without I/O": "30",
            "read ahead": "200 blocks",
            "evicted": "900 blocks",
            "resident at most": "31 MiB",
            "read": "7 GiB",
            "write faults": "70",
            "written": "3 MiB",
            "flush": "0.25 s",
            "fault latency": "10 us",
        }.items():
            assert re.search(rf"{what} +│ +{value} ", text), what
        assert "stopped early" in text
        assert "20 us" in text

    def test_histogram(self, outcome):
        text = self.shown(outcome)
        rows = re.findall(r"(?m)^ +([\d.]+ \w+) +(\d+) +(█*)", text)
        assert rows[0] == ("16.4 us", "600", "█" * 40)
        assert rows[1] == ("32.8 us", "390", "█" * 26)
        assert rows[-1] == ("4.19 ms", "10", "█")
        assert rows[2][1:] == ("0", "")

    def test_notes(self, outcome):
        small = dataclasses.replace(outcome, nbytes=1 << 20)
        assert "All of it fits below the limit" in self.shown(small)
        assert "fits below" not in self.shown(outcome)
        large = dataclasses.replace(outcome, nbytes=3 << 30)
        assert "no time for all of it" in self.shown(large)

    def test_no_faults_and_reading_only(self, outcome):
        plan = dataclasses.replace(outcome.plan, write=False)
        text = self.shown(dataclasses.replace(outcome, plan=plan, stats=PagingStats()))
        assert "latency" not in text
        assert "written" not in text
        assert "sequential reads of data.bin" in text

    def test_errors_are_shown(self, outcome):
        failed = dataclasses.replace(outcome.stats, retries=8, errors=2)
        assert re.search(
            r"retries, errors +│ +8, 2 ", self.shown(dataclasses.replace(outcome, stats=failed))
        )

    @pytest.mark.parametrize(
        ("ns", "text"),
        [(7, "7 ns"), (999, "999 ns"), (12_500, "12.5 us"), (3.2e6, "3.2 ms"), (2e9, "2 s")],
    )
    def test_durations(self, ns, text):
        assert report.duration_of(ns) == text

    def test_live_on_a_terminal(self, outcome, monkeypatch):
        monkeypatch.setenv("TERM", "xterm")  # on a dumb one nothing is drawn again
        with Path("/dev/null").open("w") as nowhere:
            console = Console(record=True, width=100, force_terminal=True, file=nowhere)
            with report.live(outcome.plan, 1 << 30, console) as observe:
                for sample in outcome.samples:
                    observe(sample)
        text = console.export_text()
        last = text[text.rindex("faults/s") :]
        assert re.search(r"faults/s +500 ", last)
        assert re.search(r"GB/s +1.07 ", last)
        assert re.search(r"hit rate +90.0% +━", last)
        assert re.search(r"resident +29 MiB +━", last)
        assert re.search(r"not yet written +1 MiB ", last)
        assert re.search(r"elapsed +2.0 of 2 s ", last)

    def test_nothing_elsewhere(self, outcome, capsys):
        with report.live(outcome.plan, 1 << 30, Console(stderr=True)) as observe:
            observe(outcome.samples[-1])
        assert capsys.readouterr().err == ""


class TestDocument:
    def test_holds_everything(self, outcome, path, tmp_path):
        document.write(outcome, tmp_path / "all.json")
        data = json.loads((tmp_path / "all.json").read_text())
        assert data["schema"] == document.SCHEMA
        assert data["machine"]["kernel"]
        assert data["plan"] == {
            "source": str(path),
            "limit": 32 << 20,
            "block_size": 65536,
            "pattern": "sequential",
            "write": True,
            "seconds": 2.0,
        }
        assert (data["nbytes"], data["interrupted"], data["flush_seconds"]) == (
            1 << 30,
            True,
            0.25,
        )
        assert data["rates"] == {"faults": 500.0, "gigabytes": 2**30 / 1e9, "hit_rate": 0.9}
        assert data["most_resident"] == 31 << 20
        assert data["stats"]["faults"] == 1000
        assert (data["stats"]["p50_ns"], data["stats"]["p99_ns"]) == (10_000, 20_000)
        assert data["stats"]["histogram"] == [[10_000, 600], [20_000, 390], [3_000_000, 10]]
        assert data["samples"][2] == {
            "seconds": 2,
            "touches": 10_000,
            "nbytes": 2 << 30,
            "faults": 1000,
            "resident_nbytes": 29 << 20,
            "dirty_nbytes": 1 << 20,
        }

    def test_has_no_secret(self, outcome):
        url = "redis://me:secret@host/0#a"
        plan = dataclasses.replace(outcome.plan, source=Source(url, {"password": "secret"}))
        text = json.dumps(document.document(dataclasses.replace(outcome, plan=plan)))
        assert "redis://me:...@host/0#a" in text
        assert "secret" not in text + repr(plan)

    def test_its_description_is_complete(self, outcome):
        data = document.document(outcome)
        names = {*data, *data["plan"], *data["rates"], *data["samples"][0]}
        described = set(re.findall(r"``(\w+)``", document.__doc__))
        assert names <= described

    def test_failures_are_texts(self, outcome):
        error = StoreError(5, "no way", store="x", operation="read", offset=0)
        stats = dataclasses.replace(outcome.stats, failures=(error,))
        data = document.document(dataclasses.replace(outcome, stats=stats))
        assert data["stats"]["failures"] == ["[Errno 5] no way"]


class TestFigure:
    @pytest.mark.parametrize("suffix", ["png", pytest.param("svg", marks=pytest.mark.slow)])
    def test_is_drawn(self, outcome, tmp_path, suffix):
        pytest.importorskip("matplotlib")
        plot.draw(outcome, tmp_path / f"figure.{suffix}")
        figure = (tmp_path / f"figure.{suffix}").read_bytes()
        assert len(figure) > 20_000
        assert figure.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")

    def test_of_next_to_nothing(self, outcome, tmp_path):
        pytest.importorskip("matplotlib")
        nothing = tuple(
            dataclasses.replace(each, stats=PagingStats()) for each in outcome.samples[:1]
        )
        for samples in (nothing * 2, outcome.samples[:2]):
            few = dataclasses.replace(outcome, samples=samples, stats=PagingStats())
            plot.draw(few, tmp_path / "figure.svg")
            assert "there were no faults" in text_of_figure(few, tmp_path)


def text_of_figure(outcome: Outcome, folder: Path) -> str:
    """Return the words in a figure, which an SVG file has only as shapes otherwise."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot.draw(outcome, folder / "words.svg")
    return (folder / "words.svg").read_text()


@pytest.mark.parametrize("seconds", [math.nan, math.inf, 0.0, -1.0, 1e9])
def test_seconds_that_never_end_are_refused(seconds):
    with pytest.raises(ValueError, match=rf"--seconds must be a number .* not {seconds}"):
        trying.planned(
            Source("nowhere"), "1g", "4k", trying.Pattern.RANDOM, write=False, seconds=seconds
        )
