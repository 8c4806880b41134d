"""An sdist and a wheel build, install into an empty environment, and work there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Builds the package, and an environment for it.
pytestmark = pytest.mark.slow

USE_IT = textwrap.dedent(
    """
    import pathlib, sys
    import pagemove
    assert pathlib.Path(pagemove.__file__).is_relative_to(sys.prefix), pagemove.__file__
    a, b = pagemove.empty(5000), pagemove.empty(5000)
    a[:] = 3
    assert pagemove.move(b, a) == 40960
    assert (b == 3).all() and (a == 0).all()
    print("moved")
    """
)


def run(*command: str, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    # meson and cython are found by name.
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (ROOT / ".git").exists():
        pytest.skip("an sdist is made from a git checkout, and this is none")
    out = tmp_path_factory.mktemp("dist")
    # The wheel is built from the sdist, so this proves that the sdist is whole.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT), cwd=out)
    return out


def test_sdist_has_the_tests_and_documents(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "Makefile", "meson.build"} <= names
    assert "src/pagemove/_native/moves.c" in names
    assert "tests/unit/test_packaging.py" in names


def test_wheel_is_abi3_typed_and_holds_nothing_else(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    assert "-cp311-abi3-linux_" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"pagemove/py.typed", "pagemove/_native/calls.pyi"} <= names
    assert {name.split("/")[0] for name in names if not name.startswith("pagemove-")} == {
        "pagemove"
    }
    assert not [name for name in names if name.endswith((".c", ".h", ".pyx", ".pxi"))]
    of_tests = {name for name in names if "test" in name}
    ours = ("__init__", "contract", "faulty")
    assert of_tests == {f"pagemove/testing/{name}.py" for name in ours}
    assert not [name for name in names if "__pycache__" in name]


def test_the_one_extension_of_the_wheel_is_stripped(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        extensions = {n: archive.read(n) for n in archive.namelist() if n.endswith(".so")}
    assert [*extensions] == ["pagemove/_native/core.abi3.so"]
    (contents,) = extensions.values()
    # Names of sections are in the file itself; the dynamic symbols stay.
    assert b".dynsym\0" in contents
    assert b".symtab\0" not in contents
    assert b".debug_info\0" not in contents


def test_wheel_works_in_an_empty_environment(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    run(sys.executable, "-m", "venv", str(tmp_path / "venv"), cwd=tmp_path)
    python = str(tmp_path / "venv/bin/python")
    run(python, "-m", "pip", "install", "--quiet", str(wheel), cwd=tmp_path)
    assert run(python, "-c", USE_IT, cwd=tmp_path) == "moved\n"
    listed = run(python, "-m", "pip", "list", "--format", "json", cwd=tmp_path)
    names = {each["name"].lower() for each in json.loads(listed)}
    assert names <= {"pagemove", "numpy", "pip", "setuptools"}
    without = subprocess.run(
        [tmp_path / "venv/bin/pagemove", "doctor"], capture_output=True, text=True, check=False
    )
    assert (without.returncode, without.stdout) == (1, "")
    assert without.stderr == "pagemove: the command line needs typer: pip install 'pagemove[cli]'\n"
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[cli]", cwd=tmp_path)
    assert "pagemove" in run(str(tmp_path / "venv/bin/pagemove"), "--version", cwd=tmp_path)
    run(str(tmp_path / "venv/bin/pagemove"), "doctor", "--json", cwd=tmp_path)
