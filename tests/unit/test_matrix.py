"""The matrix of kernels, without booting one: what it picks, writes down and publishes."""

from __future__ import annotations

import io
import json

import pytest

from matrix import archive, cpio, image, plan, results, table
from matrix.archive import Archive, Kernel, Missing
from matrix.flavours import FLAVOURS

_INDEX = """\
Package: linux-image-6.1.0-50-amd64
Version: 6.1.176-1
Depends: kmod, linux-base

Package: linux-image-6.12.107+deb13-amd64
Version: 6.12.107-1
Depends: kmod

Package: linux-image-6.12.95+deb12-amd64
Version: 6.12.95-1~bpo12+1

Package: linux-image-6.12.95+deb12-cloud-amd64
Version: 6.12.95-1~bpo12+1

Package: linux-image-6.12.95+deb12-rt-amd64
Version: 6.12.95-1~bpo12+1

Package: linux-image-7.0.13+deb13-amd64
Version: 7.0.13-1~bpo13+1
Depends: linux-binary-7.0.13+deb13-amd64 (= 7.0.13-1~bpo13+1)

Package: linux-binary-7.0.13+deb13-amd64
Version: 7.0.13-1~bpo13+1

Package: linux-modules-7.3.4+deb13-amd64
Version: 7.3.4-1~bpo13+1

Package: linux-image-7.3.4+deb13-amd64
Version: 7.3.4-1~bpo13+1
Depends: linux-binary-7.3.4+deb13-amd64 (= 7.3.4-1~bpo13+1)

Package: linux-binary-7.3.4+deb13-amd64
Version: 7.3.4-1~bpo13+1

Package: linux-image-amd64
Version: 7.3.4-1~bpo13+1
"""


@pytest.fixture
def known(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "run", lambda command, **how: _INDEX)
    return Archive(tmp_path, FLAVOURS["amd64"])


class TestArchive:
    def test_has_each_full_kernel_once_oldest_first(self, known):
        assert known.kernels() == [
            Kernel(release, version, f"linux-{package}-{release}", modules and modules + release)
            for release, version, package, modules in [
                ("6.1.0-50-amd64", "6.1.176", "image", "linux-image-"),
                ("6.12.95+deb12-amd64", "6.12.95", "image", "linux-image-"),
                ("6.12.107+deb13-amd64", "6.12.107", "image", "linux-image-"),
                ("7.0.13+deb13-amd64", "7.0.13", "binary", ""),
                ("7.3.4+deb13-amd64", "7.3.4", "binary", "linux-modules-"),
            ]
        ]

    def test_of_a_series_the_newest_is_found(self, known):
        assert known.find("6.12").version == "6.12.107"
        assert known.find("6.12.95").version == "6.12.95"

    def test_what_is_not_there_is_named(self, known):
        with pytest.raises(Missing, match=r"no kernel 6\.13"):
            known.find("6.13")


def test_an_image_is_what_cpio_calls_newc():
    out = io.BytesIO()
    cpio.write_member(out, 3, "/a/b", 0o100644, 7, b"hello")
    data = out.getvalue()
    assert data.startswith(b"070701")
    assert len(data) % 4 == 0
    fields = [int(data[at : at + 8], 16) for at in range(6, 110, 8)]
    assert (fields[1], fields[5], fields[6], fields[11]) == (0o100644, 7, 5, len("a/b") + 1)
    assert data[110:].startswith(b"a/b\0")
    assert data.rstrip(b"\0").endswith(b"hello")


def test_an_image_is_extended_anew_for_each_kernel(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(b"begin...")
    cpio.extend(path, 8, {"one": b"first"})
    cpio.extend(path, 8, {"two": b"second"})
    data = path.read_bytes()
    assert data.startswith(b"begin...070701")
    assert b"first" not in data
    assert b"second" in data
    cpio.extend(path, 8, {})
    assert path.read_bytes() == b"begin..."


class TestResults:
    def taken(self, *messages):
        found = results.Results("6.12.107", "amd64", "tcg", "full", 2)
        for message in messages:
            found.take(message)
        return found

    def test_counts_by_file_and_reason(self, tmp_path):
        base = {"kind": "test", "when": "call", "seconds": 0.1, "reason": ""}
        found = self.taken(
            {"kind": "booted", "release": "6.12.107+deb13-amd64", "seconds": 5.0},
            {**base, "test": "tests/a.py::one", "outcome": "passed"},
            {**base, "test": "tests/a.py::two", "outcome": "passed"},
            {**base, "test": "tests/a.py::three", "outcome": "skipped", "reason": "needs x: y"},
            {"kind": "ran", "name": "tests", "status": 0, "seconds": 3.0},
            {"kind": "end"},
        )
        assert found.good
        found.write(tmp_path)
        written = json.loads((tmp_path / "6.12.107.json").read_text())
        assert written["passed"] == {"tests/a.py": 2}
        assert written["skipped"] == {"needs x: y": 1}
        assert written["variants"] == 2

    def test_observations_alone_leave_what_is_kept_of_the_tests(self, tmp_path):
        passed = {"kind": "test", "test": "a::b", "outcome": "passed", "when": "call", "seconds": 1}
        tests = {"kind": "ran", "name": "tests", "status": 0, "seconds": 3.0}
        self.taken(passed, tests).write(tmp_path)
        self.taken({"kind": "observed", "name": "zero_page", "value": "moves"}).write(tmp_path)
        written = json.loads((tmp_path / "6.12.107.json").read_text())
        assert written["observed"] == {"zero_page": "moves"}
        assert written["passed"] == {"a": 1}
        assert written["seconds"]["tests"] == 3.0

    def test_a_failure_and_an_end_before_the_end_are_not_good(self):
        assert not self.taken({"kind": "ran", "name": "tests", "status": 0, "seconds": 1}).good
        failure = {
            "kind": "test",
            "test": "t",
            "when": "setup",
            "outcome": "failed",
            "seconds": 1,
            "reason": "why",
        }
        found = self.taken(failure, {"kind": "end"})
        assert not found.good
        assert found.failed == {"t": "why"}

    def test_pytest_that_could_not_run_is_no_result(self):
        found = self.taken({"kind": "ran", "name": "tests", "status": 4, "seconds": 1})
        assert "status 4" in found.broken


def test_the_plans_name_tests_that_exist():
    for chosen in plan.PLANS.values():
        for name in chosen.tests:
            path = name.removeprefix("--deselect=").partition("::")[0]
            assert (image.ROOT / path).exists(), name


def test_the_published_page_is_made_of_the_results_that_are_kept():
    assert table.PAGE.read_text() == table.page(table.results())
