"""`pagemove page`: the command line around a trial."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pagemove import StoreError, UnsupportedError
from pagemove.cli import app
from pagemove.paging import trial

CONTENTS = np.random.default_rng(12).bytes(700_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "data.bin"
    found.write_bytes(CONTENTS)
    return found


def call(*arguments: object):
    return CliRunner().invoke(app, ["page", *map(str, arguments)], env={"COLUMNS": "200"})


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "pagemove", "page", *map(str, arguments)]


@pytest.mark.needs("move")
class TestEndToEnd:
    @pytest.mark.parametrize("options", [[], ["--write"], ["--pattern", "random", "--write"]])
    def test_measures_and_leaves_the_file_as_it_is(self, path, tmp_path, options):
        done = subprocess.run(
            command(
                path,
                *("--limit", "256KiB", "--block", "16KiB", "--seconds", "0.3", *options),
                *("--json", tmp_path / "all.json", "--plot", tmp_path / "figure.png"),
            ),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert path.read_bytes() == CONTENTS
        assert done.stderr == ""
        assert "of data.bin (684 KiB), blocks of 16 KiB, at most 256 KiB resident" in done.stdout
        assert "How long faults took" in done.stdout
        assert "\x1b[" not in done.stdout
        data = json.loads((tmp_path / "all.json").read_text())
        assert data["plan"]["write"] == ("--write" in options)
        assert 0 < data["most_resident"] <= 256 << 10
        assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")

    def test_ctrl_c_ends_it_early(self, path):
        process = subprocess.Popen(
            command(path, "--limit", "256KiB", "--block", "4KiB", "--seconds", "60", "--write"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            # Its three threads run when there is something to be stopped.
            limit = time.monotonic() + 30
            while len(os.listdir(f"/proc/{process.pid}/task")) < 4:
                assert time.monotonic() < limit
                time.sleep(0.01)
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
        assert process.returncode == 0, err
        assert "stopped early" in out
        assert path.read_bytes() == CONTENTS


class TestRefused:
    @pytest.fixture(autouse=True)
    def _never_measure(self, monkeypatch):
        def run(*_):
            raise AssertionError("measured in spite of a wrong argument")

        monkeypatch.setattr(trial, "run", run)

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (["--limit", "lots"], "limit 'lots' is not a number of bytes"),
            (["--limit", "100KiB"], "less than four blocks of 64 KiB"),
            (["--block", "3KiB"], "a power of two"),
            (["--pattern", "spiral"], "sequential"),
            (["--seconds", "0"], "0.1"),
            (["--plot", "figure.pdf"], "must end in .png or .svg"),
            (["--json", "nowhere/all.json"], "create it first"),
        ],
    )
    def test_before_anything_is_touched(self, path, tmp_path, monkeypatch, arguments, reason):
        monkeypatch.chdir(tmp_path)
        result = call(path, *arguments)
        assert result.exit_code == 2
        assert reason in result.output

    def test_files_that_cannot_be_paged(self, tmp_path):
        (tmp_path / "empty").touch()
        for name, reason in (
            ("none", "No such file"),
            ("empty", "is empty"),
            (".", "is a directory"),
            ("/dev/zero", "is a character device"),
        ):
            result = call(tmp_path / name)
            assert result.exit_code == 2
            assert reason in result.output

    def test_help_says_that_writing_is_harmless_and_to_whom_not(self):
        text = " ".join(call("--help").output.replace("│", " ").split())
        assert "the file keeps its contents" in text
        assert "Not while another program writes to it" in text


@pytest.mark.parametrize(
    "error",
    [
        StoreError(28, "cannot write: no space", store="x", operation="write"),
        UnsupportedError(1, "userfaultfd: the remedy"),
    ],
)
def test_what_goes_wrong_is_said_in_one_line(path, monkeypatch, error):
    def run(*_):
        raise error

    monkeypatch.setattr(trial, "run", run)
    result = call(path)
    assert result.exit_code == 1
    assert f"Error: {error}" in result.output
    assert "Traceback" not in result.output
