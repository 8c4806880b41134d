"""A program under a hard limit of a memory control group, with swap on zram: the kernel's way.

Needs root, the memory controller (version 1 or 2), and a zram device that nobody uses.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks._measure import Unmeasurable

_DEVICES = Path("/sys/block")
_ROOTS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))
#: The files of either version, for the limit.
_LIMITS = ("memory.limit_in_bytes", "memory.max")


def _device() -> Path:
    """Find a device that has no size yet, which is one that nobody uses."""
    for device in sorted(_DEVICES.glob("zram*")):
        if (device / "disksize").read_text().strip() == "0":
            return device
    raise Unmeasurable("no zram device is free (modprobe zram, or zram-control/hot_add)")


@contextlib.contextmanager
def swap(nbytes: int) -> Iterator[str]:
    """Swap on zram, compressed by LZ4 where the kernel has it; return what it compresses with."""
    if os.geteuid() != 0:
        raise Unmeasurable("swap on zram needs root")
    if Path("/proc/swaps").read_text().count("\n") > 1:
        raise Unmeasurable("there is swap already, which the kernel may take instead")
    device = _device()
    algorithms = (device / "comp_algorithm").read_text().replace("[", "").replace("]", "").split()
    algorithm = "lz4" if "lz4" in algorithms else algorithms[0]
    node = f"/dev/{device.name}"
    try:
        (device / "comp_algorithm").write_text(algorithm)
        (device / "disksize").write_text(str(nbytes))
        subprocess.run(["mkswap", node], check=True, capture_output=True)
        subprocess.run(["swapon", node], check=True, capture_output=True)
        yield algorithm
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unmeasurable(f"no swap on {node}: {error}") from error
    finally:
        subprocess.run(["swapoff", node], check=False, capture_output=True)
        (device / "reset").write_text("1")


def _parent() -> Path:
    for root in _ROOTS:
        if any((root / name).exists() for name in ("memory.limit_in_bytes", "cgroup.controllers")):
            return root
    raise Unmeasurable("no memory controller is mounted")


@contextlib.contextmanager
def group(nbytes: int) -> Iterator[Path]:
    """Make a control group that may have so many bytes of memory, and swap as it likes."""
    made = _parent() / f"pagemove-bench-{os.getpid()}"
    try:
        made.mkdir()
        limit = next(made / name for name in _LIMITS if (made / name).exists())
        limit.write_text(str(nbytes))
    except (OSError, StopIteration) as error:
        with contextlib.suppress(OSError):
            made.rmdir()
        raise Unmeasurable(f"no control group with a limit can be made: {error}") from error
    try:
        yield made
    finally:
        made.rmdir()
