"""The tests of the call and of paging again, as a user who may nothing.

With vm.unprivileged_userfaultfd=0: UFFD_USER_MODE_ONLY suffices for moving pages, and for paging.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from support import missing
from support.system import NOBODY

pytestmark = [pytest.mark.alone, pytest.mark.needs("move", "root"), pytest.mark.timeout(900)]

_HERE = Path(__file__).parent
# Nothing of the call depends on who makes it, once there is a userfaultfd: these open some.
_MODULES = ["test_call.py", "test_move_many.py", "test_registration.py"]
_PAGING = [
    "paging/test_flush.py",
    "paging/test_interpreter.py",
    "paging/test_pinning.py",
    "paging/test_pinning_limit.py",
    "paging/test_take.py",
    "../unit/test_paging_saving.py",
]
#: Faults that system calls raise are served for those only who may have any userfaultfd.
_NOT_FOR_NOBODY = ("root", "swap", "ksm", "hugetlb", "seccomp", "io_uring", "kernel_faults")
_SYSCTL = Path("/proc/sys/vm/unprivileged_userfaultfd")

_LAUNCHER = """
import os, sys
from support.system import become_nobody
become_nobody()
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""

_CHECK = """
import errno, os
import pagemove
from pagemove import lowlevel
assert os.getuid() == 65534
try:
    lowlevel.userfaultfd(os.O_CLOEXEC)
except OSError as error:
    assert error.errno == errno.EPERM
else:
    raise AssertionError("this user may open any userfaultfd")
found = pagemove.features()
assert found.remap_anon_pages and found.userfaultfd_user_mode
assert not found.userfaultfd_syscall and not found.userfaultfd_device
print(found.unprivileged_userfaultfd)
"""


_PAGED = """
import os
import numpy as np
from pagemove import PagedMemory
assert os.getuid() == 65534
with PagedMemory(nbytes=8 << 20, resident_limit="2MiB", mode="r+", block_size=4096) as region:
    array = region.asarray(np.uint64)
    array[:] = np.arange(array.size) % 1000
    assert int(array.sum()) == int((np.arange(array.size) % 1000).sum())
    del array
    stats = region.stats()
assert stats.written_back and not stats.errors, stats
"""


@pytest.fixture(scope="module")
def restricted() -> Iterator[None]:
    """Forbid what the sysctl can forbid."""
    before = _SYSCTL.read_text()
    _SYSCTL.write_text("0")
    yield
    _SYSCTL.write_text(before)


@pytest.fixture
def run(restricted, tmp_path):
    """Run the interpreter as nobody."""
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    for parent in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(parent.stat().st_mode | 0o011)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join([str(_HERE.parent), *filter(None, sys.path)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(home),
        "TMPDIR": str(home),
    }

    def run(*arguments: str, before: Sequence[str] = ()) -> str:
        result = subprocess.run(
            [*before, sys.executable, "-c", _LAUNCHER, *arguments],
            env=environment,
            cwd=_HERE.parent.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    return run


def test_an_unprivileged_user_may_open_a_user_mode_userfaultfd(run):
    assert run("-c", _CHECK).strip() == "0"


def test_a_helper_process_serves_an_unprivileged_user(run):
    run("-c", _PAGED)


def test_a_device_that_is_masked_by_another_is_none(run):
    """As containers mask what they do not want seen: by /dev/null, which everybody may open."""
    if not os.path.exists("/dev/userfaultfd"):
        pytest.skip("no /dev/userfaultfd")
    mask = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount --bind /dev/null /dev/userfaultfd && exec "$@"',
    ]
    able = subprocess.run([*mask, "sh", "true"], capture_output=True, text=True, check=False)
    if able.returncode:
        pytest.skip(f"cannot mount: {able.stderr.strip()}")
    run("-c", _PAGED, before=[*mask, "sh"])


def test_commands_do_not_warn_of_system_calls_that_they_do_not_make(run, tmp_path):
    file = tmp_path / "home" / "file"
    file.write_bytes(bytes(1 << 20))
    strict = ["-W", "error:system calls on paged memory"]
    assert "Paged memory works here.\n" in run(*strict, "-m", "pagemove", "doctor")
    page = [str(file), "--seconds", "0.1", "--json", "-"]
    assert json.loads(run(*strict, "-m", "pagemove", "page", *page))["nbytes"] == 1 << 20


def test_region_and_model_agree_unprivileged(run):
    machine = _HERE.parent / "property" / "paging" / "test_region.py"
    output = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "pinned", str(machine))
    assert "3 passed" in output, output


@pytest.mark.parametrize("module", [*_MODULES, *_PAGING])
def test_the_same_tests_pass(run, module):
    # What only root can provide is there already when they run.
    for name in ("swap", "ksm", "hugetlb"):
        missing(name)
    options = ["-q", "-rs", "-p", "no:cacheprovider", "--timeout=120"]
    # Every pair of values once, as root, is enough.
    options += ["--sets=lean"]
    output = run("-m", "pytest", *options, str(_HERE / module))
    passed = re.search(r"(\d+) passed", output)
    assert passed
    assert int(passed[1]) > 10
    # Nothing that concerns moving pages was skipped for want of a privilege.
    for reason in re.findall(r"needs (\w+):", output):
        assert reason in _NOT_FOR_NOBODY, output
