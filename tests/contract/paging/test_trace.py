"""PAGEMOVE_TRACE: what the pager did, as a trace, also of a program that is killed."""

from __future__ import annotations

import collections
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pagemove.cli import app
from pagemove.paging import trace
from support.paging import make_file

pytestmark = pytest.mark.needs("paging")

BLOCK = 65536

PROGRAM = """
import json, os, sys
import numpy as np, pagemove
array = pagemove.open_array(
    sys.argv[1], dtype=np.uint8, mode="r+", resident_limit=8 * 65536, prefetch="off"
)
total = int(array[::4096].sum(dtype=np.uint64))
array[:: 4 * 65536] += 1
array.flush()
stats = pagemove.region_of(array).stats()
print(json.dumps([stats.faults, stats.bytes_read, stats.bytes_written]), flush=True)
"""
END = "import time; time.sleep(600)"


def start(source: str, file: Path, target: object, **how: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", source, str(file)],
        env={**os.environ, "PAGEMOVE_TRACE": str(target)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )


def ended(program: subprocess.Popen[str]) -> str:
    out, err = program.communicate(timeout=120)
    assert program.returncode == 0, err
    assert not err
    return out


def events(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["traceEvents"]  # type: ignore[no-any-return]


def check(path: Path, file: Path, counters: list[int]) -> None:
    faults, read, written = counters
    found = events(path)
    kinds = collections.Counter((event["ph"], event["name"]) for event in found)
    assert kinds["b", "fault"] == kinds["e", "fault"] == faults
    assert sum(event["args"]["bytes"] for event in found if event["name"] == "read") == read
    assert sum(event["args"]["bytes"] for event in found if event["name"] == "write") == written
    assert kinds["X", "flush"] == kinds["X", "sync"] == 1
    assert kinds["i", "evict"] > 0
    of_pager = [event for event in found if event["ph"] != "M"]
    assert {event["args"]["region"] for event in of_pager if event["ph"] != "e"} == {str(file)}
    assert all(0 <= event["ts"] < 600e6 for event in of_pager)
    assert all(event["dur"] >= 0 for event in of_pager if event["ph"] == "X")
    names = {event["args"]["name"] for event in found if event["ph"] == "M"}
    assert names
    assert all(name.startswith("pagemove-") for name in names)


def test_of_a_program_that_ends(tmp_path: Path) -> None:
    file, target = make_file(tmp_path / "file", 64 * BLOCK), tmp_path / "trace.json"
    check(target, file, json.loads(ended(start(PROGRAM, file, target))))
    assert not target.with_name("trace.json.ring").exists()


def test_of_one_that_is_killed(tmp_path: Path) -> None:
    file, target = make_file(tmp_path / "file", 64 * BLOCK), tmp_path / "trace.json"
    with start(PROGRAM + END, file, target) as program:
        assert program.stdout is not None
        counters = json.loads(program.stdout.readline())
        program.send_signal(signal.SIGKILL)
    assert not target.exists()
    ring = tmp_path / "trace.json.ring"
    said = CliRunner().invoke(app, ["trace", str(ring)])
    assert said.exit_code == 0, said.output
    check(target, file, counters)
    # Its owner is no more: the next program may have the name, and these events stay.
    before = ring.read_bytes()
    ended(start(PROGRAM, file, target))
    assert not ring.exists()
    assert (tmp_path / f"trace.json.{program.pid}.ring").read_bytes() == before


def test_a_file_that_is_no_trace_is_not_touched(tmp_path: Path) -> None:
    file, target = make_file(tmp_path / "file", 64 * BLOCK), tmp_path / "notes"
    target.with_name("notes.ring").write_text("my notes")
    program = start(PROGRAM, file, target)
    check(tmp_path / f"notes.{program.pid}", file, json.loads(ended(program)))
    assert target.with_name("notes.ring").read_text() == "my notes"


def test_of_two_at_the_same_time(tmp_path: Path) -> None:
    file, target = make_file(tmp_path / "file", 64 * BLOCK), tmp_path / "trace.json"
    with start(PROGRAM + "sys.stdin.read()", file, target, stdin=subprocess.PIPE) as first:
        assert first.stdout is not None
        first_counters = json.loads(first.stdout.readline())
        other = make_file(tmp_path / "other", 64 * BLOCK)
        second = start(PROGRAM, other, target)
        check(tmp_path / f"trace.json.{second.pid}", other, json.loads(ended(second)))
        ended(first)
    check(target, file, first_counters)


def test_with_the_process_in_its_name(tmp_path: Path) -> None:
    file = make_file(tmp_path / "file", 64 * BLOCK)
    program = start(PROGRAM, file, tmp_path / "trace-%p.json")
    check(tmp_path / f"trace-{program.pid}.json", file, json.loads(ended(program)))


def test_a_forked_child_is_traced_as_itself(tmp_path: Path) -> None:
    file, target = make_file(tmp_path / "file", 64 * BLOCK), tmp_path / "trace.json"
    forking = "child = os.fork()\nif child == 0:\n" + "".join(
        f"    {line}\n" for line in PROGRAM.replace("r+", "c").splitlines() if "import" not in line
    )
    forking += "    os._exit(0)\nos.waitpid(child, 0)\n"
    ended(start(PROGRAM.replace("array.flush()", "array.flush()\n" + forking), file, target))
    processes = {event["pid"] for event in events(target)}
    assert len(processes) == 2


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    file = make_file(tmp_path / "file", 64 * BLOCK)
    out, err = start(PROGRAM, file, tmp_path / "nowhere" / "trace.json").communicate(timeout=120)
    assert json.loads(out)[0] > 0
    assert "PAGEMOVE_TRACE=" in err
    assert "No such file or directory" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("contents", [b"", b"something else" * 10, b"pmtrace1" + bytes(200)])
def test_what_is_no_trace_is_refused(contents: bytes, tmp_path: Path) -> None:
    ring = tmp_path / "trace.json.ring"
    ring.write_bytes(contents)
    said = CliRunner().invoke(app, ["trace", str(ring)])
    assert said.exit_code == 1
    assert str(ring) in said.output.replace("\n", "")
    assert not (tmp_path / "trace.json").exists()


def test_codes_of_the_pager_have_names() -> None:
    assert trace.name_of(5) == "EIO"
    assert trace.name_of(4098) == "no answer"
    assert trace.name_of(9999) == "9999"
