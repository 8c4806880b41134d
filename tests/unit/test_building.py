"""The environment is made whole or not at all, and what is missing is named in one line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import pagemove

ROOT = Path(__file__).resolve().parents[2]
CHECK = ROOT / "tools/prerequisites.sh"


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def fake_python(folder: Path, *, fails: str = "", release: str = "") -> Path:
    """Make a Python of which one thing is missing: whatever names `fails` exits with 1."""
    lines = [f'case "$*" in *"{fails}"*) exit 1;; esac'] if fails else []
    if release:
        lines += [
            'case "$*" in *version_info*) exit 1;; *python_version*) echo ' + release + ";; esac"
        ]
        lines += ["exit 0"]
    return program(folder / "python", "\n".join([*lines, f'exec "{sys.executable}" "$@"']))


def check(python: Path | str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", CHECK, str(python)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_versions_agree() -> None:
    (built,) = re.findall(r"^  version: '(.+)',$", (ROOT / "meson.build").read_text(), re.MULTILINE)
    assert pagemove.__version__ == built == version("pagemove")


def test_nothing_is_missing_here() -> None:
    done = check(sys.executable)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_missing_python(tmp_path: Path) -> None:
    done = check(tmp_path / "no-such-python")
    assert done.returncode == 1
    assert "sudo apt install python3 python3-dev python3-venv" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_old_python(tmp_path: Path) -> None:
    done = check(fake_python(tmp_path, release="3.10.13"))
    assert done.returncode == 1
    assert "is 3.10.13" in done.stderr
    assert "make PYTHON=python3.12" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("fails", "package"), [("ensurepip", "python3-venv"), ("get_path", "python3-dev")]
)
def test_a_part_of_python_is_missing(tmp_path: Path, fails: str, package: str) -> None:
    done = check(fake_python(tmp_path, fails=fails))
    assert done.returncode == 1
    assert package in done.stderr.partition("sudo apt install ")[2].split()
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_compiler(tmp_path: Path) -> None:
    done = check(sys.executable, CC=str(tmp_path / "no-such-cc"))
    assert done.returncode == 1
    assert "sudo apt install gcc libc6-dev" in done.stderr


def test_missing_headers_of_the_library(tmp_path: Path) -> None:
    done = check(sys.executable, CC=str(program(tmp_path / "cc", "exit 1")))
    assert done.returncode == 1
    assert "sudo apt install libc6-dev" in done.stderr


def made(
    folder: Path, python: Path | str, target: str = ".made-with"
) -> subprocess.CompletedProcess[str]:
    """Have the Makefile make an environment, elsewhere."""
    return subprocess.run(
        ["make", "-f", str(ROOT / "Makefile"), "VENV=venv", f"PYTHON={python}", f"venv/{target}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    (folder / "tools").mkdir(parents=True)
    shutil.copy(CHECK, folder / "tools")
    for name in ("src", "tests", "benchmarks", "docs"):
        (folder / name).mkdir()
    return folder


def pip_stub(folder: Path, tag: str) -> Path:
    """Make a Python whose environments are one script: installing in them takes no network."""
    (folder / tag).mkdir()
    return program(
        folder / tag / "python",
        f"""
        case "$*" in
        *base_prefix*) echo {tag} 3 12 1 ;;
        *"-m venv"*) mkdir -p "$3/bin"; printf '#!/bin/sh\\nexit 0\\n' >"$3/bin/python"
            chmod +x "$3/bin/python"; echo {tag} >"$3/made" ;;
        *) exec "{sys.executable}" "$@" ;;
        esac""",
    )


def test_another_python_gets_another_environment(checkout: Path, tmp_path: Path) -> None:
    first, second = pip_stub(tmp_path, "first"), pip_stub(tmp_path, "second")
    assert made(checkout, first).returncode == 0
    (checkout / "venv/mine").touch()
    assert made(checkout, first).returncode == 0
    assert (checkout / "venv/mine").exists()
    assert made(checkout, second).returncode == 0
    assert not (checkout / "venv/mine").exists()
    assert (checkout / "venv/made").read_text() == "second\n"


@pytest.mark.parametrize("target", ["bin/.installed", "bin/.test"])
def test_what_was_installed_is_installed_there_too(
    checkout: Path, tmp_path: Path, target: str
) -> None:
    for name in ("pyproject.toml", "meson.build"):
        (checkout / name).touch()
    first, second = pip_stub(tmp_path, "first"), pip_stub(tmp_path, "second")
    assert made(checkout, first, target).returncode == 0
    there = (checkout / "venv" / target).stat().st_mtime_ns
    assert made(checkout, first, target).returncode == 0
    assert (checkout / "venv" / target).stat().st_mtime_ns == there
    assert made(checkout, second, target).returncode == 0
    assert (checkout / "venv" / target).exists()


def test_a_failed_environment_leaves_nothing(checkout: Path, tmp_path: Path) -> None:
    python = program(
        tmp_path / "python",
        f"""
        case "$*" in
        *"-m venv"*) mkdir -p "$3/bin"; touch "$3/bin/python"; exit 1 ;;
        *) exec "{sys.executable}" "$@" ;;
        esac""",
    )
    assert made(checkout, python).returncode != 0
    assert not (checkout / "venv").exists()
    assert made(checkout, pip_stub(tmp_path, "sound")).returncode == 0


def test_without_git_nothing_is_said(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin/git", "echo no repository >&2; exit 128")
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["make", "-n", "-f", str(ROOT / "Makefile"), "clean"],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
