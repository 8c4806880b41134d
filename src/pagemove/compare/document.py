"""The measured argument as JSON.

The file holds one object; times are in nanoseconds, sizes in bytes unless they are called pages.

``pagemove``, ``schema``
    Version of the package, and of this format: 1.
``machine``
    ``kernel`` (release), ``architecture``, ``cpus`` that may be used, ``pinned`` (whether the
    measuring thread was kept on one CPU, and the other thread on another), ``page_size``,
    ``huge_page_size``, ``huge_pages`` (always, madvise or never), ``max_map_count``, ``defects``
    of the kernel (as `pagemove doctor` names them: remap_anon_pages guards against them, which is
    part of its cost), ``last_level_cache``, ``python``, ``numpy``.
``interrupted``
    Whether it was interrupted: what was measured until then is there.
``plan``
    How thorough the run was: ``quick``, ``seconds``, ``rounds``, the sizes ...
``scenarios``
    A list: ``key``, ``title``, ``claim``, ``who``, ``measured``, ``measurement`` (key in
    ``measurements``), ``verdict`` ("holds", "holds in part", "does not hold on this kernel",
    "could not be measured"), ``why`` (the figures it rests on, or the reason).
``measurements``
    What could be measured, by key. A spread is ``median``, ``lower`` and ``upper`` (quartiles) and
    ``samples``.

    ``mappings``
        ``limit`` (vm.max_map_count) and ``growths``: ``method``, ``points`` (pairs: moves, mappings
        added), ``moves``, ``ended_by`` (errno or null).
    ``outcomes``
        ``cells``: ``situation``, ``method``, ``code``, ``text``.
    ``costs``
        ``costs``: ``method``, ``size``, ``pages``, ``huge``, ``caches`` ("cold" or "warm"),
        ``sibling`` (whether another thread ran), ``ns`` (spread of one operation).
        ``crossings``: ``rival`` of remap_anon_pages, ``caches``, ``sibling``, ``points`` (``size``
        in pages, and which is ``cheaper`` above), ``cheaper_below``. ``empty_calls``: spreads by
        what was called, contained in the costs and not subtracted. ``chilled_by``: bytes read to
        make the caches cold. ``left_out``: what could not be measured, and why. ``cpu_share``,
        ``sibling_share``: how much of the time the two threads had a CPU.
    ``faults``
        ``undisturbed`` (spread: from one fault to the next) and ``disturbances``: ``method``,
        ``pages`` of one operation, ``fault``, ``lost`` (of the other thread's time, to one
        operation), ``operations`` in a millisecond: all spreads.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from pagemove import stdout
from pagemove._version import __version__
from pagemove.compare.scenarios import Argument

SCHEMA = 1


def document(argument: Argument) -> dict[str, Any]:
    """Make the object that is written, of what JSON can carry."""
    texts = ("key", "title", "claim", "who", "measured", "measurement")
    return {
        "pagemove": __version__,
        "schema": SCHEMA,
        "machine": dataclasses.asdict(argument.machine),
        "interrupted": argument.interrupted,
        "plan": dataclasses.asdict(argument.plan),
        "scenarios": [
            {text: getattr(scenario, text) for text in texts}
            | {"verdict": finding.verdict.value, "why": finding.why}
            for scenario, finding in argument.findings
        ],
        "measurements": {key: dataclasses.asdict(data) for key, data in argument.measured.items()},
    }


def write(argument: Argument, path: Path) -> None:
    """Write it to a file, or, if that is ``-``, to standard output."""
    stdout.write(json.dumps(document(argument), indent=2) + "\n", path)
