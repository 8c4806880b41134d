"""No run of the tests hangs: a test stuck with the GIL held, a child left over, a long diff."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import support
from support.slowness import SLOWNESS

_STUCK = """
    import ctypes, os, time

    def test_before(): pass

    def test_stuck():
        if {fork} and not os.fork():
            open("left", "w").write(str(os.getpid()))
            time.sleep(600)
        while {fork} and not os.path.exists("left"):
            time.sleep(0.01)
        reading, _ = os.pipe()
        ctypes.PyDLL(None).read(reading, ctypes.create_string_buffer(1), 1)

    def test_after(): pass
    """


def _pytest(folder: Path, tests: str, *options: str, **environment: str) -> str:
    """Run it on a file of tests; return what it prints."""
    (folder / "test_it.py").write_text(textwrap.dedent(tests))
    (folder / "pytest.ini").write_text("[pytest]\n")
    plugins = ["-p", "support.watchdog", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    path = os.pathsep.join([str(Path(support.__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugins, *options, "test_it.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100 * SLOWNESS,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("fork", [False, True])
def test_a_worker_that_is_stuck_with_the_gil_held_is_ended(tmp_path, fork):
    try:
        printed = _pytest(
            tmp_path,
            _STUCK.format(fork=fork),
            *("--numprocesses=1", "--timeout=1", "--timeout-method=thread"),
            PAGEMOVE_TEST_WATCHDOG="1",
        )
    finally:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((tmp_path / "left").read_text()), signal.SIGKILL)
    assert re.search(r'File ".*/test_it.py", line \d+ in test_stuck', printed), printed
    assert "crashed while running 'test_it.py::test_stuck'" in printed
    assert "1 failed, 2 passed" in printed


def test_bytes_that_differ_are_not_compared_by_line(tmp_path):
    tests = """
        import random

        def test_bytes():
            one, other = random.Random(1).randbytes(1 << 18), random.Random(2).randbytes(1 << 18)
            assert one == other
        """
    printed = _pytest(tmp_path, tests, "--timeout=60", "--timeout-method=thread", CI="true")
    assert "At index 0 diff: b" in printed
    assert "1 failed" in printed
