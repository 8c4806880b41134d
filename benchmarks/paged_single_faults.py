"""Random faults on 4 KiB blocks, the median time of one, against a bare C loop."""

from __future__ import annotations

import numpy as np

from benchmarks._baselines import bare_loop, touch_each
from benchmarks._measure import Effort, Finding
from benchmarks._paging import Chunks, Memory, Way, cached_file, cost, in_turn, paged, places
from benchmarks._report import run_alone

_BLOCK = 4096
_TOUCHES = 256
_TARGET = 1.15


def _way(name: str, memory: Memory, chunks: Chunks) -> Way:
    def measure() -> float:
        return float(np.median(touch_each(memory.address, chunks.take(_TOUCHES))))

    return Way(name, measure)


def measure(effort: Effort) -> list[Finding]:
    findings = []
    # One more round warms up.
    nbytes = _BLOCK * _TOUCHES * (effort.rounds + 1)
    with cached_file(nbytes) as file:
        for place in places():
            baseline, subject = "bare C loop", f"one fault; {place.name}"
            with place.here(), paged(file, _BLOCK) as memory:
                bare = bare_loop(file.fd, nbytes, _BLOCK)
                samples = in_turn(
                    [
                        _way(baseline, bare, Chunks(nbytes, _BLOCK, 1)),
                        _way(subject, memory, Chunks(nbytes, _BLOCK, 2)),
                    ],
                    effort.rounds,
                )
                assert bare.faults == nbytes // _BLOCK
                bare.close()
                share = memory.faults * _BLOCK / nbytes
            findings.append(
                cost(samples, subject, baseline, _TARGET, f"{share:.0%} of the touches were faults")
            )
    return findings


if __name__ == "__main__":
    run_alone(measure)
