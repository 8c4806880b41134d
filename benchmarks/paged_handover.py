"""Handing an array over: until a touch answers, until all is there, and how long it stops."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import pagemove
from benchmarks._measure import Effort, Finding, free, spread
from benchmarks._paging import Way, cost, in_turn
from benchmarks._report import run_alone

_ROOT = Path(__file__).resolve().parents[1]
_TARGET_TOUCH_MS = 5.0
_TARGET_ALL = 1.2
_TARGET_STOP = 1.2
_WORD = 8
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_TOUCHES = 5


class _Giver:
    """Another process, which has an array, and does what it is told in a line."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._folder = process, folder

    def say(self, *order: object) -> None:
        """Send an order."""
        assert self._process.stdin is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)

    def hear(self) -> Any:
        """Wait for an answer."""
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def path(self) -> str:
        """Return where a socket may be, which is not there."""
        path = self._folder / "socket"
        path.unlink(missing_ok=True)
        return str(path)


@contextmanager
def _giver() -> Iterator[_Giver]:
    code = "from benchmarks.paged_handover import give; give()"
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        try:
            yield _Giver(process, Path(folder))
        finally:
            process.kill()


def give() -> None:
    """Do what is ordered, line by line: the other process."""
    array = np.empty(0, np.uint64)
    with tempfile.TemporaryDirectory() as folder:
        for number, line in enumerate(sys.stdin):
            order, *words = json.loads(line)
            if order == "make":
                array = _made(Path(folder, f"{number}.npy"), words[0])
                _answer("made")
            elif order == "serve":
                with pagemove.serve(array, words[0], store_timeout=60) as served:
                    _answer(served.url)
                    served.wait(600)
                    _answer(served.stats())
            elif order == "stop":
                with pagemove.serve(array, words[0], store_timeout=60) as served:
                    _answer(served.url)
                    sys.stdin.readline()
                    _answer(served.stats()["switch_seconds"])
            else:
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind(words[0])
                    listener.listen()
                    _answer("there")
                    with listener.accept()[0] as line_:
                        line_.sendall(memoryview(array).cast("B"))


def _answer(what: object) -> None:
    print(json.dumps(what), flush=True)


def _made(path: Path, nbytes: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Make an array that is all in memory, and in its file."""
    array = pagemove.create_array(path, nbytes // _WORD, np.uint64, resident_limit="unlimited")
    step = 1 << 21
    for at in range(0, len(array), step):
        array[at : at + step] = np.arange(at, min(at + step, len(array)), dtype=np.uint64)
        array[at : at + step] *= _FACTOR
    pagemove.region_of(array).flush()
    return array


def _check(array: np.ndarray[Any, np.dtype[np.uint64]]) -> None:
    places = np.random.default_rng(1).integers(len(array), size=1000)
    assert (array[places] == places.astype(np.uint64) * _FACTOR).all(), "other bytes"


def _hand_over(giver: _Giver, touches: list[float], opened: list[float]) -> float:
    """Return nanoseconds until all is there; keep what touches took meanwhile."""
    giver.say("serve", giver.path())
    url = giver.hear()
    began = time.perf_counter_ns()
    array = pagemove.open_array(url, resident_limit="64MiB", store_timeout=60)
    # From behind, where what comes in the background has not yet been.
    for number in range(1, _TOUCHES + 1):
        at = len(array) - number * len(array) // 16
        touched = time.perf_counter_ns()
        word = int(array[at])
        now = time.perf_counter_ns()
        touches.append((now - touched) / 1e6)
        if number == 1:
            opened.append((now - began) / 1e6)
        assert word == at * int(_FACTOR) % 2**64, "another word"
    stats = giver.hear()
    took = time.perf_counter_ns() - began
    assert stats["missing_bytes"] == 0
    assert stats["sent_bytes"] <= 1.02 * array.nbytes, "it has crossed more than once"
    _check(array)
    return float(took)


def _copy(giver: _Giver, nbytes: int) -> float:
    """Return the nanoseconds of copying all of it by a socket, into fresh memory."""
    path = giver.path()
    giver.say("copy", path)
    giver.hear()
    began = time.perf_counter_ns()
    array = np.empty(nbytes // _WORD, np.uint64)
    with socket.socket(socket.AF_UNIX) as line, memoryview(array).cast("B") as view:
        line.connect(path)
        at = 0
        while at < nbytes:
            at += line.recv_into(view[at:])
    took = time.perf_counter_ns() - began
    _check(array)
    return float(took)


def _stop(giver: _Giver) -> float:
    """Return for how many nanoseconds nobody could write it."""
    giver.say("stop", giver.path())
    array = pagemove.open_array(giver.hear(), resident_limit="64MiB", store_timeout=60)
    giver.say("done")
    return float(giver.hear()) * 1e9 if array[0] == 0 else 0.0


def measure(effort: Effort) -> list[Finding]:
    nbytes = effort.long_file
    passes = max(effort.passes // 3, 2)
    touches: list[float] = []
    opened: list[float] = []
    with free(), _giver() as giver:
        giver.say("make", nbytes)
        assert giver.hear() == "made"
        size = f"{nbytes >> 20} MiB"
        subject, baseline = f"{size} handed over, until all is there", "copied by a Unix socket"
        samples = in_turn(
            [
                Way(subject, lambda: _hand_over(giver, touches, opened)),
                Way(baseline, lambda: _copy(giver, nbytes)),
            ],
            passes,
        )
        stops = {}
        for size_ in (nbytes // 4, nbytes, 4 * nbytes):
            giver.say("make", size_)
            assert giver.hear() == "made"
            stops[size_] = [_stop(giver) for _ in range(2 * passes + 1)][1:]
    note = "what the files of the taker cost is in it"
    small, large = (sorted(stops[each]) for each in (nbytes // 4, 4 * nbytes))
    return [
        cost(samples, subject, baseline, _TARGET_ALL, note),
        Finding(
            "a touch while the rest comes",
            "the clock",
            spread(touches),
            _TARGET_TOUCH_MS,
            unit="ms",
        ),
        Finding(
            "open_array until such a touch has answered",
            "the clock",
            spread(opened),
            _TARGET_TOUCH_MS,
            unit="ms",
        ),
        Finding(
            f"the giver stops, {4 * nbytes >> 20} MiB",
            f"{nbytes >> 22} MiB",
            spread([one / other for one, other in zip(large, small, strict=True)]),
            _TARGET_STOP,
            subject_ns=spread(large),
            baseline_ns=spread(small),
        ),
    ]


if __name__ == "__main__":
    run_alone(measure)
