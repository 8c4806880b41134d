"""The C parts of the tests are built before their children are forked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import paging


@pytest.fixture(scope="session", autouse=True)
def _built() -> None:
    paging.build()


@pytest.fixture
def shared() -> Iterator[Path]:
    """Return a folder that any user can reach; pytest's own are its user's."""
    with tempfile.TemporaryDirectory(prefix="pagemove-tests-") as folder:
        path = Path(folder)
        path.chmod(0o777)
        yield path


@pytest.fixture
def out() -> Iterator[int]:
    """A file for system calls to write to."""
    fd = os.memfd_create("out")
    yield fd
    os.close(fd)


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., list[Path]]:
    """Make so many files of so many bytes each, with the pattern of `make_file`."""

    def make(count: int, nbytes: int) -> list[Path]:
        return [paging.make_file(tmp_path / f"{n}.bin", nbytes) for n in range(count)]

    return make
