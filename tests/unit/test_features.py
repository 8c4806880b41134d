"""probing.py: what is found here, and where userfaultfd is refused."""

import errno
import json
import mmap
import os
import textwrap
from types import SimpleNamespace

import pytest

from pagemove import lowlevel
from pagemove._native import calls
from pagemove.introspect import HUGE_PAGE_SIZE, PAGE_SIZE, count_vmas
from pagemove.kernel import UFFD_FEATURES, KernelFeatures, Problem
from pagemove.probing import features
from support import fresh_interpreter
from support.probes import by_name, failing

pytestmark = pytest.mark.usefixtures("fresh_features")


# What a child may do before it looks: answer userfaultfd with an errno, and become nobody.
PRELUDE = """
import ctypes, json, os, struct
import pagemove
from pagemove import *  # while this user may read them
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
    return fresh_interpreter(PRELUDE + textwrap.dedent(code))


def look(code):
    found = json.loads(run(code))
    return SimpleNamespace(
        **found | {"problems": {each["name"]: Problem(**each) for each in found["problems"]}}
    )


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
