"""Runs a measurement in a process of its own: one that may run out of mappings, fork, or be killed.

The child is a fresh interpreter, so that a fork inside it meets no other threads.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from typing import Any

from pagemove.measuring.endings import Unmeasurable

_PROGRAM = "from pagemove.measuring.child import main; main()"


def run_in_child(module: str, function: str, *arguments: object, timeout: float = 120.0) -> Any:
    """Call a function of pagemove in a new process and return what it returned.

    Parameters
    ----------
    module, function : str
        Where it is: ``("pagemove.compare.growth", "grow_here")``.
    *arguments : object
        What JSON can carry; so must be what it returns.
    timeout : float
        Seconds until the child is killed.

    Raises
    ------
    Unmeasurable
        It failed, was killed, or took too long.
    """
    command = [sys.executable, "-c", _PROGRAM, module, function, json.dumps(arguments)]
    # A numerical library's threads would be threads at the fork.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        raise Unmeasurable(f"the measuring process did not end within {timeout:.0f} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
        raise Unmeasurable(f"the measuring process failed: {lines[-1]}")
    return json.loads(done.stdout)


def main() -> None:
    """Do what the command line says; the counterpart of `run_in_child`."""
    module, function, arguments = sys.argv[1:]
    call = getattr(importlib.import_module(module), function)
    json.dump(call(*json.loads(arguments)), sys.stdout)
