"""A second witness: mappings, page tables and the calls that move pages, in plain Python.

The model knows no system call and imports nothing of pagemove. It says what the contract of
`remap_anon_pages` and its relatives says, page by page and as slowly as it likes, so that the tests
in ``tests/property`` can run it beside the kernel and compare outcomes, contents and page states.

================  =================================================================================
``mappings.py``   what is mapped, how, and where one mapping ends and the next begins
``pages.py``      one page of a page table: what it holds, and who else has it
``space.py``      `AddressSpace`: page tables, and everything that changes them but moving
``moves.py``      `remap_anon_pages`, `move`, `move_many`, `unshare`
``test_*.py``     the contract's tables, asked of the model alone
================  =================================================================================

Pages are numbered by address: page `n` is the bytes from ``n * PAGE`` on. A hole is a page number
with no entry in the table. Contents are tokens: an integer that stands for a page full of it,
0 for a page of zeros.

Where the kernel is free to choose (which of two like neighbours merge into one mapping, whether a
fault gets a huge page, which pages are really swapped out) the model does not guess. It is told
what was seen, refuses it if that cannot be (`Impossible`), and goes on from there.
"""

from .mappings import PAGE, CallError, Impossible, Mapping, Registration, Vma
from .moves import RAP_ALLOW_SRC_HOLES, move, move_many, remap_anon_pages, unshare
from .pages import Claim, Kind, Page, State
from .space import HUGE, AddressSpace

__all__ = [
    "HUGE",
    "PAGE",
    "RAP_ALLOW_SRC_HOLES",
    "AddressSpace",
    "CallError",
    "Claim",
    "Impossible",
    "Kind",
    "Mapping",
    "Page",
    "Registration",
    "State",
    "Vma",
    "move",
    "move_many",
    "remap_anon_pages",
    "unshare",
]
