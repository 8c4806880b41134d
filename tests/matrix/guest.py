"""The first process of a booted kernel: gets it ready, runs pytest, reports, and turns it off.

It speaks by the second serial port, a JSON object a line, and takes its orders from /orders.json.
What it and the tests print goes to the console, the first serial port.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

#: Which port, for those that run in a guest. A kernel's command line may have it.
_PORT = "PAGEMOVE_MATRIX_PORT"
_MOUNTS = (
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devtmpfs", "/dev", ""),
    ("tmpfs", "/dev/shm", ""),
    ("tmpfs", "/tmp", "mode=1777"),
)
_DISK, _SWAP_KIB = "/brd.ko", 256 << 10
_SYS_FINIT_MODULE = 313 if os.uname().machine == "x86_64" else 273
_RB_AUTOBOOT = 0x01234567
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1

_libc = ctypes.CDLL(None, use_errno=True)


def say(kind: str, **what: Any) -> None:
    """Return the machine outside, if this is a guest."""
    if _PORT not in os.environ:
        return
    line = json.dumps({"kind": kind, **what}, separators=(",", ":")) + "\n"
    with open(os.environ[_PORT], "wb", buffering=0) as port:
        port.write(line.encode())


def _mount() -> None:
    for kind, where, options in _MOUNTS:
        os.makedirs(where, exist_ok=True)
        if os.listdir(where) and where == "/tmp":
            continue  # the project itself is there, in memory like all else
        words = kind.encode(), where.encode(), kind.encode(), 0, options.encode()
        if _libc.mount(*words) and kind != "devtmpfs":
            print(f"{where}: {os.strerror(ctypes.get_errno())}")
    # Raw: the terminal must not put a carriage return before each end of line.
    import tty

    with open(os.environ[_PORT], "wb", buffering=0) as port:
        if port.isatty():
            tty.setraw(port)


def _loopback_up() -> None:
    with socket.socket() as one:
        fcntl.ioctl(one, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))


def _swap_on() -> None:
    """Have swap space on a RAM disk, if its module came along."""
    if not Path(_DISK).exists():
        return
    with open(_DISK, "rb") as module:
        options = ctypes.c_char_p(f"rd_nr=1 rd_size={_SWAP_KIB}".encode())
        failed = _libc.syscall(_SYS_FINIT_MODULE, module.fileno(), options, 0)
    if failed:
        print(f"{_DISK}: {os.strerror(ctypes.get_errno())}")
        return
    for command in ("mkswap", "swapon"):
        subprocess.run([command, "/dev/ram0"], check=False, stdout=subprocess.DEVNULL)


def _doctor(python: str) -> Any:
    command = [python, "-m", "pagemove", "doctor", "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    try:
        return json.loads(done.stdout)
    except ValueError:
        return {"failed": done.stdout + done.stderr}


def _run(orders: dict[str, Any]) -> None:
    os.chdir(orders["root"])
    _swap_on()
    python = orders["python"]
    say("booted", release=os.uname().release, seconds=round(time.clock_gettime(7), 1))
    say("doctor", doctor=_doctor(python))
    for name, command in orders["commands"].items():
        began = time.monotonic()
        done = subprocess.run(command, check=False)
        say("ran", name=name, status=done.returncode, seconds=round(time.monotonic() - began, 1))


def main() -> None:
    orders = json.loads(Path("/orders.json").read_text())
    os.environ.update(orders["environment"])
    try:
        _mount()
        _loopback_up()
        _run(orders)
        say("end")
    except BaseException:
        text = traceback.format_exc()
        print(text, file=sys.stderr)
        say("broken", text=text)
    finally:
        sys.stdout.flush()
        os.sync()
        _libc.reboot(_RB_AUTOBOOT)


if __name__ == "__main__":
    main()
