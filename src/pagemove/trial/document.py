"""A trial as JSON.

The file holds one object; sizes are in bytes, times in seconds unless they are called ns.

``pagemove``, ``schema``
    Version of the package, and of this format: 1.
``machine``
    As `pagemove compare` writes it; without ``pinned``, because nothing is.
``plan``
    ``source`` (a path, or a URL without its password), ``limit``, ``block_size``, ``pattern``,
    ``write``, ``seconds``.
``nbytes``
    Length of the source.
``interrupted``
    Whether it was interrupted.
``flush_seconds``
    How long saving what was written took, after the last sample.
``rates``
    Of the whole run: ``faults`` a second, ``gigabytes`` (10**9 bytes) a second, ``hit_rate`` (share
    of touches that found their block in place).
``most_resident``
    The most bytes that any sample found in memory.
``stats``
    At the end: the counts of `PagingStats`, ``p50_ns``, ``p99_ns``, ``histogram`` (pairs: upper
    bound in ns, faults below it and not below the one before), ``failures`` (texts).
``samples``
    ``seconds`` since the start, ``touches`` (blocks), ``nbytes`` (in them), and of the region's
    counts until then ``faults``, ``resident_nbytes``, ``dirty_nbytes``.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from pagemove import stdout
from pagemove._version import __version__
from pagemove.measuring.machine import machine
from pagemove.paging.stats import PagingStats
from pagemove.trial.trying import Outcome, Sample

SCHEMA = 1


def document(outcome: Outcome) -> dict[str, Any]:
    """Make the object that is written, of what JSON can carry."""
    here = dataclasses.asdict(machine())
    del here["pinned"]
    # Not the options, among which are credentials.
    plan = dataclasses.asdict(outcome.plan) | {"source": outcome.plan.source.shown}
    return {
        "pagemove": __version__,
        "schema": SCHEMA,
        "machine": here,
        "plan": plan,
        "nbytes": outcome.nbytes,
        "interrupted": outcome.interrupted,
        "flush_seconds": outcome.flush_seconds,
        "rates": dataclasses.asdict(outcome.rates),
        "most_resident": outcome.most_resident,
        "stats": _stats(outcome.stats),
        "samples": [_sample(sample) for sample in outcome.samples],
    }


def _stats(stats: PagingStats) -> dict[str, Any]:
    counts = {each.name: getattr(stats, each.name) for each in dataclasses.fields(stats)}
    return {
        **counts,
        "p50_ns": stats.p50_ns,
        "p99_ns": stats.p99_ns,
        "failures": [str(failure) for failure in stats.failures],
    }


def _sample(sample: Sample) -> dict[str, Any]:
    return {
        "seconds": sample.seconds,
        "touches": sample.touches,
        "nbytes": sample.nbytes,
        "faults": sample.stats.faults,
        "resident_nbytes": sample.stats.resident_nbytes,
        "dirty_nbytes": sample.stats.dirty_nbytes,
    }


def write(outcome: Outcome, path: Path) -> None:
    """Write it to a file, or, if that is ``-``, to standard output."""
    stdout.write(json.dumps(document(outcome), indent=2) + "\n", path)
