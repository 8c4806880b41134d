"""Fixtures that several files need: mappings and userfaultfds of a test's own, by raw calls."""

import mmap
import os

import pytest

from pagemove import PAGE_SIZE, lowlevel
from pagemove._native import calls
from support.probes import module

READ, WRITE = 1, 2
PRIVATE_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
MADV_NOHUGEPAGE = 15


@pytest.fixture
def area():
    """Make private anonymous mappings, each with a gap on both sides so that it stays a VMA."""
    made = []

    def make(nbytes, alignment=PAGE_SIZE):
        length = nbytes + 2 * PAGE_SIZE + alignment
        whole = calls.mmap(0, length, 0, PRIVATE_ANONYMOUS)
        made.append((whole, length))
        address = (whole + PAGE_SIZE + alignment - 1) // alignment * alignment
        calls.munmap(address, nbytes)
        calls.mmap(address, nbytes, READ | WRITE, PRIVATE_ANONYMOUS | 0x10)  # MAP_FIXED
        calls.madvise(address, nbytes, MADV_NOHUGEPAGE)
        return address

    yield make
    for address, length in made:
        calls.munmap(address, length)


@pytest.fixture
def uffd():
    fd = calls.userfaultfd(os.O_CLOEXEC | lowlevel.UFFD_USER_MODE_ONLY)
    calls.api(fd)
    yield fd
    os.close(fd)


@pytest.fixture
def fresh_features():
    """Leave no features that were found under a replaced call."""
    yield
    module._probe.cache_clear()
