"""The faulty store by the name that it had before `pagemove.testing`; programs still import it."""

from importlib import import_module
from typing import Any

# By its name: stores know nothing of what tests them, and this one only forwards.
_faulty: Any = import_module("pagemove.testing.faulty")
Fault: Any = _faulty.Fault
FaultyFileStore: Any = _faulty.FaultyStore
