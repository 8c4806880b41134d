"""A process that was stopped while the kernel did its I/O: that time does not count either."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from support import native, wait_for
from support.helpers import state_of
from support.paging import MIB
from support.slowness import SLOWNESS

pytestmark = pytest.mark.needs("paging")

_TIMEOUT = 1.0
_PROGRAM = """
    import sys
    import numpy as np, pagemove
    from pagemove import PagedMemory
    from pagemove.stores import FileStore
    from pagemove._native import pager
    pager.set_rings(False)  # reads by calls, which can be held
    store = FileStore(sys.argv[1], writable=sys.argv[2] != "r")
    region = PagedMemory(store, mode=sys.argv[2], prefetch="off", store_timeout=float(sys.argv[3]))
    a, whole = region.asarray(np.uint64), np.fromfile(sys.argv[1], np.uint64)
    {}
    print(region.stats().retries, region.stats().errors)
    """
_PHASES = {
    "touch": ("read", "r", "assert a[70_000] == whole[70_000]"),
    "prefetch": ("read", "r", "region.prefetch(0, 1, wait=True); assert a[5] == whole[5]"),
    "flush": ("write", "r+", "a[5] = 7; region.flush()"),
    "evict": ("write", "r+", "a[5] = 7; region.evict(0, 4096)"),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = Path(native.__file__).parent / "held_io.c"
    return native.library_file(source, tmp_path_factory.mktemp("library"))


@pytest.mark.parametrize("phase", _PHASES)
def test_what_fails_once_after_that_is_tried_again(file, library, phase):
    """A server of files that hears of it may well fail what it was asked for before."""
    path = file(MIB)
    operation, mode, code = _PHASES[phase]
    environment = {"HELD": operation, "HELD_FILE": str(path)}
    program = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_PROGRAM).format(code), path, mode, str(_TIMEOUT)],
        env={**os.environ, **environment, "LD_PRELOAD": str(library)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: state_of(program.pid) == "T", 60)
        threading.Event().wait(2 * _TIMEOUT)
        program.send_signal(signal.SIGCONT)
        out, err = program.communicate(timeout=60 * SLOWNESS)
    finally:
        program.kill()
        program.communicate()
    assert (program.returncode, out.split(), err) == (0, ["1", "0"], "")
    if mode == "r+":
        assert path.read_bytes()[40:48] == (7).to_bytes(8, "little")
