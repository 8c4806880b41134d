"""Debian's kernels: found in the indexes of several suites, fetched, unpacked, never installed.

apt works here in a directory of its own. The system's sources, lists and packages stay as they are.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

SUITES = ("bookworm", "bookworm-backports", "trixie", "trixie-backports", "sid")
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_PIPE = subprocess.PIPE
_DEFAULT_MIRROR = "http://deb.debian.org/debian"
# Up to 6.18 the image package has the kernel; from 6.19 on a package of its own has.
_PACKAGE = re.compile(r"linux-(?:image|binary)-(\d[\w.+-]*)-amd64")


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
    """

    release: str
    version: str
    package: str

    @property
    def key(self) -> tuple[int, ...]:
        """What kernels are sorted by."""
        return tuple(map(int, self.version.split(".")))

    @property
    def series(self) -> str:
        """Such as ``"6.12"``."""
        return self.version.rpartition(".")[0]


def _run(command: list[str], **how: object) -> str:
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

    def __init__(self, folder: Path) -> None:
        self._folder = folder
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
            "APT::Architecture": "amd64",
        }
        return [part for name, value in options.items() for part in ("-o", f"{name}={value}")]

    def update(self) -> None:
        """Fetch the indexes; `Missing` where that cannot be done."""
        if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
            raise Missing("apt-get and dpkg-deb are needed: kernels come from Debian's packages")
        (self._apt / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (self._apt / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        signed = f" signed-by={_KEYRING}" if _KEYRING.exists() else ""
        lines = [f"deb [arch=amd64{signed}] {_mirror()} {suite} main\n" for suite in SUITES]
        (self._apt / "sources.list").write_text("".join(lines))
        _run(["apt-get", *self._options(), "-q=2", "--error-on=any", "update"])

    def kernels(self) -> list[Kernel]:
        """List all kernels of the indexes, oldest first, each stable release once."""
        if self._known is None:
            found: dict[str, Kernel] = {}
            text = _run(["apt-cache", *self._options(), "dumpavail"])
            for entry in text.split("\n\n"):
                fields = dict(re.findall(r"(?m)^(Package|Version|Depends): (.*)$", entry))
                match = _PACKAGE.fullmatch(fields.get("Package", ""))
                if not match or re.search(r"cloud|rt$|unsigned", match[1]):
                    continue
                if "linux-binary-" in fields.get("Depends", ""):
                    continue  # the package that only asks for the parts
                version = re.match(r"\d+\.\d+\.\d+", fields["Version"])
                if version:
                    kernel = Kernel(f"{match[1]}-amd64", version[0], fields["Package"])
                    found[kernel.version] = kernel
            self._known = sorted(found.values(), key=lambda kernel: kernel.key)
        return self._known

    def find(self, wanted: str) -> Kernel:
        """Give the newest kernel of a series (``"6.12"``), or one release (``"6.12.107"``)."""
        fits = [k for k in self.kernels() if wanted in (k.version, k.series)]
        if not fits:
            raise Missing(f"the archive's indexes have no kernel {wanted}")
        return fits[-1]

    def fetch(self, kernel: Kernel) -> Path:
        """Give the path of the kernel's image, fetched if it is not here yet."""
        image = self._folder / "boot" / f"vmlinuz-{kernel.release}"
        if image.exists():
            return image
        fetched = self._folder / "packages"
        # What an interrupted run has left may be of another version.
        shutil.rmtree(fetched, ignore_errors=True)
        fetched.mkdir()
        try:
            _run(["apt-get", *self._options(), "-q=2", "download", kernel.package], cwd=fetched)
        except Missing as error:
            raise Missing(f"{kernel.package} is in the index, but not to be had: {error}") from None
        (package,) = fetched.glob(f"{kernel.package}_*.deb")
        unpacked = self._folder / "unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir()
        # In /boot, and from 7.2 on beside the modules.
        wanted = ["./boot/vmlinuz-*", "./usr/lib/modules/*/vmlinuz"]
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=_PIPE) as tar:
            command = ["tar", "-x", "-C", str(unpacked), "--wildcards", *wanted]
            # Its status is that of the pattern that matched nothing.
            subprocess.run(command, check=False, stdin=tar.stdout, stderr=subprocess.DEVNULL)
        found = [*unpacked.glob("boot/vmlinuz-*"), *unpacked.glob("usr/lib/modules/*/vmlinuz")]
        if not found:
            raise Missing(f"{kernel.package} has no kernel where one is looked for")
        image.parent.mkdir(exist_ok=True)
        found[0].rename(image)
        return image
