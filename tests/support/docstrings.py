"""A program: runs the examples of docstrings, and prints digests of what they print and leave.

    python docstrings.py NAME...

Each name is of a module, a class or a function of an installed package; of a module's functions and
classes all are run. What differs from one run to the next in the same interpreter, addresses and
seeds that nobody chose, is taken out.
"""

from __future__ import annotations

import doctest
import functools
import hashlib
import pydoc
import re
import sys
import warnings
from types import ModuleType
from typing import Any

import numpy as np


class Examples(doctest.DocTestRunner):
    """Runs examples whatever they should print, and keeps what they do print."""

    def __init__(self) -> None:
        super().__init__(verbose=False)
        self.printed: list[str] = []

    def report_start(self, *_: Any) -> None:
        pass

    def report_success(self, out: Any, test: Any, example: Any, got: str) -> None:
        self.printed.append(got)

    report_failure = report_success

    def report_unexpected_exception(self, out: Any, test: Any, example: Any, raised: Any) -> None:
        self.printed.append(f"{raised[0].__name__}: {raised[1]}")


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def left_by(test: doctest.DocTest) -> list[tuple[str, str, str]]:
    """List the arrays that an example leaves: name, kind and shape, digest."""
    return [
        (name, f"{value.dtype}{value.shape}", digest(np.ascontiguousarray(value).tobytes()))
        for name, value in sorted(test.globs.items())
        if isinstance(value, np.ndarray) and not value.dtype.hasobject
    ]


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    seeded = np.random.default_rng
    np.random.default_rng = functools.wraps(seeded)(lambda seed=0: seeded(seed))
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in names:
        found: Any = pydoc.locate(name)
        is_module = isinstance(found, ModuleType)
        # What examples of pandas have without importing it.
        known = {"np": np, "pd": sys.modules.get("pandas")}
        for test in finder.find(found, name, module=None if is_module else False, globs=known):
            if not test.examples:
                continue
            np.random.seed(0)  # noqa: NPY002 (some examples have no other)
            runner = Examples()
            runner.run(test, out=lambda _: None, clear_globs=False)
            said = re.sub(r"0x[0-9a-f]+", "", "".join(runner.printed))
            print(test.name, len(test.examples), digest(said.encode()), *left_by(test))


if __name__ == "__main__":
    main(sys.argv[1:])
