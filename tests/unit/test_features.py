import errno
import importlib
import json
import mmap
import os
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest

from pagemove import lowlevel
from pagemove._native import calls
from pagemove.errors import RemapError, UnsupportedError
from pagemove.features import (
    REQUIRABLE,
    KernelFeatures,
    features,
    quirks,
    stable_release,
)
from pagemove.introspect import HUGE_PAGE_SIZE, PAGE_SIZE, count_vmas
from pagemove.remedies import DEFECTS, UFFD_FEATURES, Problem

# `pagemove.features` is the function; the module of that name is what the tests replace parts of.
module = importlib.import_module("pagemove.features")

ALL_BITS = (1 << len(UFFD_FEATURES)) - 1

# What a child may do before it looks: answer userfaultfd with an errno, and become nobody.
PRELUDE = """
import ctypes, json, os, struct
import pagemove
from pagemove._native import calls
libc = ctypes.CDLL(None, use_errno=True)

def refuse_userfaultfd(error):
    number = {"x86_64": 323, "aarch64": 282}[os.uname().machine]
    program = b"".join(
        struct.pack("HBBI", *each)
        for each in [
            (0x20, 0, 0, 0),
            (0x15, 0, 1, number),
            (0x06, 0, 0, 0x00050000 | error),
            (0x06, 0, 0, 0x7FFF0000),
        ]
    )
    code = ctypes.create_string_buffer(program)
    filter = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(code)))
    assert not libc.prctl(38, 1, 0, 0, 0)
    assert not libc.prctl(22, 2, filter, 0, 0), os.strerror(ctypes.get_errno())

def become_nobody():
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
    libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, as a process started by that user is

def show():
    print(json.dumps(pagemove.features().as_dict()))
"""


def run(code):
    result = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def look(code):
    found = json.loads(run(code))
    return SimpleNamespace(
        **found | {"problems": {each["name"]: Problem(**each) for each in found["problems"]}}
    )


def by_name(found):
    return {problem.name: problem for problem in found.problems}


def failing(error):
    def fail(*_arguments):
        raise OSError(error, os.strerror(error))

    return fail


@pytest.fixture(autouse=True)
def fresh():
    """Leave no features that were found under a replaced call."""
    yield
    module._probe.cache_clear()


class TestHere:
    """What is found agrees with what the machine says elsewhere."""

    def test_plain_facts(self):
        found = features(refresh=True)
        assert found.release == os.uname().release
        assert found.page_size == PAGE_SIZE == os.sysconf("SC_PAGE_SIZE")
        assert found.huge_page_size == HUGE_PAGE_SIZE
        with open("/proc/sys/vm/max_map_count") as limit:
            assert found.max_map_count == int(limit.read())
        assert abs(found.vma_count - count_vmas()) < 20
        with open("/proc/swaps") as swaps:
            assert bool(found.swap) == (len(swaps.readlines()) > 1)

    def test_thp(self):
        path = "/sys/kernel/mm/transparent_hugepage/enabled"
        found = features(refresh=True)
        if os.path.exists(path):
            with open(path) as enabled:
                assert f"[{found.thp}]" in enabled.read()
        else:
            assert found.thp == ""
        assert ("huge_pages" in by_name(found)) == (found.thp in ("", "never"))

    def test_doors(self):
        found = features(refresh=True)
        for name, flags in (("userfaultfd_syscall", 0), ("userfaultfd_user_mode", 1)):
            refusal = 0
            try:
                os.close(calls.userfaultfd(os.O_CLOEXEC | flags))
            except OSError as error:
                refusal = error.errno
            assert getattr(found, name) == (not refusal)
            assert (name in by_name(found)) == bool(refusal)
            if refusal:
                assert by_name(found)[name].errno == refusal
        assert found.userfaultfd_device == os.access("/dev/userfaultfd", os.R_OK | os.W_OK)

    def test_userfaultfd_features(self):
        fd = calls.userfaultfd(os.O_CLOEXEC | lowlevel.UFFD_USER_MODE_ONLY)
        try:
            offered, _ioctls = calls.api(fd)
        finally:
            os.close(fd)
        found = features(refresh=True)
        for bit, name in enumerate(UFFD_FEATURES):
            assert getattr(lowlevel, f"UFFD_FEATURE_{name}") == 1 << bit
            assert (name in found.uffd_features) == bool(offered >> bit & 1)

    @pytest.mark.needs("pagemap_scan")
    def test_small_facilities(self):
        found = features(refresh=True)
        page = calls.mmap(0, PAGE_SIZE, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        try:
            for name, call in (
                (
                    "guard_regions",
                    lambda: calls.madvise(page, PAGE_SIZE, lowlevel.MADV_GUARD_INSTALL),
                ),
                ("vma_names", lambda: calls.set_vma_name(page, PAGE_SIZE, b"test")),
            ):
                try:
                    call()
                except OSError:
                    assert not getattr(found, name)
                else:
                    assert getattr(found, name)
        finally:
            calls.munmap(page, PAGE_SIZE)
        assert found.pagemap_scan

    def test_moving_is_possible_exactly_when_it_is_said_to_be(self):
        found = features(refresh=True)
        fd = -1
        try:
            fd = calls.userfaultfd(os.O_CLOEXEC | lowlevel.UFFD_USER_MODE_ONLY)
            offered = calls.api(fd)[0]
        except OSError:
            offered = 0
        finally:
            if fd >= 0:
                os.close(fd)
        refused = "CVE-2024-27007" in found.defects
        assert found.remap_anon_pages == bool(
            offered & lowlevel.UFFD_FEATURE_MOVE and not refused and found.pagemap_scan
        )


class TestRefused:
    """Real refusals, each in a process of its own."""

    @pytest.mark.needs("move")
    def test_unprivileged(self):
        with open("/proc/sys/vm/unprivileged_userfaultfd") as sysctl:
            allowed = int(sysctl.read())
        found = look("become_nobody(); show()")
        assert found.unprivileged_userfaultfd == allowed
        assert found.userfaultfd_user_mode
        assert found.userfaultfd_syscall == bool(allowed)
        assert found.remap_anon_pages
        assert not any(problem.needed for problem in found.problems.values())
        if not allowed:
            problem = found.problems["userfaultfd_syscall"]
            assert problem.errno == errno.EPERM
            assert "sysctl -w vm.unprivileged_userfaultfd=1" in problem.remedy
            assert "UFFD_USER_MODE_ONLY" in problem.missing
        if os.path.exists("/dev/userfaultfd") and not found.userfaultfd_device:
            problem = found.problems["userfaultfd_device"]
            assert problem.errno == errno.EACCES
            assert "chmod 666 /dev/userfaultfd" in problem.remedy

    @pytest.mark.needs("move")
    def test_unprivileged_process_does_move_pages(self):
        output = run(
            """
            become_nobody()
            size = pagemove.PAGE_SIZE
            with pagemove.Memory(size) as one, pagemove.Memory(size) as two:
                memoryview(one)[:4] = b"here"
                print(pagemove.remap_anon_pages(two, one, size))
                print(bytes(memoryview(two)[:4]))
            """
        )
        assert output.splitlines() == [str(PAGE_SIZE), "b'here'"]

    @pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS])
    def test_seccomp_and_no_device(self, error):
        found = look(f"become_nobody(); refuse_userfaultfd({error}); show()")
        if found.userfaultfd_device:
            pytest.skip("/dev/userfaultfd is open to everybody here")
        assert found.seccomp == 2
        assert not found.remap_anon_pages
        assert found.uffd_features == []
        problem = found.problems["userfaultfd_user_mode"]
        assert problem.needed
        assert problem.errno == error
        assert "seccomp" in problem.missing
        assert ("ENOSYS" in problem.missing) == (error == errno.ENOSYS)
        assert '{"names": ["userfaultfd"], "action": "SCMP_ACT_ALLOW"}' in problem.remedy
        assert "docker run --security-opt seccomp=" in problem.remedy
        assert "sysctl" not in problem.remedy

    @pytest.mark.needs("move")
    def test_seccomp_but_the_device_helps(self):
        found = look(f"refuse_userfaultfd({errno.EPERM}); show()")
        if not found.userfaultfd_device:
            pytest.skip("/dev/userfaultfd cannot be opened here")
        assert found.remap_anon_pages
        assert not found.userfaultfd_user_mode
        assert not found.problems["userfaultfd_user_mode"].needed
        assert "MOVE" in found.uffd_features

    @pytest.mark.needs("move")
    def test_require_in_a_refused_process(self):
        output = run(
            f"""
            become_nobody()
            refuse_userfaultfd({errno.EPERM})
            for names in (["remap_anon_pages"], ["MOVE"], ["userfaultfd_user_mode"]):
                try:
                    pagemove.features().require(*names)
                    print("nothing missing")
                except pagemove.UnsupportedError as error:
                    print(error.errno, "SCMP_ACT_ALLOW" in str(error))
            pagemove.features().require("pagemap_scan")
            """
        )
        if "nothing missing" in output:
            pytest.skip("/dev/userfaultfd is open to everybody here")
        assert output.splitlines() == [f"{errno.EPERM} True"] * 3

    def test_forked_child_looks_again(self):
        output = run(
            f"""
            before = pagemove.features().userfaultfd_user_mode
            child = os.fork()
            if not child:
                refuse_userfaultfd({errno.EPERM})
                print(pagemove.features().userfaultfd_user_mode, flush=True)
                os._exit(0)
            os.waitpid(child, 0)
            print(before, pagemove.features().userfaultfd_user_mode)
            """
        )
        assert output.split() == ["False", "True", "True"]


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
        real = module._read
        texts = {
            "/proc/self/status": f"Name:\tx\nSeccomp:\t{seccomp}\nSeccomp_filters:\t9",
            "/proc/sys/vm/unprivileged_userfaultfd": sysctl,
        }
        monkeypatch.setattr(module, "_read", lambda path: texts.get(path, real(path)))
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
        monkeypatch.setattr(calls, "api", lambda fd: (ALL_BITS | 1 << 17 | 1 << 63, 0))
        assert features(refresh=True).uffd_features == (*UFFD_FEATURES, "BIT_17", "BIT_63")

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
        monkeypatch.setattr(calls, "api", lambda fd: (ALL_BITS >> 1, 0))
        found = features(refresh=True)
        assert found.defects == ()
        assert [problem.name for problem in found.problems if problem.needed] == ["MOVE"]

    def test_ubuntu_kernel_is_judged_by_its_signature(self, monkeypatch):
        real = module._read
        signature = {"/proc/version_signature": "Ubuntu 6.8.0-51.52-generic 6.8.12"}
        monkeypatch.setattr(module, "_read", lambda path: signature.get(path) or real(path))
        monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release="6.8.0-51-generic"))
        found = features(refresh=True)
        assert found.release == "6.8.0-51-generic"
        assert found.defects == ()

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
        monkeypatch.setattr(module, "_read", lambda path: "")
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

    def test_procmap_query_unknown(self, monkeypatch):
        monkeypatch.setattr(module.fcntl, "ioctl", failing(errno.ENOTTY))
        found = features(refresh=True)
        assert not found.procmap_query
        assert "6.11" in by_name(found)["procmap_query"].remedy

    def test_thp_switched_off(self, monkeypatch):
        real = module._read
        monkeypatch.setattr(
            module,
            "_read",
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


class TestObject:
    def test_is_looked_at_once(self, monkeypatch):
        found = features(refresh=True)
        monkeypatch.setattr(calls, "userfaultfd", failing(errno.EPERM))
        assert features() is found
        assert features(refresh=True) is not found
        assert not features().userfaultfd_user_mode

    def test_refresh_is_by_keyword(self):
        with pytest.raises(TypeError):
            features(True)

    def test_is_frozen_and_hashable(self):
        found = features()
        with pytest.raises(AttributeError):
            found.release = "7.0"
        assert hash(found) == hash(features())

    def test_as_dict_is_json(self):
        found = features(refresh=True)
        result = found.as_dict()
        assert json.loads(json.dumps(result))["release"] == found.release
        assert result["remap_anon_pages"] is found.remap_anon_pages
        assert result["paging"] == found.paging
        assert set(result) == {"remap_anon_pages", "paging", *KernelFeatures.__dataclass_fields__}
        assert [defect["name"] for defect in result["defects"]] == list(found.defects)
        assert all(defect["consequence"] for defect in result["defects"])

    @pytest.mark.parametrize("broken", [None, "api", "pagemap_scan", "set_vma_name"])
    def test_leaves_no_descriptor_and_no_mapping(self, monkeypatch, broken):
        features(refresh=True)
        if broken:
            monkeypatch.setattr(calls, broken, failing(errno.EPERM))
        descriptors, mappings = set(os.listdir("/proc/self/fd")), count_vmas()
        for _ in range(20):
            features(refresh=True)
        assert set(os.listdir("/proc/self/fd")) == descriptors
        assert count_vmas() - mappings < 5


class TestQuirks:
    REFUSED, HUGE_ZERO = "CVE-2024-27007", "CVE-2026-31397"
    SINCE_6_18 = ("stale-EAGAIN", "holes-spin")

    @pytest.mark.parametrize(
        ("release", "expected"),
        [
            ("6.7.12", (REFUSED,)),
            ("6.8.7", (REFUSED,)),
            ("6.8.8", ()),
            ("6.12.107", ()),
            ("6.15", ()),
            ("6.15.11", ()),
            ("6.16", (HUGE_ZERO,)),
            ("6.17.13", (HUGE_ZERO,)),
            ("6.18.0", (HUGE_ZERO, *SINCE_6_18)),
            ("6.18.0-rc3", (HUGE_ZERO, *SINCE_6_18)),
            ("6.18.19", (HUGE_ZERO, *SINCE_6_18)),
            ("6.18.20", SINCE_6_18),
            ("6.18.44", SINCE_6_18),
            ("6.18.44-fc-v595", SINCE_6_18),
            ("6.19.0", (HUGE_ZERO, *SINCE_6_18)),
            ("6.19.9", (HUGE_ZERO, *SINCE_6_18)),
            ("6.19.10", SINCE_6_18),
            ("7.0.1", SINCE_6_18),
            ("7.2.12", SINCE_6_18),
            # Distributions that count stable releases themselves: the numbers are true.
            ("6.8.7-200.fc39.x86_64", (REFUSED,)),
            ("6.8.12-4-pve", ()),
            ("6.12.43+deb13-amd64", ()),
            ("6.12.37-61.105.amzn2023.x86_64", ()),
            # Distributions that stay at .0: it may have every defect.
            ("6.8.0-51-generic", (REFUSED, HUGE_ZERO, *SINCE_6_18)),
            ("6.12.0-55.9.1.el10_0.x86_64", (HUGE_ZERO, *SINCE_6_18)),
            ("nonsense", (REFUSED,)),
            ("", (REFUSED,)),
        ],
    )
    def test_of_a_release(self, release, expected):
        assert quirks(release) == expected
        assert set(expected) <= set(DEFECTS)

    @pytest.mark.parametrize(
        ("release", "signature", "expected"),
        [
            ("6.8.0-51-generic", "Ubuntu 6.8.0-51.52-generic 6.8.12", "6.8.12"),
            ("6.18.44", "", "6.18.44"),
            ("6.8.0-51-generic", "something else", "6.8.0-51-generic"),
            ("6.8.0-51-generic", "Ubuntu 6.8.0-51.52-generic 6.8.x", "6.8.0-51-generic"),
        ],
    )
    def test_stable_release(self, release, signature, expected):
        assert stable_release(release, signature) == expected
