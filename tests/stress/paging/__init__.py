"""Threads that write, against everything that takes their pages away, for a bounded time.

``PAGEMOVE_SOAK=20`` makes each test run so many times as long.
"""

import os

#: How many times as long as in an ordinary test run.
SOAK = float(os.environ.get("PAGEMOVE_SOAK", "1"))
