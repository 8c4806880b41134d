"""Programs that are ended by SIGTERM with changes that nothing has written before."""

from __future__ import annotations

import signal
import textwrap
from pathlib import Path

from support.programs import run

DEADLINE = 60.0
KILLED = -signal.SIGTERM

OPEN = """
def changed(**how):
    return count_up(opened(resident_limit=None, writeback_interval=None, **how))

def raise_it():
    os.kill(os.getpid(), signal.SIGTERM)
"""


def ends(path: Path, script: str) -> tuple[int, str, str]:
    return run(path, OPEN + textwrap.dedent(script), DEADLINE)
