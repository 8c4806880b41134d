"""What all tests share: needs declared as data, and no test leaves anything behind."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pagemove._native import pager, remap
from support import Area, paging, selection, watchdog
from support import needs as _needs
from support.foreign import foreign as _foreign
from support.system import collapse_heap, refuse_io_uring

if _needs.WITHOUT_MOVE:
    pager.set_moves(False)
if _needs.WITHOUT_URING:
    refuse_io_uring(errno.EPERM)  # for what tests start too

REQUIRE_FEATURES = os.environ.get("PAGEMOVE_REQUIRE_FEATURES", "") not in ("", "0")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("pagemove").addoption(
        "--sets",
        choices=selection.SETS,
        default="all",
        help="which sets of parameters run, and which tests (support/selection.py)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(selection.Selection(config))
    config.pluginmanager.register(watchdog)
    config.addinivalue_line("markers", "slow: takes longer than its like; not in the lean suite")
    config.addinivalue_line("markers", "lean: in the lean suite, though it needs a server")
    config.addinivalue_line(
        "markers", "each: every value of its parameters is in the lean suite (a name, an example)"
    )
    config.addinivalue_line("markers", "alone: changes the machine; runs beside no other test")
    config.addinivalue_line(
        "markers",
        "needs(*names): what the machine must have, by the names in tests/support/needs.py; the "
        "test is skipped without, or fails where PAGEMOVE_REQUIRE_FEATURES=1",
    )
    config.addinivalue_line("markers", "thread_unsafe: of NumPy's own tests, which run here too")
    if getattr(config.option, "numprocesses", None):
        _needs.provide_for_all()
    config.add_cleanup(_needs.undo)
    # A shell ignores it for what runs in the background, and what tests start would inherit that.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    unknown = {name for item in items for name in selection.needs(item)} - set(_needs.NEEDS)
    if unknown:
        raise pytest.UsageError(f"tests need what tests/support/needs.py does not know: {unknown}")
    for item in items:
        if not selection.ALONE.isdisjoint(selection.needs(item)):
            item.add_marker("alone")


def pytest_collection_finish() -> None:
    """Spare tests and their children the collection of what is there by now and stays.

    And the kernel the pages of it, one by one, in each fork.
    """
    gc.collect()
    gc.freeze()
    collapse_heap()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for name in dict.fromkeys(selection.needs(item)):
        reason = _needs.missing(name)
        if reason and REQUIRE_FEATURES and name not in _needs.MAY_LACK:
            pytest.fail(f"needs {name}: {reason} (PAGEMOVE_REQUIRE_FEATURES is set)", pytrace=False)
        if reason:
            pytest.skip(f"needs {name}: {reason}")


@pytest.fixture(autouse=True)
def _defects_restored() -> Iterator[None]:
    """Take back what a test made the library believe of the kernel."""
    before = None
    with contextlib.suppress(OSError):
        before = remap.defects()
    yield
    if before is not None:
        remap.set_defects(before)


@pytest.fixture
def foreign() -> Iterator[Callable[..., Area]]:
    """Make private anonymous memory that is no `Memory` (`support.foreign`), freed afterwards."""
    with contextlib.ExitStack() as stack:
        yield lambda pages=1, **how: stack.enter_context(_foreign(pages, **how))


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """Make a file of so many bytes with the pattern of a tag (`support.paging.make_file`)."""
    made = 0

    def make(nbytes: int, tag: int = 0, *, cold: bool = False) -> Path:
        nonlocal made
        made += 1
        return paging.make_file(tmp_path / f"file-{made}", nbytes, tag, cold=cold)

    return make


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        # The descriptor of the listing itself is gone by now.
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


_last_unforked = (b"", 0)


def _unforked() -> int:
    """Count the bytes that a fork leaves out: those of every `Memory`, and hardly any others.

    The kernel walks page tables for this: it is asked again where the list of mappings has changed.
    """
    global _last_unforked
    mappings = Path("/proc/self/maps").read_bytes()
    if mappings != _last_unforked[0]:
        text = Path("/proc/self/smaps").read_bytes()
        flags = [flag.start() for flag in re.finditer(rb"VmFlags:[^\n]* dc\b", text)]
        sizes = [text[text.rindex(b"\nSize:", 0, at) + 6 : at].split(None, 1)[0] for at in flags]
        _last_unforked = mappings, sum(int(size) << 10 for size in sizes)
    return _last_unforked[1]


@pytest.fixture
def no_leak() -> Iterator[None]:
    """Fail a test after which descriptors, or the memory of a `Memory`, are left.

    The library's own descriptors are opened first; it may open them anew (a test may have closed
    them), so they are compared by what they are, not by number.
    """
    with contextlib.suppress(OSError):
        remap.descriptor()
    descriptors, memory = _descriptors(), _unforked()
    yield
    # The thread that passes on a helper's log closes its socket when the helper has ended.
    limit = time.monotonic() + 5
    while sorted(_descriptors().values()) != sorted(descriptors.values()):
        gc.collect()
        assert time.monotonic() < limit, (
            f"descriptors left open, or closed: {sorted(_descriptors().values())} after, "
            f"{sorted(descriptors.values())} before"
        )
        time.sleep(0.01)
    left_unforked = _unforked()
    if left_unforked != memory:
        # A caught exception keeps frames, and with them what they hold, until a collection.
        gc.collect()
        left_unforked = _unforked()
    assert left_unforked == memory, "memory not freed"
