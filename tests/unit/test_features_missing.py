"""probing.py and problems.py: what is missing, why, and what to do; `require`."""

import errno
import os
from types import SimpleNamespace

import pytest

from pagemove import lowlevel
from pagemove._native import calls, pager
from pagemove.errors import RemapError, UnsupportedError
from pagemove.kernel import REQUIRABLE, UFFD_FEATURES
from pagemove.probing import features
from support.probes import by_name, failing, module

pytestmark = pytest.mark.usefixtures("fresh_features")

ALL_BITS = (1 << len(UFFD_FEATURES)) - 1


class TestReasons:
    """The rarer answers of the kernel, by replaced calls."""

    @pytest.mark.parametrize(
        ("error", "seccomp", "sysctl", "missing", "remedy"),
        [
            (errno.EPERM, "2", "0", "seccomp filter", "SCMP_ACT_ALLOW"),
            (errno.EACCES, "2", "0", "seccomp filter", "SCMP_ACT_ALLOW"),
            (errno.EPERM, "0", "0", "security module", "anon_inode"),
            (errno.EACCES, "0", "0", "security module", "anon_inode"),
            (errno.ENOSYS, "2", "0", "hidden", "SCMP_ACT_ALLOW"),
            (errno.ENOSYS, "2", "", "not in this kernel", "CONFIG_USERFAULTFD=y"),
            (errno.ENOSYS, "0", "", "not in this kernel", "CONFIG_USERFAULTFD=y"),
            (errno.EINVAL, "0", "0", "UFFD_USER_MODE_ONLY", "Linux 5.11"),
            (errno.EMFILE, "0", "0", "no descriptor is free", "ulimit -n"),
            (errno.ENOMEM, "0", "0", "Cannot allocate memory", "userfaultfd(2)"),
        ],
    )
    def test_of_the_system_call(self, monkeypatch, error, seccomp, sysctl, missing, remedy):
        real = module.read_text
        texts = {
            "/proc/self/status": f"Name:\tx\nSeccomp:\t{seccomp}\nSeccomp_filters:\t9",
            "/proc/sys/vm/unprivileged_userfaultfd": sysctl,
        }
        monkeypatch.setattr(module, "read_text", lambda path: texts.get(path, real(path)))
        monkeypatch.setattr(calls, "userfaultfd", failing(error))
        monkeypatch.setattr(calls, "userfaultfd_new", failing(errno.EPERM))
        found = features(refresh=True)
        problem = by_name(found)["userfaultfd_user_mode"]
        assert missing in problem.missing
        assert remedy in problem.remedy
        assert problem.errno == error
        assert problem.needed
        assert found.problems[0] is problem
        assert not found.remap_anon_pages
        assert found.seccomp == int(seccomp)
        assert found.unprivileged_userfaultfd == (int(sysctl) if sysctl else None)

    @pytest.mark.parametrize(
        ("error", "remedy"),
        [
            (errno.ENOENT, "docker run --device /dev/userfaultfd"),
            (errno.EACCES, "chmod 666 /dev/userfaultfd"),
            (errno.EPERM, "docker run --device /dev/userfaultfd"),
            (errno.ENXIO, "userfaultfd(2)"),
        ],
    )
    def test_of_the_device(self, monkeypatch, error, remedy):
        real = os.open

        def refuse(path, *arguments):
            if path == "/dev/userfaultfd":
                raise OSError(error, os.strerror(error), path)
            return real(path, *arguments)

        monkeypatch.setattr(os, "open", refuse)
        found = features(refresh=True)
        assert not found.userfaultfd_device
        problem = by_name(found)["userfaultfd_device"]
        assert remedy in problem.remedy
        assert problem.errno == error
        assert not problem.needed

    @pytest.mark.needs("pagemap_scan")
    @pytest.mark.parametrize("name", list(UFFD_FEATURES))
    def test_a_feature_is_missing(self, monkeypatch, name):
        bit = list(UFFD_FEATURES).index(name)
        monkeypatch.setattr(calls, "api", lambda fd: (ALL_BITS & ~(1 << bit), 0))
        found = features(refresh=True)
        assert set(found.uffd_features) == set(UFFD_FEATURES) - {name}
        problem = by_name(found)[name]
        assert f"Linux {UFFD_FEATURES[name]} or later" in problem.remedy
        assert problem.needed == (name in ("MOVE", "PAGEFAULT_FLAG_WP"))
        assert problem.needed != found.remap_anon_pages
        with pytest.raises(UnsupportedError, match=UFFD_FEATURES[name].split()[0]) as caught:
            found.require(name)
        assert caught.value.errno == errno.ENOSYS

    @pytest.mark.parametrize("name", ["MOVE", "POISON"])
    def test_paging_does_without_and_says_so(self, monkeypatch, name):
        bit = list(UFFD_FEATURES).index(name)
        monkeypatch.setattr(calls, "api", lambda fd: (ALL_BITS & ~(1 << bit), 0))
        found = features(refresh=True)
        assert found.paging == "mremap"
        found.require("paging")
        with pytest.raises(UnsupportedError, match="by mremap"):
            found.require("paging_by_move")

    def test_paging_does_without_what_is_broken(self, monkeypatch):
        monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release="6.8.7"))
        monkeypatch.setattr(calls, "api", lambda fd: (ALL_BITS, 0))
        assert features(refresh=True).paging == "mremap"

    def test_paging_cannot_do_without_a_userfaultfd(self, monkeypatch):
        for name in ("userfaultfd", "userfaultfd_new"):
            monkeypatch.setattr(calls, name, failing(errno.EPERM))
        found = features(refresh=True)
        assert found.paging == ""
        with pytest.raises(UnsupportedError, match="userfaultfd"):
            found.require("paging")

    def test_unknown_feature_bits_have_numbers(self, monkeypatch):
        monkeypatch.setattr(calls, "api", lambda fd: (ALL_BITS | 1 << 19 | 1 << 63, 0))
        assert features(refresh=True).uffd_features == (*UFFD_FEATURES, "BIT_19", "BIT_63")

    def test_known_broken_kernel_is_refused(self, monkeypatch):
        monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release="6.8.7"))
        monkeypatch.setattr(calls, "api", lambda fd: (ALL_BITS, 0))
        found = features(refresh=True)
        assert found.defects == ("CVE-2024-27007",)
        problem = found.problems[0]
        assert problem.name == "CVE-2024-27007"
        assert problem.needed
        with pytest.raises(UnsupportedError, match=r"Linux 6\.8\.8 or later"):
            found.require("remap_anon_pages")

    @pytest.mark.needs("pagemap_scan")
    def test_kernel_without_move_does_not_have_its_defect(self, monkeypatch):
        monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release="6.1.140"))
        monkeypatch.setattr(calls, "api", lambda fd: (ALL_BITS & ~lowlevel.UFFD_FEATURE_MOVE, 0))
        found = features(refresh=True)
        assert found.defects == ()
        assert [problem.name for problem in found.problems if problem.needed] == ["MOVE"]

    def test_ubuntu_kernel_is_judged_by_its_signature(self, monkeypatch):
        real = module.read_text
        signature = {"/proc/version_signature": "Ubuntu 6.8.0-51.52-generic 6.8.12"}
        monkeypatch.setattr(module, "read_text", lambda path: signature.get(path) or real(path))
        monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release="6.8.0-51-generic"))
        monkeypatch.setattr(calls, "api", lambda fd: (ALL_BITS, 0))
        found = features(refresh=True)
        assert found.release == "6.8.0-51-generic"
        assert found.defects == ("split-spin",)

    def test_nearly_all_mappings_used(self, monkeypatch):
        found = features(refresh=True)
        assert "max_map_count" not in by_name(found)
        nearly = found.max_map_count * 95 // 100
        monkeypatch.setattr(module, "count_vmas", lambda: nearly)
        found = features(refresh=True)
        assert found.vma_count == nearly
        problem = by_name(found)["max_map_count"]
        assert str(nearly) in problem.missing
        assert "sysctl -w vm.max_map_count=" in problem.remedy
        assert not problem.needed

    @pytest.mark.needs("move")
    def test_with_everything_missing_every_remedy_is_there(self, monkeypatch):
        for name in ("userfaultfd", "userfaultfd_new", "pagemap_scan", "madvise", "set_vma_name"):
            monkeypatch.setattr(calls, name, failing(errno.ENOSYS))
        monkeypatch.setattr(pager, "try_ring", lambda: errno.ENOSYS)
        monkeypatch.setattr(module, "read_text", lambda path: "")
        monkeypatch.setattr(module, "open_proc", failing(errno.ENOENT))
        monkeypatch.setattr(module, "count_vmas", failing(errno.ENOENT))
        found = features(refresh=True)
        answers = {"remap_anon_pages", "paging", "paging_by_move"}
        assert set(by_name(found)) == set(REQUIRABLE) - set(UFFD_FEATURES) - answers
        assert all(problem.missing and problem.remedy for problem in found.problems)
        assert {problem.name for problem in found.problems if problem.needed} == {
            "userfaultfd_user_mode",
            "pagemap_scan",
        }
        for name in REQUIRABLE:
            with pytest.raises(UnsupportedError, match="Remedy: "):
                found.require(name)
        assert found.vma_count == 0

    @pytest.mark.parametrize(
        ("error", "sysctl", "missing", "remedy"),
        [
            (
                errno.EPERM,
                "2",
                "kernel.io_uring_disabled is 2",
                "sysctl kernel.io_uring_disabled=0",
            ),
            (errno.EPERM, "0", "refused (EPERM)", "seccomp filter"),
            (errno.ENOSYS, "", "refused (ENOSYS)", "CONFIG_IO_URING"),
            (errno.EINVAL, "0", "fails: ", "Linux 6.0"),
        ],
    )
    def test_io_uring_refused(self, monkeypatch, error, sysctl, missing, remedy):
        monkeypatch.setattr(pager, "try_ring", lambda: error)
        monkeypatch.setattr("pagemove.problems.read_text", lambda path: sysctl)
        found = features(refresh=True)
        assert not found.io_uring
        problem = by_name(found)["io_uring"]
        assert missing in problem.missing
        assert remedy in problem.remedy
        assert not problem.needed

    def test_procmap_query_unknown(self, monkeypatch):
        monkeypatch.setattr(module.fcntl, "ioctl", failing(errno.ENOTTY))
        found = features(refresh=True)
        assert not found.procmap_query
        assert "6.11" in by_name(found)["procmap_query"].remedy

    def test_thp_switched_off(self, monkeypatch):
        real = module.read_text
        monkeypatch.setattr(
            module,
            "read_text",
            lambda path: "always madvise [never]" if path.endswith("/enabled") else real(path),
        )
        found = features(refresh=True)
        assert found.thp == "never"
        assert "echo madvise >" in by_name(found)["huge_pages"].remedy


class TestRequire:
    def test_raises_exactly_for_what_is_missing(self):
        found = features(refresh=True)
        missing = set(by_name(found))
        for name in REQUIRABLE:
            if name in missing or (name == "remap_anon_pages" and not found.remap_anon_pages):
                with pytest.raises(UnsupportedError):
                    found.require(name)
            else:
                assert found.require(name) is None

    @pytest.mark.needs("move")
    def test_nothing_and_several(self):
        found = features(refresh=True)
        assert found.require() is None
        assert found.require("remap_anon_pages", "MOVE", "pagemap_scan") is None

    @pytest.mark.parametrize("name", ["", "move", "UFFD_FEATURE_MOVE", "release"])
    def test_unknown_name(self, name):
        with pytest.raises(ValueError, match="unknown feature"):
            features().require("MOVE", name)

    def test_names_all_that_is_missing_with_its_remedy(self, monkeypatch):
        monkeypatch.setattr(calls, "api", lambda fd: (1, 0))
        with pytest.raises(UnsupportedError) as caught:
            features(refresh=True).require("POISON", "WP_ASYNC")
        assert isinstance(caught.value, RemapError)
        assert "POISON" in str(caught.value)
        assert "Linux 6.6" in str(caught.value)
        assert "WP_ASYNC" in str(caught.value)
        assert "MOVE" not in str(caught.value)
