"""How much slower this machine is than the one that deadlines are meant for.

``PAGEMOVE_TEST_SLOWNESS=10`` is for an emulated machine: all that waits, waits ten times as long.
"""

import os

SLOWNESS = float(os.environ.get("PAGEMOVE_TEST_SLOWNESS", "1"))
