"""Point 6: a forked child that touches a region ends by a signal, and not without a word."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.needs("paging", "fork")

_OPENED = """
import ctypes, os, signal, sys
import numpy as np, pagemove
array = pagemove.open_array(
    sys.argv[1], mode=sys.argv[2], resident_limit="1MiB", fork="message"
)
array[0]
def child(touch):
    pid = os.fork()
    if not pid:
        touch()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


@pytest.fixture
def path(tmp_path):
    np.save(tmp_path / "numbers.npy", np.arange(100_000))
    return tmp_path / "numbers.npy"


def said(path, code, mode="r", *options):
    done = subprocess.run(
        [sys.executable, *options, "-c", _OPENED + code, path, mode],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_it_names_the_region_and_the_remedy(path, mode):
    code = "print(child(lambda: array[50_000]), int(array[50_000]))"
    status, message = said(path, code, mode)
    assert status == "-11 50000"
    assert f"paged memory over {path}, mode '{mode}', was opened before a fork" in message
    remedies = {"r": "fork='reopen'", "r+": "flush it in the parent", "c": "a copy of what is"}
    assert "open it here" in message
    assert [each for each, remedy in remedies.items() if remedy in message] == [mode]


@pytest.mark.parametrize(
    ("mode", "remedy"),
    [("r", "leave fork='reopen'"), ("r+", "flush it in the parent"), ("c", "without them")],
)
def test_a_call_names_the_remedy_too(path, mode, remedy):
    code = """
def touch():
    try:
        pagemove.region_of(array).stats()
    except ValueError as error:
        print(error, flush=True)
print(child(touch))
"""
    message, _ = said(path, code, mode)
    assert "belongs to the parent process" in message
    assert remedy in message


def test_of_several_the_right_one(path, tmp_path):
    np.save(tmp_path / "other.npy", np.arange(10))
    code = f"""
other = pagemove.open_array({str(tmp_path / "other.npy")!r}, fork="message")
print(child(lambda: other[3]))
"""
    status, message = said(path, code)
    assert status == "-11"
    assert message.count("was opened before a fork") == 1
    assert "other.npy" in message


def test_in_a_child_of_a_child(path):
    code = "print(child(lambda: sys.exit(0) if child(lambda: array[5]) == -11 else os._exit(1)))"
    status, message = said(path, code.replace("sys.exit(0)", "os._exit(7)"))
    assert status == "7"
    assert message.count(str(path)) == 1


_BY_C = """
def by_c(act):
    pid = ctypes.PyDLL(None).fork()
    if not pid:
        os._exit(act() & 0xff)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("then", ["child", "by_c"])
def test_in_a_child_of_one_that_c_code_forked(path, mode, then):
    ends = f"{then}(lambda: array[50_000])" if then == "child" else "by_c(lambda: int(array[9]))"
    status, message = said(path, f"{_BY_C}\nprint(by_c(lambda: -({ends})))", mode)
    assert status == "11"
    assert message.count(f"over {path}, mode '{mode}', was opened before a fork") == 1


def test_any_other_fault_is_what_it_was(path):
    status, message = said(path, "print(child(lambda: ctypes.string_at(8)))")
    assert status == "-11"
    assert message == ""


def test_a_signal_that_is_sent_is_what_it_was(path):
    code = "print(child(lambda: os.kill(os.getpid(), signal.SIGSEGV)))"
    assert said(path, code) == ("-11", "")


def test_a_handler_that_was_there_comes_after_it(path):
    status, message = said(path, "print(child(lambda: array[5]))", "r", "-X", "faulthandler")
    assert status == "-11"
    assert message.index("was opened before a fork") < message.index("Fatal Python error")


def test_the_parent_and_programs_that_it_starts_have_none(path):
    code = """
import subprocess
show = "print(next(line.split()[1] for line in open('/proc/self/status') if 'SigCgt' in line))"
theirs = subprocess.run([sys.executable, "-c", show], capture_output=True, preexec_fn=lambda: None)
mine = next(line.split()[1] for line in open("/proc/self/status") if "SigCgt" in line)
print(*(int(each, 16) >> signal.SIGSEGV - 1 & 1 for each in (mine, theirs.stdout)))
"""
    assert said(path, code) == ("0 0", "")


def test_nothing_is_said_of_a_region_that_was_closed(path):
    code = """
address = pagemove.region_of(array).address
del array
print(child(lambda: ctypes.string_at(address, 1)))
"""
    assert said(path, code) == ("-11", "")


def test_where_standard_error_is_closed_it_ends_all_the_same(path):
    assert said(path, "os.close(2); print(child(lambda: array[5]))")[0] == "-11"
    assert os.path.exists(path)
