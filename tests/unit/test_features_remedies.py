"""problems.py: the right advice where a process lives in less than a whole machine."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest

from pagemove import problems
from pagemove.probing import PROBES, features
from pagemove.problems import DEVICE, Surroundings, problems_of
from support.probes import by_name, failing, module
from support.slowness import SLOWNESS
from unit.test_features import PRELUDE, look

pytestmark = pytest.mark.usefixtures("fresh_features")

WHOLE = dict.fromkeys(PROBES, 0)


def problem_of(name, error, **around):
    """Return the problem that a machine has where one probe fails."""
    found = features(refresh=True)
    changed = {name: False} if hasattr(found, name) else {}
    seen = SimpleNamespace(
        **{field: getattr(found, field) for field in found.__dataclass_fields__} | changed,
        paging=found.paging,
    )
    problems = problems_of(seen, Surroundings(WHOLE | {name: error}, **around))
    return {problem.name: problem for problem in problems}[name]


def mounted_over(*places):
    """Run code where nothing is mounted on some places, in a mount namespace of its own."""
    hide = " && ".join(f"mount -t tmpfs none {place}" for place in places)
    code = PRELUDE + textwrap.dedent(
        """
        for problem in pagemove.features().problems:
            print(problem.name, problem.needed, problem.remedy, sep=" | ")
        """
    )
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{hide} && exec "$0" -c "$1"', sys.executable, code],
        capture_output=True,
        text=True,
        timeout=60 * SLOWNESS,
        check=False,
    )


def without(*places):
    done = mounted_over(*places)
    if done.returncode and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip(f"there can be no mount namespace here: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines()]
    return {name: (needed == "True", remedy) for name, needed, remedy in rows}


@pytest.mark.needs("move", "pagemap_scan")
def test_after_a_change_of_user_moving_works_and_the_remedy_is_prctl():
    found = look(
        """
        become_nobody()
        libc.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE, as setuid(2) does
        show()
        """
    )
    if found.pagemap_scan:
        pytest.skip("this process may open what it does not own")
    problem = found.problems["pagemap_scan"]
    assert problem.errno == errno.EACCES
    assert "PR_SET_DUMPABLE, 1" in problem.remedy
    assert "boot" not in problem.remedy
    assert not problem.needed
    assert found.remap_anon_pages
    page = look(
        """
        become_nobody()
        libc.prctl(4, 0, 0, 0, 0)
        with pagemove.Memory(4096) as one, pagemove.Memory(4096) as two:
            memoryview(one)[:4] = b"here"
            assert pagemove.remap_anon_pages(two, one, pagemove.PAGE_SIZE) == pagemove.PAGE_SIZE
            assert bytes(memoryview(two)[:4]) == b"here"
        show()
        """
    )
    assert page.remap_anon_pages


@pytest.mark.needs("move", "root")
def test_without_proc_it_is_to_be_mounted():
    found = without("/proc")
    for name in ("pagemap_scan", "procmap_query", "swap"):
        assert found[name][1] == "mount procfs: mount -t proc proc /proc"
    assert found["pagemap_scan"][0]


@pytest.mark.needs("move", "root")
def test_without_sys_it_is_to_be_mounted():
    found = without("/sys")
    for name in ("huge_pages", "ksm"):
        assert found[name][1] == "mount sysfs: mount -t sysfs sysfs /sys"
    assert not any(needed for needed, _ in found.values())


@pytest.mark.parametrize("contained", [False, True])
def test_who_is_to_do_it(contained):
    who = "on the host, as root: " if contained else "as root: "
    for name, error in (("userfaultfd_device", errno.EACCES), ("userfaultfd_syscall", errno.EPERM)):
        remedy = problem_of(name, error, contained=contained).remedy
        assert remedy.startswith(who)


def test_a_user_namespace_is_not_the_host():
    if subprocess.run(["unshare", "-Ur", "true"], capture_output=True, check=False).returncode:
        pytest.skip("there can be no user namespace here")
    code = "from pagemove.problems import Surroundings; print(Surroundings.here({}).contained)"
    for before, contained in (([], "False"), (["unshare", "-Ur"], "True")):
        done = subprocess.run(
            [*before, sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        if not before and done.stdout.strip() == "True":
            pytest.skip("these tests run in a container")
        assert done.stdout.strip() == contained


def test_settings_that_may_only_be_read(monkeypatch):
    monkeypatch.setattr(problems, "_flags", lambda path: os.ST_RDONLY * (path == "/proc/sys"))
    assert Surroundings.here({}).contained
    monkeypatch.setattr(problems, "_flags", lambda path: os.ST_NODEV * (path == DEVICE))
    assert Surroundings.here({}).nodev


def test_a_device_on_a_mount_without_devices():
    problem = problem_of("userfaultfd_device", errno.EACCES, nodev=True)
    assert "nodev" in problem.missing
    assert "mount -o remount,dev /dev" in problem.remedy
    assert "chmod" not in problem.remedy
    problem = problem_of("userfaultfd_device", errno.EACCES, nodev=True, contained=True)
    assert problem.remedy.endswith("docker run --device /dev/userfaultfd")


def test_the_pagemap_by_its_error(monkeypatch):
    for error, needed, words in (
        (errno.EACCES, False, "PR_SET_DUMPABLE"),
        (errno.EPERM, False, "PR_SET_DUMPABLE"),
        (errno.ENOTTY, True, "boot Linux 6.7"),
    ):
        monkeypatch.setattr(module, "open_proc", failing(error))
        problem = by_name(features(refresh=True))["pagemap_scan"]
        assert (problem.needed, words in problem.remedy) == (needed, True)
