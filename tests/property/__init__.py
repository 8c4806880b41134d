"""Tests with arguments and orders of events that nobody thought of (Hypothesis).

``test_state_machine.py``, ``test_huge_machine.py``
    Model (``tests/model``) and kernel side by side. ``arena.py`` has the areas in the kernel,
    ``world.py`` the rules for all that can happen to them, ``machine.py`` those for the calls.
``test_arguments.py``, ``test_lowlevel_arguments.py``
    Right, wrong and extreme arguments of every public function; the values are in ``values.py``,
    the memory they may name, with canaries around it, in ``ground.py``.

``PAGEMOVE_HYPOTHESIS_EXAMPLES=2000`` makes each of them try so many examples instead of the few
that fit into an ordinary test run, ``PAGEMOVE_HYPOTHESIS_STEPS=100`` makes the runs of a state
machine so long.
"""

import os

from hypothesis import settings

#: Examples asked for in the environment, 0 for the default of each test.
EXAMPLES = int(os.environ.get("PAGEMOVE_HYPOTHESIS_EXAMPLES", "0"))
#: Steps of a run of a state machine asked for in the environment, 0 for the default of each test.
STEPS = int(os.environ.get("PAGEMOVE_HYPOTHESIS_STEPS", "0"))

# The same examples on every run of continuous integration; new ones everywhere else.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
