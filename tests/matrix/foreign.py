"""What a kernel of another architecture boots with: Debian's Python, the project cross built."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from support import native

from .archive import Archive, run
from .flavours import Flavour
from .image import ROOT, of_project

SUITE = "trixie"
PYTHON = "/usr/bin/python3"
_LIB = "/usr/lib/aarch64-linux-gnu"
#: Debian links to these when the packages are installed, which they are not.
ENVIRONMENT = {"LD_LIBRARY_PATH": f"{_LIB}/blas:{_LIB}/lapack"}
_PACKAGES = (
    *("python3-numpy", "python3-rich", "python3-typer"),
    *("python3-pytest", "python3-pytest-timeout", "python3-hypothesis"),
    *("base-files", "coreutils", "dash", "mount", "util-linux"),
)
_COMPILER = "aarch64-linux-gnu-gcc"
_CROSS = """\
[binaries]
c = '{compiler}'
[built-in options]
c_args = ['-I{headers}']
[host_machine]
system = 'linux'
cpu_family = 'aarch64'
cpu = 'aarch64'
endian = 'little'
"""
#: Nothing of these is needed to run.
_LEFT_OUT = ("usr/share/", "usr/include/", "var/", "etc/")


def missing(flavour: Flavour) -> str | None:
    """Say why nothing can be built, or None."""
    if flavour.debian != "arm64":
        return f"{flavour.name} kernels can be tried on machines of that architecture only"
    try:
        subprocess.run([_COMPILER, "--version"], check=True, capture_output=True)
    except FileNotFoundError:
        return f"{_COMPILER} is not installed (Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross)"
    return None


def _headers(folder: Path) -> Path:
    """Make what Debian's Python.h of this machine looks for when it is read for another one.

    What it says of the machine is the same for both: 64 bits, little endian, the same C library.
    """
    ours = sysconfig.get_config_var("MULTIARCH")
    version = f"python{sysconfig.get_python_version()}"
    shim = folder / "aarch64-linux-gnu" / version / "pyconfig.h"
    shim.parent.mkdir(parents=True, exist_ok=True)
    shim.write_text(f"#include <{ours}/{version}/pyconfig.h>\n")
    return folder


def _package(folder: Path) -> Path:
    """Cross build the package, and give its folder."""
    cross, build, into = folder / "cross.ini", folder / "build", folder / "installed"
    cross.write_text(_CROSS.format(compiler=_COMPILER, headers=_headers(folder / "headers")))
    wipe = ["--wipe"] if build.exists() else []
    options = [f"--cross-file={cross}", "-Dbuildtype=release"]
    run(["meson", "setup", *wipe, *options, str(build)], cwd=ROOT)
    run(["meson", "install", "-C", str(build), f"--destdir={into}"])
    (found,) = into.rglob("pagemove/__init__.py")
    return found.parent


def _libraries(folder: Path) -> Iterator[Path]:
    before = os.environ.get("CC")
    os.environ["CC"] = _COMPILER
    try:
        native.build_all(folder)
    finally:
        del os.environ["CC"]
        if before is not None:
            os.environ["CC"] = before
    return folder.iterdir()


def files(archive: Archive, folder: Path) -> dict[str, Path]:
    """Return what belongs into the file system by the path there."""
    root = archive.userland(_PACKAGES, SUITE)
    package = _package(folder)
    found: dict[str, Path] = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if not name.startswith(_LEFT_OUT) and (path.is_symlink() or path.is_file()):
            found[f"/{name}"] = path
    for path in package.rglob("*"):
        if path.is_file():
            name = str(path.relative_to(package))
            found[f"/usr/lib/python3/dist-packages/pagemove/{name}"] = path
    found |= {str(path): path for path in (*of_project(), *_libraries(folder / "native"))}
    return found
