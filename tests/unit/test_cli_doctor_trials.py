"""`pagemove doctor` in processes that are limited: by seccomp, by ulimit, by their reader."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pagemove import checkup
from pagemove.cli import app
from pagemove.cli.doctor import _rows
from pagemove.probing import PROBES, features, look
from support.slowness import SLOWNESS
from unit.test_features import PRELUDE

pytestmark = pytest.mark.needs("move", "fork", "seccomp")

#: Kills for a system call, as a systemd unit's SystemCallFilter does; and runs the command.
KILLING = """
import sys
def filtered(*statements):
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in statements))
    filter = ctypes.create_string_buffer(
        struct.pack("HxxxxxxP", len(statements), ctypes.addressof(code))
    )
    assert not libc.prctl(38, 1, 0, 0, 0)
    assert not libc.prctl(22, 2, filter, 0, 0)

def kill_for(number):
    filtered((0x20, 0, 0, 0), (0x15, 0, 1, number), (6, 0, 0, 0x80000000), (6, 0, 0, 0x7FFF0000))

def hide_ioctl(request, error):
    action = 0x50000 | error if error else 0x80000000
    number = {"x86_64": 16, "aarch64": 29}[os.uname().machine]
    # Its second argument is 24 bytes into what a filter sees.
    filtered((0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 24), (0x15, 0, 1, request),
             (6, 0, 0, action), (6, 0, 0, 0x7FFF0000))

def doctor(*arguments):
    from pagemove.cli import main
    sys.argv = ["pagemove", "doctor", *arguments]
    main()
"""
USERFAULTFD, EVENTFD, MINCORE = {
    "x86_64": (323, 290, 27),
    "aarch64": (282, 19, 232),
}[os.uname().machine]


def doctor(
    setup: str, *arguments: str, before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    code = PRELUDE + KILLING + textwrap.dedent(setup) + f"\ndoctor(*{arguments!r})\n"
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        preexec_fn=before,
        timeout=60 * SLOWNESS,
        check=False,
    )


@pytest.mark.parametrize("json_wanted", [False, True])
def test_outlives_a_filter_that_kills_and_names_the_call(json_wanted: bool) -> None:
    done = doctor(f"kill_for({USERFAULTFD})", *(["--json"] if json_wanted else []))
    assert done.returncode == 1, done.stderr
    if json_wanted:
        found = json.loads(done.stdout)
        problems = {each["name"]: each for each in found["problems"]}
        assert found["remap_anon_pages"] is False
        assert problems["userfaultfd_user_mode"]["needed"]
        assert problems["userfaultfd_user_mode"]["errno"] == errno.EPERM
    else:
        assert done.stdout.startswith(
            "remap_anon_pages cannot work here.\nPaged memory cannot work here.\n"
        )
        assert "userfaultfd(2) with UFFD_USER_MODE_ONLY: the process's seccomp" in done.stdout
        assert "SystemCallFilter=userfaultfd" in done.stdout
    assert done.stderr == ""


def test_a_filter_that_kills_for_something_else() -> None:
    done = doctor(f"kill_for({EVENTFD})")
    assert done.returncode == 1, done.stderr
    assert "remap_anon_pages works here.\nPaged memory cannot work here.\n" in done.stdout
    assert "killed by its seccomp filter" in done.stdout
    assert "journalctl -k -g SECCOMP" in done.stdout


def test_a_filter_that_kills_on_multi_page_moves() -> None:
    """What systemd's @system-service leaves out is not needed for one page."""
    done = doctor(f"kill_for({MINCORE})")
    assert done.returncode == 1, done.stderr
    assert "remap_anon_pages cannot work here.\n" in done.stdout
    assert "killed by its seccomp filter" in done.stdout


def test_a_filter_that_hides_the_scan_of_the_pagemap() -> None:
    """What the remedy for one that kills allows: pages are moved without the scan."""
    done = doctor(f"hide_ioctl(0xC0606610, {errno.ENOSYS})", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["remap_anon_pages"], found["paging"]) == (True, "move")
    (problem,) = (each for each in found["problems"] if each["name"] == "pagemap_scan")
    assert not problem["needed"]
    assert "hidden by the process's seccomp filter" in problem["missing"]
    assert problem["remedy"] == "allow ioctl(2) with PAGEMAP_SCAN in the seccomp filter"


@pytest.mark.parametrize(
    ("name", "request_number", "error", "moves"),
    [
        ("API", 0xC018AA3F, errno.EPERM, False),
        ("MOVE", 0xC028AA05, errno.EACCES, False),
        ("WAKE", 0x8010AA02, errno.EPERM, True),
        pytest.param("WRITEPROTECT", 0xC018AA06, errno.ENOSYS, True, marks=pytest.mark.slow),
        pytest.param("COPY", 0xC028AA03, 0, True, marks=pytest.mark.slow),
    ],
)
def test_a_filter_of_the_arguments_of_ioctl(
    name: str, request_number: int, error: int, moves: bool
) -> None:
    """The call that is refused is named: not another one, nor what comes of it."""
    done = doctor(f"hide_ioctl({request_number:#x}, {error})", "--json")
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["remap_anon_pages"] is moves
    refused = {
        problem["name"]: problem for problem in found["problems"] if name in problem["missing"]
    }
    if name == "API":
        assert {"userfaultfd_syscall", "userfaultfd_user_mode"} <= set(refused)
        assert refused["userfaultfd_user_mode"]["needed"]
    else:
        assert set(refused) == {"paged_memory"} | (set() if moves else {"remap_anon_pages"})
    for problem in refused.values():
        assert "the process's seccomp filter" in problem["missing"]
        assert problem["remedy"] == f"allow ioctl(2) with UFFDIO_{name} in the seccomp filter"
        assert problem["errno"] == (error or errno.EPERM)


def test_mappings_that_cannot_be_counted() -> None:
    rows = _rows(replace(features(), vma_count=0, max_map_count=0))
    assert rows["mappings"] == "unknown"
    assert _rows(replace(features(), max_map_count=99))["mappings"].endswith(" of at most 99")


def test_features_without_what_kills() -> None:
    found = look(PROBES)
    problems = {problem.name: problem for problem in found.problems}
    for name in PROBES:
        assert not getattr(found, name)
        assert problems[name].needed
        assert "kills the caller" in problems[name].missing
        assert "boot" not in problems[name].remedy
    assert found.uffd_features == ()
    # Where there is no filter nothing is tried in a child, and nothing is deadly.
    assert checkup.deadly_probes() == ()


def limited(number: int, value: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(number, (value, value))


def test_few_descriptors() -> None:
    done = doctor("", before=limited(resource.RLIMIT_NOFILE, 6))
    assert done.returncode == 1, done.stderr
    assert "Paged memory cannot work here." in done.stdout
    assert "the process may have 6 descriptors (RLIMIT_NOFILE)" in " ".join(done.stdout.split())
    assert "ulimit -n 1024" in done.stdout
    assert "LimitNOFILE=1024" in done.stdout


def test_few_addresses() -> None:
    # After everything is imported, because the command line's libraries take addresses too.
    done = doctor(
        """
        import resource
        import pagemove.cli.application, pagemove.cli.doctor
        real = pagemove.cli.doctor.try_paging
        def little(found):
            size = int(open("/proc/self/statm").read().split()[0]) * 4096 + (4 << 20)
            resource.setrlimit(resource.RLIMIT_AS, (size, size))
            return real(found)
        pagemove.cli.doctor.try_paging = little
        """,
        "--json",
    )
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["remap_anon_pages"] is True
    (problem,) = (each for each in found["problems"] if each["name"] == "paged_memory")
    assert "Cannot allocate memory" in problem["missing"]
    assert "bytes of addresses (RLIMIT_AS)" in problem["missing"]
    assert "ulimit -v unlimited" in problem["remedy"]
    assert problem["errno"] == errno.ENOMEM


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGSYS), "seccomp filter"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "cgroup is out of memory"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), "dies of SIGTERM"),
        (lambda: signal.pause(), "does not end within"),
    ],
)
def test_how_a_child_can_end(
    monkeypatch: pytest.MonkeyPatch, call: Callable[[], object], words: str
) -> None:
    monkeypatch.setattr(checkup, "_page_a_little", call)
    if "end within" in words:
        monkeypatch.setattr(checkup, "_DEADLINE", 0.1)
    # Other tests may have some, that must not be collected here.
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = children.read_text()
    problem = checkup.try_paging(features())
    assert problem is not None
    assert words in problem.missing
    assert problem.remedy
    assert children.read_text() == before


def test_what_a_child_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(errno.EIO, "x" * 10_000)

    monkeypatch.setattr(checkup, "_page_a_little", fail)
    problem = checkup.try_paging(features())
    assert problem is not None
    assert problem.errno == errno.EIO
    assert "xxxx" in problem.missing
    monkeypatch.undo()
    assert checkup.try_paging(features()) is None
    assert checkup.try_moving(features()) is None


#: What it prints: a table, or JSON.
OUTPUTS = [
    [],
    pytest.param(["--json"], marks=pytest.mark.slow),
    ["--json", "-"],
]


@pytest.mark.parametrize("arguments", OUTPUTS)
def test_a_reader_that_leaves_changes_nothing(arguments: list[str]) -> None:
    """With a pipe that nobody reads every write is EPIPE: what `head` does, but surely."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pagemove", "doctor", *arguments],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60 * SLOWNESS,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", OUTPUTS)
def test_a_full_disk_prints_one_line(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pagemove", "doctor", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60 * SLOWNESS,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "pagemove: standard output: No space left on device\n"


def test_json_to_a_file_and_to_standard_output(tmp_path: Path) -> None:
    for arguments in (["--json", "-"], ["--json", str(tmp_path / "found.json")]):
        done = doctor("", *arguments)
        assert done.returncode == 0, done.stderr
        text = done.stdout if arguments[1] == "-" else (tmp_path / "found.json").read_text()
        assert json.loads(text)["remap_anon_pages"] is True
        assert text.endswith("}\n")
    assert done.stdout == ""
    refused = CliRunner().invoke(app, ["doctor", "found.json"])
    assert refused.exit_code == 2
    assert "found.json" in refused.output
