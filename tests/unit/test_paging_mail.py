"""The letters by which a pager asks a helper: each request is answered once, by one of two ways."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from support import native

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "src/pagemove/_native"

pytestmark = [
    pytest.mark.skipif(not NATIVE.is_dir(), reason="the sources of the pager are not here"),
    pytest.mark.needs("paging"),
]


@pytest.fixture(scope="module")
def mail(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("mail") / "mail_alone"
    sources = [ROOT / "tests/support/mail_alone.c", NATIVE / "pager/mechanisms/mail.c"]
    flags = ("-std=gnu11", "-g", "-O1", "-pthread", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}")
    command = [native.compiler(), *flags, "-o", str(built), *map(str, sources)]
    subprocess.run(command, check=True)
    return built


@pytest.mark.parametrize("case", ["answered", "aloud", "refused", "others", "ended", "once"])
def test_letters(mail, case):
    done = subprocess.run([str(mail), case], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
