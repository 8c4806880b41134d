"""Debian's kernels: found in the indexes of several suites, fetched, unpacked, never installed.

apt works here in a directory of its own. The system's sources, lists and packages stay as they are.
"""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from .flavours import Flavour

SUITES = ("bookworm", "bookworm-backports", "trixie", "trixie-backports", "sid")
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_PIPE = subprocess.PIPE
_DEFAULT_MIRROR = "http://deb.debian.org/debian"
# Up to 6.18 the image package has the kernel and its modules; from 6.19 on a package of its own has
# the kernel, and from 7.2 on another the modules. Those of 6.19 to 7.1 are not in the archive.
_PACKAGE = r"linux-(?:image|binary)-(\d[\w.+-]*)-"


class Missing(Exception):  # noqa: N818 (not an error: the archive has what it has)
    """A kernel, or the archive itself, cannot be had; the text says why."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel in the archive.

    Attributes
    ----------
    release : str
        As ``uname -r`` will have it.
    version : str
        The stable release, such as ``"6.12.107"``.
    package : str
        The package that has it.
    modules : str
        The package that has its modules, or ``""`` where the archive does not have them.
    """

    release: str
    version: str
    package: str
    modules: str = ""

    @property
    def key(self) -> tuple[int, ...]:
        """What kernels are sorted by."""
        return tuple(map(int, self.version.split(".")))

    @property
    def series(self) -> str:
        """Such as ``"6.12"``."""
        return self.version.rpartition(".")[0]


def run(command: list[str], **how: object) -> str:
    """Run a command and give what it prints; `Missing`, with its last line, where it fails."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, **how)  # type: ignore[call-overload]
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise Missing(f"{command[0]}: {last}")
    return str(done.stdout)


def _mirror() -> str:
    """The mirror that this machine uses for Debian, so that a local one is used here too."""
    for file in (*Path("/etc/apt/sources.list.d").glob("*"), Path("/etc/apt/sources.list")):
        if file.suffix in (".list", ".sources"):
            for word in file.read_text(errors="replace").split() if file.is_file() else ():
                if word.startswith("http") and urlsplit(word).path.rstrip("/") == "/debian":
                    return word
    return _DEFAULT_MIRROR


class Archive:
    """The archive as apt sees it from `folder`, where kernels are kept once they were fetched."""

    def __init__(self, folder: Path, flavour: Flavour) -> None:
        self._folder = folder
        self._flavour = flavour
        self._apt = folder / "apt"
        self._known: list[Kernel] | None = None

    def _options(self) -> list[str]:
        options = {
            "Dir::Etc::SourceList": self._apt / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "Dir::State::Lists": self._apt / "lists",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": self._apt,
            "APT::Sandbox::User": "root",
            "APT::Architecture": self._flavour.debian,
            "APT::Architectures": self._flavour.debian,
        }
        return [part for name, value in options.items() for part in ("-o", f"{name}={value}")]

    def update(self) -> None:
        """Fetch the indexes; `Missing` where that cannot be done."""
        if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
            raise Missing("apt-get and dpkg-deb are needed: kernels come from Debian's packages")
        (self._apt / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (self._apt / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        signed = f" signed-by={_KEYRING}" if _KEYRING.exists() else ""
        lines = [
            f"deb [arch={self._flavour.debian}{signed}] {_mirror()} {suite} main\n"
            for suite in SUITES
        ]
        (self._apt / "sources.list").write_text("".join(lines))
        run(["apt-get", *self._options(), "-q=2", "--error-on=any", "update"])

    def kernels(self) -> list[Kernel]:
        """List all kernels of the indexes, oldest first, each stable release once."""
        if self._known is None:
            found: dict[str, Kernel] = {}
            text = run(["apt-cache", *self._options(), "dumpavail"])
            packages = set(re.findall(r"(?m)^Package: (.*)$", text))
            for entry in text.split("\n\n"):
                fields = dict(re.findall(r"(?m)^(Package|Version|Depends): (.*)$", entry))
                match = re.fullmatch(_PACKAGE + self._flavour.name, fields.get("Package", ""))
                if not match or re.search(r"cloud|rt$|unsigned", match[1]):
                    continue
                if "linux-binary-" in fields.get("Depends", ""):
                    continue  # the package that only asks for the parts
                version = re.match(r"\d+\.\d+\.\d+", fields["Version"])
                if version:
                    release, package = f"{match[1]}-{self._flavour.name}", fields["Package"]
                    modules = package if "-image-" in package else f"linux-modules-{release}"
                    modules = modules if modules in packages else ""
                    found[version[0]] = Kernel(release, version[0], package, modules)
            self._known = sorted(found.values(), key=lambda kernel: kernel.key)
        return self._known

    def find(self, wanted: str) -> Kernel:
        """Return the newest kernel of a series (``"6.12"``), or one release (``"6.12.107"``)."""
        fits = [k for k in self.kernels() if wanted in (k.version, k.series)]
        if not fits:
            raise Missing(f"the archive's indexes have no kernel {wanted}")
        return fits[-1]

    def fetch(self, kernel: Kernel) -> tuple[Path, Path | None]:
        """Return the paths of the kernel's image and of its RAM disk, fetched if they are not here.

        The second is a module (brd), for swap space; None where the archive does not have it.
        """
        boot = self._folder / "boot"
        image, disk = boot / f"vmlinuz-{kernel.release}", boot / f"brd-{kernel.release}.ko"
        wanted = [] if image.exists() else [kernel.package]
        if kernel.modules and not disk.exists():
            wanted.append(kernel.modules)
        boot.mkdir(exist_ok=True)
        for package in dict.fromkeys(wanted):
            unpacked = self._unpack(package)
            # In /boot, and from 7.2 on beside the modules.
            for found in (*unpacked.glob("boot/vmlinuz-*"), *unpacked.rglob("modules/*/vmlinuz")):
                found.rename(image)
            for found in unpacked.rglob("brd.ko*"):
                data = found.read_bytes()
                disk.write_bytes(lzma.decompress(data) if found.suffix == ".xz" else data)
        if not image.exists():
            raise Missing(f"{kernel.package} has no kernel where one is looked for")
        return image, disk if disk.exists() else None

    def userland(self, names: Iterable[str], suite: str) -> Path:
        """Return a folder with packages of a suite, and all that they depend on, unpacked."""
        root, done = self._folder / "root", self._folder / "root.done"
        if done.exists() and done.read_text() == " ".join(names):
            return root
        for folder in (root, self._apt / "archives"):
            shutil.rmtree(folder, ignore_errors=True)
        (self._apt / "archives" / "partial").mkdir(parents=True)
        install = ["install", "--download-only", "--no-install-recommends", "-y", "-t", suite]
        run(["apt-get", *self._options(), "-q=2", *install, *names])
        for package in (self._apt / "archives").glob("*.deb"):
            run(["dpkg-deb", "-x", str(package), str(root)])
        done.write_text(" ".join(names))
        return root

    def _unpack(self, name: str) -> Path:
        """Fetch a package, and give a folder with what is of use of it."""
        fetched, unpacked = self._folder / "packages", self._folder / "unpacked"
        # What an interrupted run has left may be of another version.
        for folder in (fetched, unpacked):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        try:
            run(["apt-get", *self._options(), "-q=2", "download", name], cwd=fetched)
        except Missing as error:
            raise Missing(f"{name} is in the index, but not to be had: {error}") from None
        (package,) = fetched.glob(f"{name}_*.deb")
        wanted = ["./boot/vmlinuz-*", "*/lib/modules/*/vmlinuz", "*/drivers/block/brd.ko*"]
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=_PIPE) as tar:
            command = ["tar", "-x", "-C", str(unpacked), "--wildcards", *wanted]
            # Its status is that of the pattern that matched nothing.
            subprocess.run(command, check=False, stdin=tar.stdout, stderr=subprocess.DEVNULL)
        return unpacked
