"""A program that gives up its user: regions from before work on, later ones work or say why."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import re
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pagemove
from pagemove import PAGE_SIZE, PagedMemory, StoreError, UnsupportedError
from pagemove.stores import FileStore
from support import child, fork, wait_for
from support.helpers import Reined, helpers, numbered, reined, stored
from support.paging import expected, make_file
from support.system import NOBODY, become_nobody
from support.threads import passing_threads

pytestmark = pytest.mark.needs("paging", "fork", "root")

_NBYTES = 32 * PAGE_SIZE
_OPTIONS: dict[str, Any] = {"block_size": PAGE_SIZE, "resident_limit": 8 * PAGE_SIZE}
_PR_SET_DUMPABLE, _PR_SET_KEEPCAPS = 4, 8

_libc = ctypes.CDLL(None, use_errno=True)


def _files(folder: Path) -> list[Path]:
    paths = [make_file(folder / name, _NBYTES) for name in ("one", "two")]
    for path in paths:
        path.chmod(0o666)
    return paths


def _user() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def _effective_user() -> None:
    os.seteuid(NOBODY)


def _group() -> None:
    os.setgid(NOBODY)


def _user_and_dumpable() -> None:
    _user()
    _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def _not_dumpable() -> None:
    """Of a user without capabilities, as a program with capabilities in its file is."""
    _user_and_dumpable()
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


CHANGES: list[Callable[[], None]] = [
    _user,
    _effective_user,
    _group,
    _user_and_dumpable,
    _not_dumpable,
    become_nobody,
]


def _old_regions(change: Callable[[], None], paths: list[Path], store: Reined) -> None:
    array = pagemove.open_array(paths[0], dtype=np.uint64, **_OPTIONS)
    with (
        FileStore(paths[1], writable=True) as file,
        PagedMemory(file, mode="r+", **_OPTIONS) as written,
        PagedMemory(store, mode="r+", **_OPTIONS) as helped,
    ):
        (helper,) = helpers()
        change()
        assert np.array_equal(array, expected(_NBYTES))
        for region in (written, helped):
            words = region.asarray(np.uint64)
            before = words.copy()
            words += 1
            region.flush()
            region.evict()
            assert np.array_equal(words, before + np.uint64(1))
            del words
            assert region.stats().errors == 0
    wait_for(lambda: not os.path.exists(f"/proc/{helper}"))


def _said(call: Callable[[], Any]) -> tuple[str, int, str]:
    try:
        call()
    except OSError as error:
        return type(error).__name__, error.errno or 0, str(error)
    return "", 0, ""


def _new_regions(change: Callable[[], None], paths: list[Path]) -> list[tuple[str, int, str]]:
    pagemove.open_array(paths[0], dtype=np.uint64, mode="c", **_OPTIONS)  # what is imported late
    change()

    def sums(mode: str) -> None:
        array = pagemove.open_array(paths[0], dtype=np.uint64, mode=mode, **_OPTIONS)
        assert np.array_equal(array, expected(_NBYTES))

    def moves() -> None:
        with pagemove.Memory(PAGE_SIZE) as one, pagemove.Memory(PAGE_SIZE) as other:
            pagemove.move(one, other, holes=True)

    before = len(passing_threads())
    found = [_said(functools.partial(sums, mode)) for mode in ("r", "r+", "c")]
    found.append(_said(moves))
    # Those of the first region may have been ending.
    wait_for(lambda: len(passing_threads()) <= before)
    return found


@pytest.mark.parametrize("change", CHANGES)
def test_old_regions_work_on(shared, change):
    paths = _files(shared)
    with reined(shared, numbered(_NBYTES), concurrency=2) as store:
        child(_old_regions, change, paths, store, deadline=60)
        assert np.array_equal(stored(store), numbered(_NBYTES) + np.uint64(1))
    assert np.array_equal(np.fromfile(paths[1], np.uint64), expected(_NBYTES) + np.uint64(1))


@pytest.mark.parametrize("change", [_user, _effective_user, _not_dumpable])
def test_new_regions_name_what_is_in_the_way(shared, change):
    *regions, move = child(_new_regions, change, _files(shared), deadline=60)
    for kind, code, text in regions:
        assert (kind, code) == ("PermissionError", errno.EACCES)
        assert "/proc/self/pagemap" in text
    for kind, code, text in (*regions, move):
        assert kind in ("PermissionError", "UnsupportedError"), code
        assert "not dumpable" in text
        assert "prctl(PR_SET_DUMPABLE, 1)" in text


@pytest.mark.parametrize("change", [_group, _user_and_dumpable, become_nobody])
def test_new_regions_work(shared, change):
    assert child(_new_regions, change, _files(shared), deadline=60) == [("", 0, "")] * 4


def _another_helper(
    store: Reined, timeout: float, orders: int, answers: int
) -> tuple[int, bool, str]:
    with PagedMemory(store, mode="r+", store_timeout=timeout, **_OPTIONS) as region:
        _user_and_dumpable()
        os.write(answers, str(helpers()[0]).encode())
        os.read(orders, 1)
        try:
            region.prefetch(0, PAGE_SIZE, wait=True)
        except StoreError as error:
            return region.stats().restarts, False, " ".join(error.__notes__)
        return region.stats().restarts, True, ""


def _is_reachable(path: Path) -> bool:
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in path.parents)


def test_another_helper_is_started(shared):
    """By the new user, after somebody has killed the one that root has started."""
    python = Path(sys.executable)
    starts = _is_reachable(python) and _is_reachable(python.resolve())
    with reined(shared, numbered(_NBYTES), concurrency=2) as store:
        for path in shared.iterdir():
            path.chmod(0o666)
        orders, answers = os.pipe(), os.pipe()
        killer = fork()
        if not killer:
            os.kill(int(os.read(answers[0], 16)), signal.SIGKILL)
            os.write(orders[1], b"x")
            os._exit(0)
        try:
            restarts, works, notes = child(
                _another_helper, store, 20.0 if starts else 0.5, orders[0], answers[1], deadline=60
            )
        finally:
            os.kill(killer, signal.SIGKILL)
            os.waitpid(killer, 0)
            for fd in (*orders, *answers):
                os.close(fd)
    assert restarts == 1
    if starts:
        assert works, notes
    else:
        assert "has ended, and cannot be started anew: " in notes
        assert "Permission denied" in notes


def _out_of_reach(store: Reined, python: Path) -> tuple[str, int, str]:
    import multiprocessing

    import pagemove.paging.handover  # noqa: F401 (what is imported late)

    multiprocessing.set_executable(str(python))
    _user_and_dumpable()
    return _said(lambda: PagedMemory(store, mode="r+", **_OPTIONS))


def test_a_python_that_the_user_may_not_reach(shared):
    locked = shared / "locked"
    locked.mkdir(mode=0o700)
    python = locked / "python"
    python.write_text("")
    python.chmod(0o755)
    with reined(shared, numbered(_NBYTES), concurrency=1) as store:
        kind, code, text = child(_out_of_reach, store, python, deadline=60)
    assert (kind, code) == (UnsupportedError.__name__, errno.EACCES)
    assert re.search(rf"the user {NOBODY} cannot reach {python}: Permission denied; ", text)
    assert "multiprocessing.set_executable" in text
