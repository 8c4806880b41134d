"""What the pickle of a view of a region of 100 GiB is: its length, and the time it takes."""

from __future__ import annotations

import pickle
import tempfile
import time
from pathlib import Path

import pagemove
from benchmarks._measure import Effort, Finding, pinned, spread
from benchmarks._report import run_alone

_NBYTES = 100 << 30
_TARGET_BYTES = 1024
_TARGET_US = 100.0


def measure(effort: Effort) -> list[Finding]:
    took = []
    with tempfile.TemporaryDirectory() as folder, pinned():
        path = Path(folder, "table")
        with path.open("wb") as file:
            file.truncate(_NBYTES)
        array = pagemove.open_array(path, dtype="f4", shape=(_NBYTES >> 12, 1024))
        view = array[5::3, 7:900]
        data = b""
        for _ in range(effort.rounds):
            began = time.thread_time_ns()
            data = pickle.dumps(view)
            took.append((time.thread_time_ns() - began) / 1e3)
        assert pickle.loads(data).shape == view.shape
        assert pagemove.region_of(view).stats().bytes_read == 0
    what = "pickle.dumps of a view of 100 GiB"
    length = spread([float(len(data))])
    return [
        Finding(what, "none", length, _TARGET_BYTES, unit="bytes"),
        Finding(what, "CPU time", spread(took), _TARGET_US, unit="us"),
    ]


if __name__ == "__main__":
    run_alone(measure)
