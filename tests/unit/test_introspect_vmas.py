"""introspect.py, mappings: vmas, find_vma, count_vmas; and nothing left open."""

import ctypes
import errno
import itertools
import mmap
import os

import pytest

from pagemove import introspect, lowlevel
from pagemove._native import calls
from pagemove.introspect import (
    PAGE_SIZE,
    Vma,
    count_vmas,
    find_vma,
    page_states,
    states_at,
    vmas,
)
from support import fresh_interpreter

READ, WRITE = 1, 2
PRIVATE_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
MAP_NORESERVE, MAP_HUGETLB = 0x4000, 0x40000

P = PAGE_SIZE


def descriptors():
    return set(os.listdir("/proc/self/fd"))


class TestVmas:
    def test_shows_one_mapping_for_each_protection(self, area):
        address = area(3 * P)
        calls.mprotect(address + P, P, READ)
        found = [vma for vma in vmas() if address <= vma.start < address + 3 * P]
        assert [(vma.start, vma.end, vma.permissions) for vma in found] == [
            (address, address + P, "rw-p"),
            (address + P, address + 2 * P, "r--p"),
            (address + 2 * P, address + 3 * P, "rw-p"),
        ]
        assert {"rd", "wr", "nh"} <= set(found[0].flags)
        assert "wr" not in found[1].flags
        assert all(vma.anonymous and vma.name == "" for vma in found)
        assert [vma.nbytes for vma in found] == [P, P, P]

    def test_is_what_proc_maps_shows(self):
        with open("/proc/self/maps") as maps:
            lines = maps.read().splitlines()
        parsed = set()
        for line in lines:
            span, permissions, *_rest = line.split()
            start, end = (int(part, 16) for part in span.split("-"))
            parsed.add((start, end, permissions))
        found = {(vma.start, vma.end, vma.permissions) for vma in vmas()}
        # Reading may have grown the heap; nothing else moves meanwhile.
        assert len(found ^ parsed) <= 6
        assert len(found & parsed) > 20

    def test_is_in_address_order_without_overlap(self):
        found = vmas()
        assert all(one.end <= two.start for one, two in itertools.pairwise(found))

    def test_special_mappings_are_not_anonymous(self):
        named = {vma.name: vma for vma in vmas() if vma.name.startswith("[")}
        assert not named["[vdso]"].anonymous
        assert all(not vma.anonymous for name, vma in named.items() if name.startswith("[v"))
        assert named["[stack]"].anonymous
        assert named["[heap]"].anonymous

    @pytest.mark.parametrize("name", ["plain", "with space", "zero"])
    def test_private_file_mapping(self, tmp_path, name):
        path = tmp_path / name
        path.write_bytes(bytes(P))
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), P, mmap.MAP_PRIVATE):
            [vma] = [vma for vma in vmas() if vma.name == str(path)]
        assert vma.permissions == "rw-p"
        assert vma.inode == path.stat().st_ino
        assert not vma.anonymous

    def test_name_with_a_newline_is_one_mapping(self, tmp_path):
        path = tmp_path / "two\nlines"
        path.write_bytes(bytes(P))
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), P, mmap.MAP_PRIVATE):
            found = [vma for vma in vmas() if "lines" in vma.name]
        assert [vma.name for vma in found] == [str(path).replace("\n", "\\012")]

    def test_shared_anonymous_is_not_private(self):
        with mmap.mmap(-1, P) as shared:
            address = ctypes.addressof(ctypes.c_char.from_buffer(shared))
            vma = find_vma(address)
        assert vma.permissions == "rw-s"
        assert not vma.anonymous

    def test_private_dev_zero_is_anonymous(self):
        with open("/dev/zero", "r+b") as zero, mmap.mmap(zero.fileno(), P, mmap.MAP_PRIVATE):
            found = [vma for vma in vmas() if vma.name == "/dev/zero"]
        assert [(vma.permissions, vma.anonymous) for vma in found] == [("rw-p", True)]

    def test_shared_dev_zero_is_not(self):
        # So is any shared mapping without a file.
        before = {vma.start for vma in vmas()}
        with open("/dev/zero", "r+b") as zero, mmap.mmap(zero.fileno(), P, mmap.MAP_SHARED):
            found = [
                vma
                for vma in vmas()
                if vma.name.startswith("/dev/zero") and vma.start not in before
            ]
        assert [vma.anonymous for vma in found] == [False]

    def test_private_memfd_is_not_anonymous(self):
        fd = os.memfd_create("pagemove-test")
        try:
            os.ftruncate(fd, P)
            with mmap.mmap(fd, P, mmap.MAP_PRIVATE):
                found = [vma for vma in vmas() if "pagemove-test" in vma.name]
        finally:
            os.close(fd)
        assert [vma.anonymous for vma in found] == [False]

    def test_hugetlb_is_flagged_and_not_anonymous(self):
        length = 2 << 20
        try:
            # Without a reservation it needs no huge page until it is touched.
            address = calls.mmap(
                0, length, READ | WRITE, PRIVATE_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE
            )
        except OSError as error:
            pytest.skip(f"no hugetlb mappings here: {error}")
        try:
            vma = find_vma(address)
        finally:
            calls.munmap(address, length)
        assert "ht" in vma.flags
        assert not vma.anonymous

    def test_locked_memory_is_flagged(self, area):
        address = area(P)
        libc = ctypes.CDLL(None, use_errno=True)
        assert "lo" not in find_vma(address).flags
        assert libc.mlock(ctypes.c_void_p(address), P) == 0, os.strerror(ctypes.get_errno())
        assert "lo" in find_vma(address).flags

    def test_userfaultfd_registration_is_flagged(self, area, uffd):
        address = area(4 * P)
        assert "uw" not in find_vma(address).flags
        calls.register(uffd, address, 4 * P, lowlevel.UFFDIO_REGISTER_MODE_WP)
        assert "uw" in find_vma(address).flags
        calls.unregister(uffd, address, 4 * P)
        assert "uw" not in find_vma(address).flags

    def test_is_frozen_comparable_and_hashable(self, area):
        address = area(P)
        one, two = find_vma(address), find_vma(address)
        assert one == two
        assert len({one, two}) == 1
        assert one == Vma(one.start, one.end, one.permissions, one.name, one.flags, inode=99)
        with pytest.raises(AttributeError):
            one.start = 0


class TestFindAndCount:
    def test_finds_the_mapping_that_contains_the_address(self, area):
        address = area(2 * P)
        for inside in (address, address + 1, address + P, address + 2 * P - 1):
            vma = find_vma(inside)
            assert (vma.start, vma.end) == (address, address + 2 * P)
        assert find_vma(address + 2 * P).permissions == "---p"
        assert find_vma(address - 1).permissions == "---p"

    def test_is_the_same_as_in_the_list(self):
        # To find one takes as long as to read all before it: of hundreds a few.
        steady = [vma for vma in vmas() if vma.name.endswith(".so") or vma.name == "[vdso]"]
        for vma in steady[:: max(1, len(steady) // 8)]:
            assert find_vma(vma.start) == vma
            assert find_vma(vma.end - 1) == vma

    def test_nothing_where_nothing_is_mapped(self, area):
        address = area(P)
        calls.munmap(address, P)
        assert find_vma(address) is None
        calls.mmap(address, P, READ | WRITE, PRIVATE_ANONYMOUS | 0x10)

    @pytest.mark.parametrize("address", [0, 1, -1, 2**64 - 1, 2**70])
    def test_nothing_outside_the_address_space(self, address):
        assert find_vma(address) is None

    def test_stops_reading_once_it_has_found(self, monkeypatch):
        first, *_rest, last = vmas()
        pieces = []
        real = introspect.FileIO.read

        class Counting(introspect.FileIO):
            def read(self, size=-1):
                pieces.append(size)
                return real(self, size)

        monkeypatch.setattr(introspect, "FileIO", Counting)
        assert find_vma(first.start) == first
        near = len(pieces)
        assert find_vma(last.start) == last
        assert near == 1
        assert len(pieces) - near > 1

    def test_counts_every_mapping(self, area):
        address = area(64 * P)
        before = count_vmas()
        for page in range(0, 64, 2):
            calls.mprotect(address + page * P, P, READ)
        assert count_vmas() - before == 63
        inside = [vma for vma in vmas() if address <= vma.start < address + 64 * P]
        assert len(inside) == 64


class TestOpenProc:
    @pytest.mark.parametrize(
        ("code", "remedy"),
        [
            (errno.ENOENT, "mount -t proc"),
            (errno.EACCES, "PR_SET_DUMPABLE"),
            (errno.EPERM, "security policy"),
            (errno.EMFILE, "ulimit -n"),
            (errno.EIO, "make /proc/self readable"),
        ],
    )
    @pytest.mark.parametrize("call", [vmas, count_vmas, lambda: states_at(0, 1)])
    def test_error_names_the_remedy(self, monkeypatch, code, remedy, call):
        def refuse(path, *_mode):
            raise OSError(code, os.strerror(code), path)

        monkeypatch.setattr(introspect, "FileIO", refuse)
        with pytest.raises(OSError, match=remedy) as caught:
            call()
        assert caught.value.errno == code
        assert "/proc/self/" in str(caught.value)

    def test_undumpable_unprivileged_process(self):
        if os.geteuid():
            pytest.skip("needs root, to become somebody else")
        output = fresh_interpreter(
            """
            import ctypes, os
            import pagemove
            page = bytearray(pagemove.PAGE_SIZE)
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            try:
                pagemove.page_states(page)
            except PermissionError as error:
                print("PR_SET_DUMPABLE" in str(error), error.errno)
            ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
            states = pagemove.page_states(page)
            print(bool(states[0] & pagemove.PageState.PRESENT))
            """
        )
        assert output.split() == ["True", str(errno.EACCES), "True"]


@pytest.mark.parametrize(
    "call",
    [
        vmas,
        count_vmas,
        lambda: find_vma(vmas()[0].start),
        lambda: find_vma(2**64 - 1),
        lambda: states_at(0, 100),
        lambda: page_states(b"x" * 3 * P),
    ],
)
def test_no_descriptor_is_left(call):
    call()
    before = descriptors()
    for _ in range(3):
        call()
    assert descriptors() == before


def test_no_descriptor_is_left_by_a_failure(monkeypatch):
    before = descriptors()

    def fail(*_arguments):
        raise OSError(errno.EIO, "preadv")

    monkeypatch.setattr(os, "preadv", fail)
    for _ in range(20):
        with pytest.raises(OSError, match="preadv"):
            states_at(0, 1)
    assert descriptors() == before


def test_descriptors_are_not_inherited_by_programs(monkeypatch):
    seen = []
    real = os.preadv

    def look(fd, *arguments):
        seen.append(os.get_inheritable(fd))
        return real(fd, *arguments)

    monkeypatch.setattr(os, "preadv", look)
    states_at(0, 1)
    assert seen
    assert not any(seen)
