"""Whoever may nothing is told once what fails, and the remedy."""

from __future__ import annotations

import pytest

from support import fresh_interpreter

pytestmark = pytest.mark.needs("paging")

_BEFORE = """
import errno, os, sys, warnings
import numpy as np
import pagemove
from pagemove._native import pager
np.save(sys.argv[1], np.arange(100_000))
def kinds(count, filter="always"):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(filter)
        for _ in range(count):
            pagemove.open_array(sys.argv[1])
    return [(each.category.__name__, each.filename, str(each.message)) for each in caught]
"""


@pytest.fixture
def run(tmp_path):
    return lambda code: fresh_interpreter(_BEFORE + code, str(tmp_path / "file.npy"))


@pytest.mark.needs("kernel_faults")
def test_with_privileges_nothing_is_said(run):
    assert run("print(kinds(2))") == "[]"


def test_the_first_region_without_it_warns_once(run):
    found = run("""
pager.set_kernel_faults(False)
(kind, where, text), = kinds(2)
assert (kind, where) == ("KernelFaultsWarning", "<string>"), (kind, where)
assert issubclass(pagemove.KernelFaultsWarning, RuntimeWarning)
for word in ("EFAULT", "numpy.save", "pagemove.pinned(", "pagemove.save",
             "vm.unprivileged_userfaultfd=1", "/dev/userfaultfd", "CAP_SYS_PTRACE"):
    assert word in text, word
print(kinds(1))
""")
    assert found == "[]"


def test_filters_are_heeded(run):
    found = run("""
pager.set_kernel_faults(False)
before = set(os.listdir("/proc/self/fd"))
warnings.simplefilter("error", pagemove.KernelFaultsWarning)
for _ in range(2):
    try:
        pagemove.open_array(sys.argv[1], mode="r+")
    except pagemove.KernelFaultsWarning:
        pass
    else:
        raise AssertionError("it was no error")
assert set(os.listdir("/proc/self/fd")) == before, "something is left open"
assert kinds(1, "ignore") == []
print(kinds(1))
""")
    assert found == "[]"
