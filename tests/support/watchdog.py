"""No run of the tests hangs, whatever becomes of one of them: a plugin of pytest.

pytest-timeout ends a test from a thread of Python. A thread that sleeps in a page fault or in C
with the GIL held lets none run, so there is a thread of C besides. And pytest-xdist learns that a
worker has ended by the end of its pipe, which stays open as long as a child has it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
from collections.abc import Iterator
from typing import Any

import pytest

#: Seconds after the time of pytest-timeout, which says more of the test.
_LATER = float(os.environ.get("PAGEMOVE_TEST_WATCHDOG", "60"))

_stderr = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Keep standard error as it is outside tests; keep a worker's pipes from its children."""
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        config.stash[_stderr] = os.dup(2)
    if hasattr(config, "workerinput"):
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.register_at_fork(after_in_child=lambda: _replace(_pipes, nothing))


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Look at what pytest, its plugins and execnet have opened by now."""
    if hasattr(session.config, "workerinput"):
        _pipes.extend(_find_pipes())


def pytest_unconfigure(config: pytest.Config) -> None:
    """Close it."""
    faulthandler.cancel_dump_traceback_later()
    if _stderr in config.stash:
        os.close(config.stash[_stderr])
        del config.stash[_stderr]


_pipes: list[int] = []


def _find_pipes() -> Iterator[int]:
    """Yield the pipes to the process that distributes tests, and to its terminal."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if int(name) > 2 and os.readlink(f"/proc/self/fd/{name}").startswith("pipe:"):
                yield int(name)


def _replace(descriptors: list[int], by: int) -> None:
    """Close them, and keep their numbers, which a child's copy of execnet may still use."""
    for fd in descriptors:
        with contextlib.suppress(OSError):
            os.dup2(by, fd, inheritable=False)


def _seconds(item: pytest.Item) -> float:
    """Return how long a test may take, as pytest-timeout has it; 0: for ever."""
    if marker := item.get_closest_marker("timeout"):
        return float(marker.args[0])
    given = item.config.getoption("timeout", None)
    return float(item.config.getini("timeout") or 0 if given is None else given)


def _watch(item: pytest.Item) -> None:
    seconds = _seconds(item)
    if seconds > 0:
        faulthandler.dump_traceback_later(
            seconds + _LATER, exit=True, file=item.config.stash[_stderr]
        )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin."""
    _watch(item)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Begin anew: pytest stops what watches a test that has failed."""
    _watch(item)


def pytest_runtest_logfinish() -> None:
    """End."""
    faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True)
def pytest_assertrepr_compare() -> Iterator[Any]:
    """Leave out the comparison by line that pytest makes where CI is set.

    Of a mebibyte it takes longer than any test may.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CI", "BUILD_NUMBER"):
            patch.delenv(name, raising=False)
        return (yield)
