"""SIGTERM with the default action, however it comes: what was changed is in the file, and the
process is ended by it all the same. Programs that handle it themselves notice nothing.

Nothing is written before, by a limit or in the background.
"""

from __future__ import annotations

import os
import signal
import subprocess
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from support.paging import expected, wrong_words
from support.programs import NBYTES, counted, running, said
from support.sigterm import DEADLINE, KILLED, ends

pytestmark = pytest.mark.needs("paging")

# What is printed is checked by the script's own asserts: a traceback is another status.
SELF = {
    "by itself": """
        array = changed()
        raise_it()
        os._exit(7)
    """,
    "raised": """
        array = changed()
        signal.raise_signal(signal.SIGTERM)
        os._exit(7)
    """,
    "by a thread": """
        array = changed()
        threading.Thread(target=raise_it).start()
        time.sleep(60)
    """,
    "a server that was there first, and raises it again": """
        caught = []
        handler = lambda number, frame: caught.append(number)
        original = signal.signal(signal.SIGTERM, handler)
        array = changed()
        assert signal.getsignal(signal.SIGTERM) == handler
        raise_it()
        assert caught == [signal.SIGTERM], caught
        signal.signal(signal.SIGTERM, original)
        signal.raise_signal(signal.SIGTERM)
        os._exit(7)
    """,
    "a server with a method for a handler": """
        class Server:
            caught = ()
            def stop(self, number, frame): self.caught += number,
        server = Server()
        originals = {n: signal.signal(n, server.stop) for n in (signal.SIGINT, signal.SIGTERM)}
        array = changed()
        raise_it()
        for number, original in originals.items():
            signal.signal(number, original)
        for number in reversed(server.caught):
            signal.raise_signal(number)
        os._exit(7)
    """,
    "a server that comes later": """
        array = changed()
        caught = []
        original = signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
        assert original == signal.SIG_DFL and original in (None, signal.SIG_DFL)
        raise_it()
        assert caught == [signal.SIGTERM], caught
        array[1::64] += np.uint64(1)   # while it shuts down
        array[1::64] -= np.uint64(1)
        signal.signal(signal.SIGTERM, original)
        signal.raise_signal(signal.SIGTERM)
        os._exit(7)
    """,
    "a server that runs the application in a thread": """
        caught = []
        original = signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
        kept = []
        thread = threading.Thread(target=lambda: kept.append(changed()))
        thread.start(); thread.join()
        time.sleep(0)
        raise_it()
        assert caught == [signal.SIGTERM], caught
        signal.signal(signal.SIGTERM, original)
        signal.raise_signal(signal.SIGTERM)
        os._exit(7)
    """,
    "opened in a thread": """
        kept = []
        thread = threading.Thread(target=lambda: kept.append(changed()))
        thread.start(); thread.join()
        raise_it()
        os._exit(7)
    """,
    "the default action, set by the program": """
        array = changed()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise_it()
        os._exit(7)
    """,
    "a handler that cleans up, and raises it again": """
        def handler(number, frame):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            raise_it()
            os._exit(7)
        signal.signal(signal.SIGTERM, handler)
        array = changed()
        raise_it()
    """,
    "asked for, before a handler that ends the process": """
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))
        array = changed()
        pagemove.save_on_sigterm(grace=30)
        raise_it()
        time.sleep(60)
    """,
    "several regions at once": """
        import shutil
        shutil.copy(sys.argv[1], sys.argv[1] + ".2")
        array = changed()
        other = pagemove.open_array(
            sys.argv[1] + ".2", dtype=np.uint64, mode="r+", writeback_interval=0
        )
        other[::64] += np.uint64(1)
        raise_it()
        os._exit(7)
    """,
}


@pytest.mark.parametrize("name", SELF)
def test_everything_is_saved(file, name):
    path = file(NBYTES)
    status, _, errors = ends(path, SELF[name])
    assert (status, errors) == (128 + signal.SIGTERM if "asked" in name else KILLED, "")
    assert counted(path) is None
    if "several" in name:
        assert counted(Path(f"{path}.2")) is None


BUSY = {
    "asleep": "time.sleep(60)",
    "in C, with the GIL": "ctypes.PyDLL(None).sleep(60)",
    "in C, without the GIL": "ctypes.CDLL(None).sleep(60); ctypes.CDLL(None).sleep(60)",
    "computing": "while True: np.arange(1 << 20).sum()",
    "waiting for a thread": """
        thread = threading.Thread(target=time.sleep, args=[60], daemon=True)
        thread.start(); thread.join()
    """,
    "waiting for a page": """
        array[-1] = 0
    """,
    "storing": """
        while True: array[1::64] ^= array[1::64]
    """,
}


@pytest.mark.parametrize("name", BUSY)
def test_from_outside_whatever_the_main_thread_does(file, name):
    path = file(NBYTES)
    script = """
        faults = [Fault("read", count=0, delay=60.0, first=1)] if {page} else None
        memory = opened(
            faults=faults, resident_limit=None, writeback_interval=None, prefetch="off",
            store_timeout=90.0,
        )
        array = memory.asarray(np.uint64)
        array[0] += np.uint64(1)
        print("here", flush=True)
        {body}
    """
    body = textwrap.indent(textwrap.dedent(BUSY[name]).strip(), " " * 8).strip()
    script = script.replace("{page}", str("page" in name)).replace("{body}", body)
    with running(path, textwrap.dedent(script)) as process:
        assert said(process, DEADLINE) == "here"
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(DEADLINE) == KILLED
    assert np.fromfile(path, np.uint64, 1)[0] == expected(NBYTES)[0] + 1


@contextmanager
def _writing_slowly(path: Path, then: str) -> Iterator[subprocess.Popen[str]]:
    """A program whose first write takes a second, and whose main thread does `then`."""
    script = """
        memory = opened(
            faults=[Fault("write", count=1, delay=1.0)], resident_limit=None,
            writeback_interval=None, store_timeout=30.0,
        )
        array = count_up(memory)
        print("here", flush=True)
    """
    with running(path, textwrap.dedent(script) + then) as process:
        assert said(process, DEADLINE) == "here"
        yield process
        assert process.wait(DEADLINE) == KILLED
    assert counted(path) is None


def test_twice_is_once(file):
    """The second one, as of who signals a group and its leader, does not cut the first short."""
    with _writing_slowly(file(NBYTES), "time.sleep(60)") as process:
        for _ in range(5):
            os.kill(process.pid, signal.SIGTERM)
            time.sleep(0.05)  # not for an order: five of them in the second that the write takes


def test_during_a_flush(file):
    with _writing_slowly(file(NBYTES), "memory.flush(); time.sleep(60)") as process:
        os.kill(process.pid, signal.SIGTERM)


@pytest.mark.parametrize("way", ["default", "restored"])
def test_a_store_that_hangs_has_until_the_grace_is_over(file, way):
    path = file(NBYTES)
    script = f"""
        faults = [Fault("write", count=0, delay=60.0)]
        array = changed(faults=faults, store_timeout=90.0)
        pagemove.save_on_sigterm(grace=0.5)
        if {way == "restored"}:
            original = signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, original)
        raise_it()
        os._exit(7)
    """
    started = time.monotonic()
    status, _, errors = ends(path, script)
    assert status == KILLED
    assert time.monotonic() - started < 30
    assert errors == (
        f"pagemove: changes of {path} could not be saved within 0.5 seconds: its store takes "
        "longer\n"
    )
    assert wrong_words(np.fromfile(path, np.uint64)) is None


def test_a_store_that_fails_is_told(file):
    path = file(NBYTES)
    script = """
        array = changed(faults=[Fault("write", count=0, errno=errno.ENOSPC)], store_timeout=0.1)
        raise_it()
        os._exit(7)
    """
    status, _, errors = ends(path, script)
    assert status == KILLED
    assert errors == (f"pagemove: changes of {path} could not be saved: No space left on device\n")


@pytest.mark.parametrize(
    ("faults", "cause"),
    [
        ('[Fault("write", count=0, errno=errno.EBADF)]', "Bad file descriptor"),
        (
            '[Fault("flush", errno=errno.EIO)]',
            "it was written, but the store has failed to make it durable",
        ),
    ],
    ids=["no write", "one sync"],
)
def test_what_a_lost_region_has_not_saved_is_told(file, faults, cause):
    """Whatever errno the store has for it; and that asking again succeeds saves nothing."""
    path = file(NBYTES)
    script = f"""
        array = changed(faults={faults}, store_timeout=0.1)
        region = pagemove.region_of(array)
        os.closerange(3, 1000)
        until = time.monotonic() + {DEADLINE}
        while not (region.lost and region.failures()) and time.monotonic() < until:
            time.sleep(0.001)
        raise_it()
        os._exit(7)
    """
    status, _, errors = ends(path, script)
    assert status == KILLED
    first, *others = errors.splitlines()
    assert "has closed the descriptors" in first
    assert others == [f"pagemove: changes of {path} could not be saved: {cause}"]
