"""Directories that `spill` cannot use: an error that names them, the cause and what to do."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

import pagemove
from pagemove._native import pager
from support import child
from support.disks import mounted

pytestmark = pytest.mark.needs("paging")

_COMPRESSED = pytest.param(
    {"store_limit": "16MiB"},
    id="compressed",
    marks=pytest.mark.skipif(pager.codec() is None, reason="no liblz4.so.1 nor libzstd.so.1"),
)
ways = pytest.mark.parametrize("how", [pytest.param({}, id="as it is"), _COMPRESSED])


def _message(spill: str | Path, how: dict[str, str]) -> str:
    with (
        pytest.raises(OSError, match="spill") as caught,
        pagemove.paged_allocations("8MiB", spill=spill, **how),
    ):
        pass
    assert str(spill) in str(caught.value)
    # How many addresses there would have been helps nobody.
    assert "bytes:" not in str(caught.value)
    return str(caught.value)


@ways
def test_a_file_system_that_makes_no_files(how):
    said = _message("/proc", how)
    assert "its file system makes no files; name a directory that does, or leave spill out" in said


@ways
def test_one_that_is_read_only(tmp_path, how):
    with mounted(tmp_path / "disk", "tmpfs", "ro") as disk:
        said = _message(disk, how)
    assert "Read-only file system; name a directory that this process may write to" in said


def _as_nobody(directory: Path, how: dict[str, str]) -> str:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    return _message(directory, how)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.needs("fork")
@ways
def test_one_in_a_directory_that_is_closed_to_this_user(tmp_path, how):
    inner = tmp_path / "closed" / "inner"
    inner.mkdir(parents=True)
    inner.parent.chmod(0o700)
    said = child(_as_nobody, inner, how, deadline=60)
    assert "spill must be a directory" in said
    assert "cannot be looked at: Permission denied" in said


def _with_small_files(directory: Path, how: dict[str, str]) -> str:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    return _message(directory, how)


@pytest.mark.needs("fork")
@ways
def test_a_limit_on_the_size_of_files(tmp_path, how):
    said = child(_with_small_files, tmp_path, how, deadline=60)
    assert "RLIMIT_FSIZE" in said
    assert "raise" in said
    assert "name a directory" not in said


def _beyond_the_limit(directory: Path, how: dict[str, str]) -> bool:
    with pagemove.paged_allocations("8MiB", spill=directory, **how) as arena:
        arrays = [np.arange(1 << 20) + i for i in range(4)]
        paging = arena.stats().paging
    assert paging is not None
    assert paging.evicted > 0
    return all((each == np.arange(1 << 20) + i).all() for i, each in enumerate(arrays))


@pytest.mark.needs("fork")
@ways
def test_one_that_does_not_say_how_large_it_is_has_room(tmp_path, how):
    with mounted(tmp_path / "disk", "ramfs") as disk:
        assert child(_beyond_the_limit, disk, how, deadline=60)
