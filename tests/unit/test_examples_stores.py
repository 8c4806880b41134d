"""The examples of stores do what they say, and say what is not installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from support.examples import EXAMPLES, load
from support.servers import RAY, RAY_DID_NOT_START, Redis, free_ports

pytestmark = pytest.mark.needs("move")


@pytest.mark.needs("zstandard")
def test_compressed_swap(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("compressed_swap").main(["2"]) == 0
    printed = capsys.readouterr().out
    assert "All 32 rows came back" in printed
    evicted = re.search(r"blocks evicted\W+(\d+)", printed)
    assert evicted is not None
    assert int(evicted[1]) > 24


def test_compressed_swap_notices_another_content() -> None:
    example = load("compressed_swap")
    table = np.zeros((2, example.ROW), np.int32)
    example.fill(table)
    assert example.check(table)
    table[1, 5] += 1
    assert not example.check(table)


@pytest.mark.needs("s3")
def test_sum_on_s3(capfd: pytest.CaptureFixture[str]) -> None:
    assert load("sum_on_s3").main([], rows=300) == 0
    printed = capfd.readouterr().out
    assert printed.endswith("The sum is right.\n")
    resident = re.search(r"([\d.]+) MB are in memory", printed)
    assert resident is not None
    assert float(resident[1]) < 8.5


@pytest.mark.needs("redis")
def test_embeddings_in_redis(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with Redis(tmp_path / "redis", port) as server:
        # As a script: its processes have to be able to import it.
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / "embeddings_in_redis.py"), server.url, "8000"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("All found what was stored.\n")
        assert done.stdout.count(" lookups in ") == 3
        assert server.say("DBSIZE") == b":0"


@pytest.mark.slow
@pytest.mark.needs("redis", "ray")
def test_ray_actors(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    # Ray puts sockets there, whose names are short.
    with (
        Redis(tmp_path / "redis", port) as server,
        tempfile.TemporaryDirectory(dir="/tmp") as folder,
    ):
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / "ray_actors.py"), server.url, "8000"],
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
            env=os.environ | RAY | {"RAY_TMPDIR": folder},
        )
        if RAY_DID_NOT_START in done.stderr:
            pytest.skip("Ray gives its own processes 30 s to start, and this machine is busy")
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("\nThe nearest row was found.\n")
        assert "this process had read 0 bytes" in done.stdout
        resident = re.findall(r"actor \d: ([\d.]+) MB in memory", done.stdout)
        assert len(resident) == 2
        assert all(0 < float(nbytes) <= 4.2 for nbytes in resident)
        assert server.say("DBSIZE") == b":0"


def test_ray_actors_needs_a_url(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("ray_actors").main([]) == 2
    assert "REDIS_URL" in capsys.readouterr().out


def test_embeddings_in_redis_needs_a_url(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("embeddings_in_redis").main([]) == 2
    assert "REDIS_URL" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "library", "arguments"),
    [
        ("compressed_swap", "zstandard", ["1"]),
        ("sum_on_s3", "s3fs", []),
        ("sum_on_s3", "moto", []),
        ("embeddings_in_redis", "redis", ["redis://127.0.0.1:1"]),
        ("ray_actors", "ray", ["redis://127.0.0.1:1"]),
    ],
)
def test_what_is_not_installed_is_said(
    name: str,
    library: str,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    assert load(name).main(arguments) == 0
    said = capsys.readouterr().out
    assert re.match(rf"Nothing done: {library} is not installed.*pip install", said)
