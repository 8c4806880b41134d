"""The kinds of kernels that Debian builds, and the machines that QEMU makes for them."""

from __future__ import annotations

import platform
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Flavour:
    """A kind of kernel.

    Attributes
    ----------
    name : str
        How the names of Debian's kernel packages end.
    debian : str
        Debian's name of the architecture.
    qemu : str
        The emulator.
    package : str
        The package that has the emulator.
    machine : tuple of str
        Options for the machine.
    processor : str
        The processor where QEMU emulates it.
    console : str
        The serial port that the kernel writes to.
    port : str
        The device by which the guest talks to us.
    port_options : tuple of str
        What makes that device of the character device ``port``.
    slowness : int
        How much slower than this machine an emulated one is taken to be.
    """

    name: str
    debian: str
    qemu: str
    package: str
    machine: tuple[str, ...]
    processor: str
    console: str
    port: str
    port_options: tuple[str, ...]
    slowness: int

    @property
    def native(self) -> bool:
        """Whether this machine is of that architecture."""
        return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine()) == self.debian


def _arm64(name: str) -> Flavour:
    return Flavour(
        name,
        "arm64",
        "qemu-system-aarch64",
        "qemu-system-arm",
        ("-machine", "virt,gic-version=max"),
        # Pointers are authenticated by a way that costs less to emulate.
        "max,pauth-impdef=on",
        "ttyAMA0",
        "/dev/vport0p1",
        ("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=port,nr=1"),
        20,
    )


#: Pages of arm64 kernels are 4 KiB, or what the name says.
FLAVOURS = {
    "amd64": Flavour(
        "amd64",
        "amd64",
        "qemu-system-x86_64",
        "qemu-system-x86",
        (),
        # Five levels of page tables are slow to emulate, and nothing here needs them.
        "max,la57=off",
        "ttyS0",
        "/dev/ttyS1",
        ("-serial", "chardev:port"),
        10,
    ),
    "arm64": _arm64("arm64"),
    "arm64-16k": _arm64("arm64-16k"),
}
