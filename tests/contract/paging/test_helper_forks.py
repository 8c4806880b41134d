"""A store that forks: its helper's end is noticed all the same, and only the helper answers."""

from __future__ import annotations

import contextlib
import os
import signal
import textwrap
from pathlib import Path

import pytest

from support.programs import run_beside

pytestmark = pytest.mark.needs("paging", "fork")

SAID = "a process that the store forking_stores.Forking forked in its helper process has returned"

_STORES = """
import multiprocessing, os, signal, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from pagemove.stores import Store

def decode(offset, length):
    note("children", os.getpid())
    note("helpers", os.getppid())
    return b"x" * length

def note(name, number):
    with open(name, "a") as file:
        file.write(f"{number}\\n")

class Forking(Store):
    nbytes, writable, pool = 1 << 20, True, None

    def __init__(self, how, when="read"):
        self.how, self.when = how, when

    def fork(self, when):
        if self.when != when:
            return
        if self.how == "dies once":
            if Path("children").exists():
                return
            child = os.fork()
            if not child:
                while True:
                    signal.pause()
            note("children", child)
            os._exit(1)
        child = os.fork()
        if child:
            status = os.waitpid(child, 0)[1]
            note("statuses", os.waitstatus_to_exitcode(status))
        elif self.how == "raises":
            raise SystemExit

    def read_into(self, offset, buffer):
        if self.how == "pool":
            if self.pool is None:
                how = multiprocessing.get_context("fork")
                self.pool = ProcessPoolExecutor(1, mp_context=how)
            buffer[:] = self.pool.submit(decode, offset, len(buffer)).result()
            return
        if offset:
            self.fork("read")
        buffer[:] = b"x" * len(buffer)

    def write(self, offset, data):
        self.fork("write")

    def flush(self):
        self.fork("flush")
"""
_BEGIN = """
    import os, signal, sys
    import numpy as np
    import pagemove
    from forking_stores import Forking
    how = {"mode": "r+", "resident_limit": "512KiB", "store_timeout": 20, "prefetch": "off"}
    how["block_size"] = int(sys.argv[1])
    region = pagemove.PagedMemory(Forking(*sys.argv[2:]), **how)
    """


def _run(folder: Path, code: str, *arguments: str) -> tuple[str, str, list[str]]:
    out, errors = folder / "out", folder / "errors"
    try:
        # Files: the children may have them longer than the program.
        with out.open("w") as stdout, errors.open("w") as stderr:
            done = run_beside(
                folder,
                "forking_stores",
                _STORES,
                textwrap.dedent(_BEGIN) + textwrap.dedent(code),
                *arguments,
                stdout=stdout,
                stderr=stderr,
            )
    finally:
        for pid in set(_numbers(folder / "children")):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    assert done.returncode == 0, errors.read_text()
    return out.read_text(), errors.read_text(), _numbers(folder / "statuses")


def _numbers(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


@pytest.mark.parametrize("block", ["4096", "65536"])
@pytest.mark.parametrize("how", ["pool", "dies once"])
def test_its_end_is_noticed_though_a_forked_process_lives(tmp_path, how, block):
    code = """
        array = region.asarray(np.uint8)
        assert array[0] == ord("x")
        if sys.argv[2] == "pool":
            os.kill(int(open("helpers").readline()), signal.SIGKILL)
        region.prefetch(1 << 19, how["block_size"], wait=True)
        for pid in map(int, open("children").read().split()):
            os.kill(pid, 0)
        print(array[1 << 19], region.stats().restarts)
        """
    said, errors, _ = _run(tmp_path, code, block, how)
    assert said.split() == [str(ord("x")), "1"], errors


@pytest.mark.parametrize("block", ["4096", "65536"])
@pytest.mark.parametrize("how", ["returns", "raises"])
@pytest.mark.parametrize("when", ["read", "write", "flush"])
def test_a_forked_process_that_leaves_the_call_ends(tmp_path, how, when, block):
    code = """
        array = region.asarray(np.uint8)
        assert (array == ord("x")).all()
        array[: how["block_size"]] = 1
        region.flush()
        print(region.stats().restarts, region.stats().errors)
        """
    said, errors, statuses = _run(tmp_path, code, block, how, when)
    assert said.split() == ["0", "0"], errors
    assert set(statuses) == {"1"}
    assert errors.count(SAID) == len(statuses)
    assert "call os._exit()" in errors
    assert "Traceback" not in errors
