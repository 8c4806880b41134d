"""How much slower this machine is than the one that deadlines are meant for.

``PAGEMOVE_TEST_SLOWNESS=10`` is for an emulated machine: all that waits, waits ten times as long.
"""

import os

SLOWNESS = float(os.environ.get("PAGEMOVE_TEST_SLOWNESS", "1"))

#: A test that is well does not wait for it; one that hangs is known a little later.
_LEAST = 120.0


def patience(seconds: float) -> float:
    """Return how long to wait for what should be over in so many seconds.

    Minutes, since the machine may be busy: an order of events must not depend on it, nor whether a
    test passes. Less than five seconds are for what is expected to take longer.
    """
    return (max(seconds, _LEAST) if seconds >= 5 else seconds) * SLOWNESS
