"""What tests of every kind share; ``tests`` is on the path, so ``from support import foreign``.

==================  ===============================================================================
``needs.py``        what a test may declare to need, how it is probed, and how it is provided
``pages.py``        memory by its address: contents, page states, resident bytes, mappings
``foreign.py``      private anonymous memory that is not a `Memory`, alone between guard gaps
``children.py``     code in a child process: to its end with a deadline, or held alive; in a fresh
                    interpreter
``threads.py``      several functions at once, started together, their exceptions raised here
``exceptions.py``   whatever a store may raise
``helpers.py``      stores that helper processes run, held by reins; those processes
``late_stores.py``  a store whose calls are late, reordered, done twice, or raise afterwards
``probes.py``       what `features` finds, and calls that fail in the place of those it makes
``store_kinds.py``  every kind of store, and the servers that some need
``unruly.py``       a store that does all that a store may do, around any other, and a disk that
                    forgets what was not flushed
``watchdog.py``     a plugin of pytest that ends what pytest-timeout cannot
``system.py``       system calls that neither Python nor pagemove has: mlock2, seccomp, io_uring
==================  ===============================================================================
"""

from support.children import Child, ChildFailed, child, fork, fresh_interpreter, living_child
from support.foreign import Area, foreign
from support.needs import NEEDS, missing
from support.pages import (
    at,
    hole,
    pattern,
    read,
    read_all,
    rss,
    smaps,
    state,
    states,
    vmas_in,
    write,
    write_all,
)
from support.threads import together, wait_for

__all__ = [
    "NEEDS",
    "Area",
    "Child",
    "ChildFailed",
    "at",
    "child",
    "foreign",
    "fork",
    "fresh_interpreter",
    "hole",
    "living_child",
    "missing",
    "pattern",
    "read",
    "read_all",
    "rss",
    "smaps",
    "state",
    "states",
    "together",
    "vmas_in",
    "wait_for",
    "write",
    "write_all",
]
