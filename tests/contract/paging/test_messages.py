"""Messages on standard error: whoever reads them, or does not, holds up nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import select
import subprocess
import sys
import textwrap
import tty

import pytest

from support.paging import KIB, make_file
from support.slowness import SLOWNESS

pytestmark = pytest.mark.needs("paging")

# Each failure says so; the first message is too long for what the terminal still takes.
_KEPT_BY_A_TERMINAL = """
    import os, sys, time
    import pagemove
    a = pagemove.open_array(sys.argv[1], store_timeout=0.01, dtype="u1", prefetch="off")
    region = pagemove.region_of(a)
    os.truncate(sys.argv[1], 4096)
    began = time.monotonic()
    for block in range(8):
        try:
            region.prefetch((block + 16) << 16, 1, wait=True)
        except pagemove.StoreError:
            print("raised")
    del a
    region.close()
    print(time.monotonic() - began < 6)
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        os._exit(0)
    print(os.waitpid(pid, 0)[1], flush=True)
    os._exit(0)
    """


def _leave_room(master: int, slave: int) -> None:
    """Fill a terminal's buffer, except for 4048 bytes or so."""
    os.set_blocking(slave, False)
    polled = select.poll()
    polled.register(slave, select.POLLOUT)
    while polled.poll(100):
        with contextlib.suppress(BlockingIOError):
            os.write(slave, b"x" * 1000)
    while not polled.poll(10):
        os.read(master, 600)
    os.set_blocking(slave, True)


def test_a_terminal_that_takes_a_part_of_a_message_holds_up_nothing(tmp_path):
    """No fault, no close of a region, and no fork waits for whoever reads it."""
    folder = tmp_path
    while len(str(folder)) < 3800:
        folder = folder / ("d" * 200)
    folder.mkdir(parents=True)
    path = make_file(folder / "file", 64 * 64 * KIB)
    ours, theirs = pty.openpty()
    try:
        tty.setraw(ours)
        tty.setraw(theirs)
        _leave_room(ours, theirs)
        done = subprocess.run(
            [
                # Python would wait to write its own warning, of os.fork, from 3.12 on.
                *(sys.executable, "-W", "ignore:This process:DeprecationWarning"),
                *("-c", textwrap.dedent(_KEPT_BY_A_TERMINAL), path),
            ],
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
            timeout=40,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert (done.returncode, done.stdout.split()) == (0, ["raised"] * 8 + ["True", "0"])


_HANGS = """
    import os, time
    import pagemove

    def read(offset, length):
        time.sleep(600)

    if __name__ == "__main__":
        store = pagemove.stores.CallableStore(read, 1 << 20)
        region = pagemove.PagedMemory(store, block_size=4096, store_timeout=1)
        try:
            os.write(os.pipe()[1], memoryview(region)[:1])
        except OSError as error:
            print(error.errno, flush=True)
        os._exit(0)
    """


@pytest.mark.needs("kernel_faults")
def test_of_a_read_that_has_not_ended_once_no_tries_are_counted(tmp_path):
    """The event loop itself has asked the helper for a small block, and gives it up."""
    script = tmp_path / "hangs.py"
    script.write_text(textwrap.dedent(_HANGS))
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60 * SLOWNESS, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"{errno.EFAULT}\n")
    assert "pagemove: cannot read 4096 bytes at offset 0 of CallableStore" in done.stderr
    assert "tried" not in done.stderr
