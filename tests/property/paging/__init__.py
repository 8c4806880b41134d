"""A paged region beside its model (``tests/model/region.py``), by Hypothesis.

``machine.py`` has the rules for a store that works or fails only for a moment, ``failing.py`` those
for one that is broken for a while and mended, ``unruly.py`` those for one in a helper process whose
calls are late, done twice or in half, or raise. Each machine runs in a child with a deadline, for a
region that hangs must not hang the tests.
"""
