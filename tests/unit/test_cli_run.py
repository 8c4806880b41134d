"""Arguments of `pagemove run`: what is parsed without argparse is as argparse has it."""

from __future__ import annotations

import contextlib
import io

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pagemove.cli.run import _parsed, _simple

_WORDS = (
    *("--limit", "2GiB", "--limit=50%", "--store-limit", "--store-limit=1", "--min-size", "64"),
    *("--spill", "folder", "--spill=", "--report", "--report=1", "--lim", "--help", "-u", "-X"),
    *("-m", "-c", "-mmodule", "-ccode", "module", "1/0", "program.py", "-", "--", "-5", ""),
)


@settings(max_examples=2000, deadline=None)
@given(st.lists(st.sampled_from(_WORDS), max_size=7))
@example(["--limit", "2GiB", "--report", "-m", "module", "--limit", "-u"])
@example(["--spill=", "program.py", "--report"])
def test_both_ways_of_parsing_agree(words):
    simple = _simple(words)
    if simple is None:
        return
    with contextlib.redirect_stderr(io.StringIO()):
        assert _parsed(words) == simple


def test_usual_forms_are_parsed_without():
    assert _simple(["--limit", "1GiB", "program.py", "-x"]) is not None
    assert _simple(["--report", "-m", "module"]) is not None
    assert _simple(["-c", "1/0"]) is not None
    assert _simple(["--help"]) is None
    assert _simple(["-u", "program.py"]) is None
    assert _simple([]) is None
