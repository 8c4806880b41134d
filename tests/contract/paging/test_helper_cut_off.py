"""A store that closes descriptors of its process: its region says so, and others go on."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

from support.programs import run_beside

pytestmark = pytest.mark.needs("paging")

CAUSE = "a store that it runs has closed descriptors which are not its own, as os.closerange does"
REMEDY = "close only what the store has opened"

_STORES = """
import os, time
from pagemove.stores import Store

class Closing(Store):
    nbytes, writable = 1 << 20, True

    def __init__(self, when, then=""):
        self.when, self.then, self.files = when, then, []

    def close_all(self, when):
        if self.when != when:
            return
        os.closerange(3, 64)
        if self.then == "opens":
            self.files += [os.open(os.environ["OTHER"], os.O_RDWR) for _ in range(60)]
        if self.then == "raises":
            raise ValueError("all is closed")
        if self.then == "hangs":
            time.sleep(1000)

    def __setstate__(self, state):
        self.__dict__.update(state)
        self.close_all("unpickled")

    def read_into(self, offset, buffer):
        self.close_all("read")
        buffer[:] = b"x" * len(buffer)

    def write(self, offset, data):
        self.close_all("write")

    def flush(self):
        self.close_all("flush")
"""
_BEGIN = """
    import os, sys
    import numpy as np
    import pagemove
    from closing_stores import Closing
    how = {"mode": "r+", "block_size": 65536, "resident_limit": "512KiB", "store_timeout": 3}

    def fails(call):
        try:
            call()
        except pagemove.StoreError as error:
            print(error, *error.__notes__)
    """


def _run(folder: Path, code: str, *arguments: str) -> tuple[str, str]:
    (folder / "other").write_bytes(b"")
    done = run_beside(
        folder,
        "closing_stores",
        _STORES,
        textwrap.dedent(_BEGIN) + textwrap.dedent(code),
        *arguments,
        env={**os.environ, "OTHER": str(folder / "other")},
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "other").read_bytes() == b""
    return done.stdout, done.stderr


_READ = """
    region = pagemove.PagedMemory(Closing("read", sys.argv[1]), **how)
    fails(lambda: region.prefetch(0, 65536, wait=True))
    """


@pytest.mark.parametrize("then", ["", "opens", "raises", "hangs"])
def test_a_read_says_what_has_happened_and_what_to_do(tmp_path, then):
    said, errors = _run(tmp_path, _READ, then)
    assert said.count(CAUSE) == 1
    assert REMEDY in said
    assert errors.count("\n") <= 1, errors  # that a touch raises SIGBUS
    assert "Traceback" not in errors


_WRITTEN = """
    region = pagemove.PagedMemory(Closing(sys.argv[1]), **how)
    array = region.asarray(np.uint8)
    array[: 4 * 65536] = 1
    fails(region.flush)
    sys.stdout.flush()
    os._exit(0)
    """


@pytest.mark.parametrize("when", ["write", "flush"])
def test_a_write_or_a_flush_says_so_too(tmp_path, when):
    said, errors = _run(tmp_path, _WRITTEN, when)
    assert CAUSE in said
    assert REMEDY in said
    assert "Traceback" not in errors


def test_so_does_opening_a_region(tmp_path):
    code = """
        try:
            pagemove.PagedMemory(Closing("unpickled"), **how)
        except OSError as error:
            print(error)
        """
    said, errors = _run(tmp_path, code)
    assert f"the helper process ended before it had its store: {CAUSE}; {REMEDY}" in said
    assert not errors


def test_others_in_the_same_process_go_on(tmp_path):
    code = """
        other = pagemove.PagedMemory(Closing(""), **how | {"store_timeout": 50})
        region = pagemove.PagedMemory(Closing("read"), **how)
        array = other.asarray(np.uint8)
        assert array[0] == ord("x")
        assert other.shares_helper and region.shares_helper
        fails(lambda: region.prefetch(0, 65536, wait=True))
        print(bool((array == ord("x")).all()), other.stats().restarts)
        """
    said, errors = _run(tmp_path, code)
    assert said.count(CAUSE) == 1
    assert said.splitlines()[-1] == "True 1"
    assert errors.count("\n") <= 1, errors
    assert "Traceback" not in errors
