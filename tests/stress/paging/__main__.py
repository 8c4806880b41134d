"""Run seeds of `unruly.py` one after another: ``cd tests && python -m stress.paging``."""

from __future__ import annotations

import argparse
import itertools
import sys
import time

from support import ChildFailed, child, needs, paging

from .backings import KINDS
from .scenario import Scenario
from .unruly import run


def main() -> int:
    """Run them; the number of those that failed is the status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--count", type=int, default=0, help="how many; 0: until the time is over")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each")
    parser.add_argument("--kind", choices=KINDS, default="", help="this kind of store only")
    parser.add_argument("--merging", action="store_true", help="pages that KSM merges")
    asked = parser.parse_args()
    paging.build()
    if asked.merging and (why := needs.missing("ksm")):
        parser.error(why)
    how = {"kind": asked.kind, "seconds": asked.seconds, "merging": asked.merging}
    end, failed = time.monotonic() + 60 * asked.minutes, 0
    for number in itertools.count(asked.seed):
        if number - asked.seed == asked.count if asked.count else time.monotonic() > end:
            break
        scenario = Scenario.drawn(number, **how)
        if any(map(needs.missing, KINDS[scenario.kind].needs)):
            continue
        before = time.monotonic()
        try:
            outcome = str(child(run, scenario, deadline=asked.seconds + 100))
        except ChildFailed as error:
            failed += 1
            outcome = f"FAILED\n{error}"
        print(f"{time.monotonic() - before:.1f} s {scenario}: {outcome}", flush=True)
    print(f"{number - asked.seed} seeds, {failed} failed")
    needs.undo()
    return min(failed, 99)


if __name__ == "__main__":
    sys.exit(main())
