"""limits.py and cgroups.py: which limit an error can come from, from what /proc and /sys say."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import threading
from pathlib import Path

import pytest

from pagemove import cgroups, limits
from pagemove.errors import StoreError
from support.trees import make_tree


@pytest.fixture
def rlimits(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[int, int]]:
    """Let limits be what a test puts in here; what is not in it is not limited."""
    found: dict[int, tuple[int, int]] = {}
    endless = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda number: found.get(number, endless))
    return found


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have the files of another root read instead of the machine's."""
    real = cgroups.read

    def read(path: Path | str) -> str:
        text = str(path)
        return real(text if text.startswith(str(tmp_path)) else f"{tmp_path}{text}")

    count = limits._lines_of
    monkeypatch.setattr(limits, "read", read)
    monkeypatch.setattr(limits, "_lines_of", lambda path: count(f"{tmp_path}{path}"))
    monkeypatch.setattr(limits, "groups", lambda name: cgroups.groups(name, tmp_path))
    return tmp_path


def named(error: BaseException) -> list[str]:
    return [limit.name for limit in limits.behind(error)]


class TestBehind:
    def test_descriptors_are_counted_without_another(self, rlimits):
        rlimits[resource.RLIMIT_NOFILE] = (4096, 4096)
        (limit,) = limits.behind(OSError(errno.EMFILE, "x"))
        count = len(os.listdir("/proc/self/fd")) - 1  # that of the directory itself
        assert limit.text == (
            f"the process may have 4096 descriptors (RLIMIT_NOFILE) and has {count}"
        )
        assert limit.remedy == (
            "ulimit -n 16384, before it is started, by root, for the hard limit is 4096; in a "
            "systemd unit: LimitNOFILE=16384"
        )

    def test_few_descriptors(self, rlimits):
        rlimits[resource.RLIMIT_NOFILE] = (6, 1 << 20)
        (limit,) = limits.behind(OSError(errno.EMFILE, "x"))
        assert limit.remedy.startswith("ulimit -n 1024, before it is started; ")

    def test_addresses_and_data(self, rlimits, root):
        rlimits[resource.RLIMIT_AS] = rlimits[resource.RLIMIT_DATA] = (1 << 30, 1 << 30)
        make_tree(root, {"proc/self/statm": "1000 5", "proc/self/status": "VmData:\t 7 kB\n"})
        for error in (MemoryError(), OSError(errno.ENOMEM, "x")):
            addresses, data = limits.behind(error)
            used = 1000 * resource.getpagesize()
            assert addresses.text == (
                f"the process may have {1 << 30} bytes of addresses (RLIMIT_AS) and has {used}"
            )
            assert data.text.endswith("bytes of data (RLIMIT_DATA) and has 7168")
            assert "LimitAS=infinity" in addresses.remedy

    def test_a_thread_without_addresses_for_its_stack(self, rlimits, root):
        rlimits[resource.RLIMIT_NPROC] = (1000, 1000)
        rlimits[resource.RLIMIT_AS] = (100 << 20, 100 << 20)
        make_tree(root, {"proc/self/statm": f"{(99 << 20) // resource.getpagesize()} 5"})
        own = Path("/proc/self/status").read_text()
        make_tree(root, {f"proc/{os.getpid()}/status": own})
        assert named(OSError(errno.EAGAIN, "x")) == ["RLIMIT_AS"]

    def test_no_memory_to_look_for_what_it_was(self, rlimits, root, monkeypatch):
        """As where the stack of a thread was one mapping too many: the list of processes is too."""

        def count() -> None:
            raise MemoryError

        rlimits[resource.RLIMIT_AS] = (1 << 30, 1 << 30)
        monkeypatch.setattr(limits, "_threads_of_user", count)
        make_tree(root, {"proc/sys/vm/max_map_count": "1000", "proc/self/maps": "a\n" * 999})
        error = OSError(errno.EAGAIN, "no thread")
        assert limits.explain(error) is error
        assert error.strerror.startswith(
            f"no thread; the process may have {1 << 30} bytes of addresses (RLIMIT_AS); the "
            "process has 999 mappings of at most 1000 (vm.max_map_count); to raise it"
        )
        assert "ulimit -v unlimited" in error.strerror

    def test_threads_of_the_user(self, rlimits):
        count = threading.active_count()
        rlimits[resource.RLIMIT_NPROC] = (count, count)
        (limit,) = limits.behind(OSError(errno.EAGAIN, "x"))
        text, _, used = limit.text.rpartition(" ")
        assert text == f"the user may have {count} processes and threads (RLIMIT_NPROC) and has"
        assert int(used) >= count

    def test_mappings(self, rlimits, root):
        make_tree(root, {"proc/self/maps": "line\n" * 99, "proc/sys/vm/max_map_count": "100\n"})
        (limit,) = limits.behind(MemoryError())
        assert limit.text == "the process has 99 mappings of at most 100 (vm.max_map_count)"
        assert limit.remedy == "as root: sysctl -w vm.max_map_count=262144"
        make_tree(root, {"proc/sys/vm/max_map_count": "65530\n"})
        assert named(MemoryError()) == []

    def test_overcommit(self, rlimits, root):
        sizes = "MemTotal: 9 kB\nCommitLimit:     500 kB\nCommitted_AS:     499 kB\n"
        make_tree(root, {"proc/sys/vm/overcommit_memory": "2\n", "proc/meminfo": sizes})
        (limit,) = limits.behind(MemoryError())
        assert "vm.overcommit_memory is 2" in limit.text
        assert "500 kB, of which 499 kB are promised" in limit.text
        for harmless in "01":
            make_tree(root, {"proc/sys/vm/overcommit_memory": harmless})
            assert named(MemoryError()) == []

    @pytest.mark.parametrize("version", [1, 2])
    def test_memory_of_a_group(self, rlimits, root, version):
        files = {"memory.max": "1000", "memory.current": "990"}
        if version == 1:
            files = {"memory.limit_in_bytes": "1000", "memory.usage_in_bytes": "990"}
        group = make_tree(root, {}, version=version, controller="memory", group="a/b", files=files)
        (limit,) = limits.behind(MemoryError())
        assert limit.text == (
            f"its cgroup may have 1000 bytes of memory ({group}/{next(iter(files))}) and has 990"
        )
        (group / list(files)[1]).write_text("10")
        assert named(MemoryError()) == []

    def test_those_that_were_there_have_ended(self, rlimits, root):
        """When it is asked what was in the way of the last thread the others are gone."""
        files = {"pids.max": "90", "pids.current": "20"}
        group = make_tree(root, {}, version=2, controller="pids", group="a", files=files)
        assert named(OSError(errno.EAGAIN, "x")) == ["pids.max"]
        (group / "pids.max").write_text("2000")
        assert named(OSError(errno.EAGAIN, "x")) == []

    @pytest.mark.parametrize("version", [1, 2])
    def test_processes_of_a_group_around(self, rlimits, root, version):
        files = {"pids.max": "17", "pids.current": "17"}
        group = make_tree(root, {}, version=version, controller="pids", group="a", files=files)
        make_tree(
            root,
            {},
            version=version,
            controller="pids",
            group="a/b",
            files={"pids.max": "max", "pids.current": "2"},
        )
        (limit,) = limits.behind(OSError(errno.EAGAIN, "x"))
        assert limit.text == (
            f"its cgroup may have 17 processes and threads ({group}/pids.max) and has 17"
        )
        assert f"echo 4096 > {group}/pids.max" in limit.remedy

    def test_the_whole_system(self, rlimits, root):
        make_tree(root, {"proc/sys/fs/file-max": "77\n"})
        (limit,) = limits.behind(OSError(errno.ENFILE, "x"))
        assert "may have 77 open files (fs.file-max)" in limit.text

    def test_none(self, rlimits, root):
        assert limits.behind(OSError(errno.EIO, "x")) == ()
        assert limits.behind(ValueError("x")) == ()
        for code in limits.ALWAYS[:1]:
            assert limits.behind(OSError(code, "x")) == ()


class TestExplain:
    @pytest.fixture(autouse=True)
    def few(self, rlimits):
        rlimits[resource.RLIMIT_NOFILE] = (64, 64)
        rlimits[resource.RLIMIT_AS] = (1 << 40, 1 << 40)

    @pytest.mark.parametrize(
        "error",
        [
            OSError(errno.EMFILE, "no more"),
            OSError(errno.EMFILE, "no more", "/some/file"),
            StoreError(errno.EMFILE, "no more", store="s", operation="read", offset=7),
        ],
    )
    def test_class_errno_and_place_stay(self, error):
        kind, name = type(error), error.filename
        assert limits.explain(error) is error
        assert (type(error), error.errno, error.filename) == (kind, errno.EMFILE, name)
        assert error.strerror.startswith("no more; the process may have 64 descriptors")
        assert "ulimit -n 1024" in str(error)
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (kind, str(error))
        # What is known is not said twice.
        once = str(error)
        assert str(limits.explain(error)) == once

    def test_memory(self):
        error = MemoryError()
        limits.explain(error)
        assert str(error).startswith("out of memory; the process may have 1099511627776 bytes")
        assert "cannot map" in str(limits.explain(MemoryError("cannot map")))

    def test_named(self):
        with pytest.raises(OSError, match="RLIMIT_NOFILE") as caught, limits.named():
            raise OSError(errno.EMFILE, "x")
        assert caught.value.errno == errno.EMFILE
        with pytest.raises(MemoryError, match="RLIMIT_AS"), limits.named():
            raise MemoryError
        # Somebody else has a lock: no limit is in the way.
        with pytest.raises(BlockingIOError) as caught, limits.named():
            raise BlockingIOError(errno.EAGAIN, "locked")
        assert str(caught.value) == "[Errno 11] locked"


class TestGroups:
    def test_nested(self, tmp_path):
        inner = make_tree(tmp_path, {}, version=2, controller="memory", group="a/b", files={})
        assert [group.path for group in cgroups.groups("memory", tmp_path)] == [
            str(inner),
            str(inner.parent),
            str(inner.parent.parent),
        ]

    def test_a_container_whose_root_is_the_group(self, tmp_path):
        """With a namespace of its own, and without: then the path is the host's."""
        mounted = make_tree(
            tmp_path, {}, version=2, controller="memory", group="", files={"memory.max": "5"}
        )
        for path, mount in (("/", "/"), ("/docker/1", "/docker/1"), ("/docker/1", "/")):
            make_tree(tmp_path, {"proc/self/cgroup": f"0::{path}\n"})
            info = f"30 23 0:26 {mount} /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
            make_tree(tmp_path, {"proc/self/mountinfo": info})
            (group,) = cgroups.groups("memory", tmp_path)
            assert group.path == str(mounted)
            assert group.number("memory.max") == 5

    def test_outside_of_the_namespace(self, tmp_path):
        mounted = make_tree(tmp_path, {}, version=2, controller="memory", group="", files={})
        make_tree(tmp_path, {"proc/self/cgroup": "0::/../../x\n"})
        assert [group.path for group in cgroups.groups("memory", tmp_path)] == [str(mounted)]

    def test_what_is_not_there(self, tmp_path):
        assert list(cgroups.groups("memory", tmp_path)) == []
        make_tree(tmp_path, {"proc/self/cgroup": "0::/a\nnonsense\n4:cpu,cpuacct:/\n"})
        assert list(cgroups.groups("memory", tmp_path)) == []
        group = cgroups.Group(str(tmp_path), 2)
        make_tree(tmp_path, {"one": "max\n", "two": "no number", "stat": "a 1\nb\nc x\nd 4\n"})
        assert [group.number(name) for name in ("one", "two", "three")] == [None] * 3
        assert group.numbers("stat") == {"a": 1, "d": 4}
