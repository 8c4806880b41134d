"""Boots a kernel in QEMU, and listens to what is said inside until it ends or falls silent."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .flavours import Flavour

MEMORY = "3G"
CPUS = 2
_CHUNK = 1 << 16
# Huge pages only where they are asked for, as on the machines that the tests are written on.
_PARAMETERS = (
    "loglevel=4 panic=-1 oops=panic mitigations=off nowatchdog transparent_hugepage=madvise"
)
_PR_SET_PDEATHSIG = 1
_TRIAL_SECONDS = 8.0


def find_accelerator(flavour: Flavour, kernel: Path, console: Path) -> str:
    """Find out how guests run here: ``"kvm"``, or ``"tcg"``, which is emulation in software.

    There are machines that have /dev/kvm and on which a guest never begins, so one is begun: a
    kernel alone, which has much to say before it finds out that there is no file system for it.
    """
    if not flavour.native or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    command = [flavour.qemu, *flavour.machine, "-accel", "kvm", "-cpu", "host", "-m", "512M"]
    command += ["-nodefaults", "-no-reboot"]
    command += ["-display", "none", "-serial", f"file:{console}", "-kernel", str(kernel)]
    command += ["-append", f"console={flavour.console} panic=-1"]
    console.unlink(missing_ok=True)
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(command, timeout=_TRIAL_SECONDS, check=False, capture_output=True)
    return "kvm" if console.exists() and b"Linux version" in console.read_bytes() else "tcg"


def missing(flavour: Flavour) -> str | None:
    """Say why no kernel can be booted here, or None."""
    if shutil.which(flavour.qemu):
        return None
    return f"{flavour.qemu} is not installed (Debian: {flavour.package})"


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Hung(Exception):  # noqa: N818 (a fact about the guest)
    """Nothing was heard from the guest for too long; it was ended."""


class Machine:
    """A guest; a context manager that ends it at the latest when the block ends."""

    def __init__(
        self, flavour: Flavour, accelerator: str, kernel: Path, image: Path, console: Path
    ) -> None:
        self._qemu = flavour.qemu
        processor = "host" if accelerator == "kvm" else flavour.processor
        line = f"console={flavour.console} {_PARAMETERS} rdinit=/init"
        out, self._into = os.pipe()
        self._from = out
        self._process = subprocess.Popen(
            [
                *(flavour.qemu, *flavour.machine, "-accel", accelerator, "-cpu", processor),
                *("-smp", str(CPUS), "-m", MEMORY),
                *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
                *("-serial", f"file:{console}"),
                *("-chardev", f"file,id=port,path=/dev/fd/{self._into}", *flavour.port_options),
                *("-kernel", str(kernel), "-initrd", str(image), "-append", line),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[self._into],
            preexec_fn=_die_with_parent,
        )
        os.close(self._into)

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        os.close(self._from)
        if self._process.stderr:
            self._process.stderr.close()

    def messages(self, silence: float, deadline: float) -> Iterator[dict[str, Any]]:
        """Return what the guest says until it is off.

        `Hung` when it has said nothing for `silence` seconds, or is not off at `deadline`, a time
        of the monotonic clock.
        """
        rest = b""
        while True:
            limit = min(time.monotonic() + silence, deadline)
            if not select.select([self._from], [], [], max(0.0, limit - time.monotonic()))[0]:
                late = time.monotonic() >= deadline
                raise Hung("not done in time" if late else f"silent for {silence:.0f} s")
            data = os.read(self._from, _CHUNK)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                try:
                    yield json.loads(line)
                except ValueError:
                    yield {"kind": "noise", "text": line.decode(errors="replace")}
        if self._process.wait():
            assert self._process.stderr
            text = self._process.stderr.read().decode(errors="replace").strip()
            raise Hung(f"{self._qemu} ended with status {self._process.returncode}: {text}")
