"""What `features` finds, and what takes the place of the calls that it makes."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import NoReturn

from pagemove.kernel import KernelFeatures, Problem

#: The module of `features`, of which tests replace parts.
module = importlib.import_module("pagemove.probing")


def by_name(found: KernelFeatures) -> dict[str, Problem]:
    """List what is missing."""
    return {problem.name: problem for problem in found.problems}


def failing(error: int) -> Callable[..., NoReturn]:
    """Make a call that fails with an errno."""

    def fail(*_arguments: object) -> NoReturn:
        raise OSError(error, os.strerror(error))

    return fail
