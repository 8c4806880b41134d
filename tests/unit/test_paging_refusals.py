"""paging/refusals.py: what the error of a region that cannot be made says besides."""

from __future__ import annotations

import errno
import os
import resource

import pytest

from pagemove import limits
from pagemove.errors import UnsupportedError
from pagemove.paging import refusals


@pytest.fixture(autouse=True)
def rlimits(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Let soft and hard limits be what a test puts in here; what is not in it is not limited."""
    found: dict[int, int] = {}
    monkeypatch.setattr(
        resource, "getrlimit", lambda number: (found.get(number, resource.RLIM_INFINITY),) * 2
    )
    monkeypatch.setattr(limits, "groups", lambda name: iter(()))
    monkeypatch.setattr(limits, "is_dumpable", lambda: True)
    return found


def explained(code: int, *, by_helper: bool = False, lanes: int = 0) -> str:
    error = OSError(code, "cannot set up")
    error.explained = by_helper  # type: ignore[attr-defined]
    kind = type(error)
    refusals.explain(error, lanes)
    assert (type(error), error.errno) == (kind, code)
    assert str(error).startswith(f"[Errno {code}] cannot set up")
    return str(error).removeprefix(f"[Errno {code}] cannot set up")


def test_a_helper_that_ends_as_it_starts_may_have_met_a_limit(rlimits):
    assert explained(errno.EPIPE, by_helper=True) == ""
    rlimits[resource.RLIMIT_NOFILE] = 1024
    assert explained(errno.EPIPE, by_helper=True) == ""
    rlimits[resource.RLIMIT_NOFILE] = 20
    rlimits[resource.RLIMIT_AS] = 1 << 30
    said = explained(errno.EPIPE, by_helper=True)
    assert "may have 20 descriptors (RLIMIT_NOFILE)" in said
    assert f"may have {1 << 30} bytes of addresses (RLIMIT_AS)" in said
    assert "ulimit -v unlimited" in said


def test_eagain_of_a_store_is_no_limit(rlimits):
    rlimits[resource.RLIMIT_NPROC] = 1
    assert explained(errno.EAGAIN, by_helper=True) == ""
    assert "may have 1 processes and threads (RLIMIT_NPROC)" in explained(errno.EAGAIN)


@pytest.mark.parametrize(
    ("lanes", "needed"),
    [
        (0, "the pager opens up to 16, and 3 for each region over a file"),
        (16, "this region opens up to 48"),
    ],
)
def test_how_many_descriptors_are_needed(rlimits, lanes, needed):
    rlimits[resource.RLIMIT_NOFILE] = 40
    said = explained(errno.EMFILE, lanes=lanes)
    assert said.startswith(f"; {needed}; the process may have 40 ")
    # A helper speaks of its own.
    assert "opens up to" not in explained(errno.EMFILE, by_helper=True)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM])
def test_not_dumpable(monkeypatch, code):
    assert explained(code) == ""
    monkeypatch.setattr(limits, "is_dumpable", lambda: False)
    assert "prctl(PR_SET_DUMPABLE, 1)" in explained(code)
    error = UnsupportedError(code, "as it is")
    refusals.explain(error)
    assert error.strerror == "as it is"


def test_others_stay_as_they_are(rlimits):
    rlimits[resource.RLIMIT_NOFILE] = rlimits[resource.RLIMIT_AS] = 10
    for code in (errno.EIO, errno.EBUSY, errno.EFBIG, errno.ENOSPC):
        assert explained(code) == ""


def test_dumpable_or_not(monkeypatch):
    monkeypatch.undo()
    assert limits.is_dumpable()
    monkeypatch.setattr(os, "geteuid", lambda: 1 << 20)
    assert not limits.is_dumpable()
