"""The examples of paged memory: run small, and their checks shown to notice what is wrong."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import pagemove
from support.examples import EXAMPLES, load

pytestmark = pytest.mark.needs("move")


@pytest.mark.parametrize(
    ("name", "arguments", "last"),
    [
        ("page_file", ["--nbytes", "3MiB", "--limit", "1MiB"], "Within the limit."),
        ("demo", ["--nbytes", "3MiB", "--limit", "1MiB"], "the proof"),
        ("kmeans", ["--nbytes", "2MiB", "--clusters", "5"], "bit for bit."),
        ("update_table", ["--nbytes", "2MiB", "--transfers", "300"], "bit for bit."),
        ("c_extension", ["--nbytes", "2MiB"], "bit for bit."),
    ],
)
def test_it_runs_as_a_script(name, arguments, last):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.rstrip().endswith(last)


class TestPageFile:
    @pytest.mark.parametrize("nbytes", [1, 65536, (5 << 20) + 17])
    def test_a_file_of_ones_own(self, nbytes, tmp_path, capsys):
        path = tmp_path / "file"
        path.write_bytes(np.random.default_rng(nbytes).bytes(nbytes))
        assert load("page_file").main([str(path), "--limit", "512KiB", "--block", "16KiB"]) == 0
        printed = capsys.readouterr().out
        assert printed.count(hashlib.sha256(path.read_bytes()).hexdigest()[:32]) == 2
        assert "The same bytes." in printed

    def test_notices_other_bytes_and_too_much_memory(self, tmp_path, capsys, monkeypatch):
        example = load("page_file")
        path = tmp_path / "file"
        path.write_bytes(b"x" * 100_000)
        seen = dict.fromkeys(("process", "faults", "prefetched", "p50", "p99"), 0)
        outcome = ("0" * 64, 1.0, {**seen, "region": 2 << 20})
        monkeypatch.setattr(example, "read_paged", lambda *_: outcome)
        assert example.main([str(path), "--limit", "1MiB"]) == 1
        printed = capsys.readouterr().out
        assert "They differ." in printed
        assert "Beyond the limit." in printed

    def test_refuses_what_is_no_file(self, tmp_path, capsys):
        (tmp_path / "empty").touch()
        for path in (tmp_path, tmp_path / "none", tmp_path / "empty"):
            assert load("page_file").main([str(path)]) == 2
            assert str(path) in capsys.readouterr().err


class TestKmeans:
    def test_each_centre_is_amid_the_rows_that_are_nearest_to_it(self, tmp_path):
        example = load("kmeans")
        example.make(tmp_path / "rows.npy", 4 << 20, 6)
        data = np.load(tmp_path / "rows.npy").astype(np.float64)
        found = example.kmeans(data, 6, 3)
        which = example.nearest(data, found)
        for number in np.unique(which):
            assert np.abs(data[which == number].mean(0) - found[number]).max() < 0.5
        assert len(np.unique(which)) > 3

    def test_takes_more_than_one_pass_under_the_limit(self, capsys):
        assert load("kmeans").main(["--nbytes", "3MiB", "--epochs", "3"]) == 0
        printed = capsys.readouterr().out
        evicted = re.search(r"evicted\W+(\d+) blocks", printed)
        assert evicted is not None
        assert int(evicted[1]) > 48  # more than there are

    def test_notices_other_centres(self, tmp_path, capsys, monkeypatch):
        example = load("kmeans")
        real, calls = example.kmeans, []

        def wrong(*arguments):
            calls.append(1)
            return real(*arguments) + len(calls)

        monkeypatch.setattr(example, "kmeans", wrong)
        assert example.main(["--nbytes", "1MiB"]) == 1
        assert "They differ." in capsys.readouterr().out


class TestUpdateTable:
    def test_money_is_kept_by_transfers(self, tmp_path):
        example = load("update_table")
        example.make(tmp_path / "accounts.npy", 100_000)
        accounts = pagemove.open_array(tmp_path / "accounts.npy", mode="c")
        before = accounts["cents"].sum()
        example.transfer(accounts, 500)
        assert accounts["cents"].sum() == before
        assert accounts["changes"].sum() == 1000

    def test_notices_a_change_that_was_lost(self, tmp_path, capsys, monkeypatch):
        example = load("update_table")
        monkeypatch.setattr(
            example.pagemove, "open_array", lost_updates(example.pagemove.open_array)
        )
        assert example.main(["--nbytes", "1MiB", "--transfers", "10"]) == 1
        assert "They differ." in capsys.readouterr().out


def lost_updates(open_array):
    """Let every array be private, so that nothing gets into the file."""
    return lambda path, mode, **options: open_array(path, mode="c", **options)


class TestCExtension:
    def test_notices_rows_that_were_not_sorted(self, capsys, monkeypatch):
        example = load("c_extension")
        monkeypatch.setattr(example, "sort_rows", lambda *_: None)
        assert example.main(["--nbytes", "1MiB"]) == 1
        printed = capsys.readouterr().out
        assert "The same counts." in printed
        assert "The rows differ." in printed

    def test_without_a_compiler(self, capsys, monkeypatch):
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setattr(shutil, "which", lambda _: None)
        assert load("c_extension").main([]) == 2
        assert "no C compiler" in capsys.readouterr().err
