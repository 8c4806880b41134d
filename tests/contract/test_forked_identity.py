"""After a fork the child takes nothing for the library's that is only like it."""

from __future__ import annotations

import contextlib
import os

import pytest

from pagemove import PAGE_SIZE, Memory
from pagemove._native import remap
from pagemove._native.mapping import generation
from support import child

pytestmark = pytest.mark.needs("move", "fork")


def test_a_child_leaves_a_file_of_the_program_alone(tmp_path):
    """Its number was the library's once, and its path is like what that has open."""
    remap.descriptor()
    links = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    folder = tmp_path / "maps" / "pagemap"
    folder.mkdir(parents=True)

    def write_in_child() -> list[bool]:
        mine = []
        for number, link in links.items():
            if link.endswith(("/maps", "/pagemap", "[userfaultfd]")):
                path = folder / f"{number}[userfaultfd]"
                fd = os.open(path, os.O_RDWR | os.O_CREAT)
                os.dup2(fd, number)
                mine.append(number)
        assert len(mine) >= 3
        return child(_are_open, mine)

    assert all(child(write_in_child))


def _are_open(numbers: list[int]) -> list[bool]:
    return [os.write(number, b"x") == 1 for number in numbers]


def test_a_pid_that_is_used_again_is_no_identity(monkeypatch):
    """A child may get the number that a process had from which it has inherited."""
    number = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: number)
    with Memory(PAGE_SIZE) as memory:
        before = generation()
        assert not memory.closed
        assert child(lambda: (memory.closed, generation() == before)) == (True, False)
