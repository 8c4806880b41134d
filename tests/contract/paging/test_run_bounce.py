"""Calls that `pagemove run` copies through other memory: those that are not to be cut."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pagemove

_LIBRARY = Path(pagemove._native.__file__).with_name("bounce.so.1")

pytestmark = pytest.mark.skipif(not _LIBRARY.exists(), reason="this build has no bounce.so.1")

_BEGINNING = """
import ctypes, mmap, os, re, sys
from pathlib import Path
libc = ctypes.CDLL(None, use_errno=True)
def protected(nbytes, access):
    libc.mmap.restype = ctypes.c_void_p
    found = libc.mmap(None, ctypes.c_size_t(nbytes), access, 0x22, -1, ctypes.c_size_t(0))
    libc.pagemove_bounce(ctypes.c_size_t(found), ctypes.c_size_t(found + nbytes))
    return ctypes.c_void_p(found)
"""

_WRITES = """
NBYTES = 8 << 20
memory = protected(NBYTES, 3)
class Part(ctypes.Structure):
    _fields_ = ("base", ctypes.c_void_p), ("length", ctypes.c_size_t)
part = Part(memory.value, NBYTES)
writes = {
    "write": lambda fd: libc.write(fd, memory, ctypes.c_size_t(NBYTES)),
    "pwrite": lambda fd: libc.pwrite(fd, memory, ctypes.c_size_t(NBYTES), ctypes.c_size_t(0)),
    "writev": lambda fd: libc.writev(fd, ctypes.byref(part), 1),
    "RWF_APPEND": lambda fd: libc.pwritev2(fd, ctypes.byref(part), 1, ctypes.c_size_t(0), 16),
}
def calls():
    return int(re.search(r"syscw: (\\d+)", Path("/proc/self/io").read_text())[1])
for name, write in writes.items():
    for append in (0, os.O_APPEND):
        fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | append)
        before = calls()
        assert write(fd) == NBYTES
        print(name, bool(append), calls() - before == 1)
        os.close(fd)
"""

_ZEROCOPY = """
import errno, socket
memory = protected(1 << 20, 0)  # whoever copies it ends by SIGSEGV
ours, other = socket.socketpair()
for call in (libc.send, libc.sendto):
    ctypes.set_errno(0)
    more = (None, 0) if call is libc.sendto else ()
    done = call(ours.fileno(), memory, ctypes.c_size_t(4096), 0x4000040, *more)
    print(done, errno.errorcode[ctypes.get_errno()])
"""


def _ran(code: str, *arguments: object) -> str:
    environment = {**os.environ, "LD_PRELOAD": str(_LIBRARY)}
    command = [sys.executable, "-c", _BEGINNING + code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout


def test_what_is_appended_is_one_write(tmp_path: Path) -> None:
    expected = [
        f"{name} {append} {append}"
        for name in ("write", "pwrite", "writev")
        for append in (False, True)
    ]
    expected += ["RWF_APPEND False True", "RWF_APPEND True True"]
    assert _ran(_WRITES, tmp_path / "log").splitlines() == expected


def test_what_the_kernel_reads_later_is_not_copied() -> None:
    assert _ran(_ZEROCOPY).splitlines() == ["-1 EFAULT"] * 2
