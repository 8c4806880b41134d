"""Standard streams: what the library and its helper print there, and never into other files."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pytest

from support.paging import KIB, wrong_words
from support.programs import program

pytestmark = pytest.mark.needs("paging")

_NBYTES = 64 * 64 * KIB


def _talkative(path: Path) -> Path:
    """Put a module beside a file whose store prints."""
    code = """
        import os
        from pagemove.stores import Store
        class Talkative(Store):
            nbytes = 1 << 16
            def read_into(self, offset, buffer):
                buffer[:] = bytes(len(buffer))
                os.write(1, b"out")
                os.write(2, b"err")
        """
    path.with_name("talkative.py").write_text(textwrap.dedent(code))
    return path


class TestStandardStreams:
    @pytest.mark.parametrize("shell", ["<&-", ">&-", "2>&-", "<&- 2>&-"])
    def test_nothing_of_the_library_is_among_them(self, file, shell):
        path = file(_NBYTES)
        result = path.with_suffix(".result")
        program(
            """
            out = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)
            out, low = os.dup2(out, 100), out
            os.close(low)
            store = pagemove.stores.FileStore(path, writable=True)
            a = pagemove.PagedMemory(store, mode="r+", resident_limit="512KiB").asarray("u8")
            b = pagemove.PagedMemory(nbytes=1 << 20).asarray("u8")
            c = pagemove.Memory(4096)
            d = pagemove.Memory(4096)
            b[:] = 7
            d.asarray("u1")[:] = 1
            pagemove.move(c, d)
            a += 1
            low = [n for n in os.listdir("/proc/self/fd") if int(n) < 3]
            ours = [n for n in low if os.path.exists(f"/proc/self/fd/{n}")
                    and "/dev/null" not in os.readlink(f"/proc/self/fd/{n}")
                    and "pipe" not in os.readlink(f"/proc/self/fd/{n}")]
            os.write(100, repr((ours, store.fileno() > 2, int(b.sum()))).encode())
            """,
            path,
            result,
            shell=shell,
        )
        assert result.read_text() == f"([], True, {7 << 17})"
        assert wrong_words(np.fromfile(path, np.uint64) - np.uint64(1)) is None

    @pytest.mark.parametrize("how", ["os.open(sys.argv[2], os.O_RDWR)", "libc.open(name, 2)"])
    @pytest.mark.parametrize("when", ["early", "late"])
    def test_a_message_never_goes_into_a_file_that_has_the_number(self, file, how, when):
        path = file(_NBYTES)
        data = path.with_suffix(".data")
        data.write_bytes(b"data" * 100)
        program(
            f"""
            libc, name = ctypes.CDLL(None), os.fsencode(sys.argv[2])
            if {when!r} == "late":
                os.close(2)
            assert {how} == 2
            # Python's own, which goes wherever descriptor 2 leads.
            warnings.simplefilter("ignore", pagemove.KernelFaultsWarning)
            a = pagemove.open_array(path, store_timeout=0.1, dtype="u1")
            os.truncate(path, 4096)
            try:
                pagemove.region_of(a).prefetch(1 << 20, 1, wait=True)
            except pagemove.StoreError:
                pass
            from pagemove.paging import exits
            exits.tell("nothing")
            os._exit(0)
            """,
            path,
            data,
            shell="2>&-" if when == "early" else "",
        )
        assert data.read_bytes() == b"data" * 100

    @pytest.mark.parametrize("number", [1, 2])
    @pytest.mark.parametrize("when", ["early", "late"])
    def test_a_helper_never_prints_into_a_file_that_has_the_number(self, file, number, when):
        """One that a library in C has opened, which programs that are started inherit."""
        path = _talkative(file(_NBYTES))
        data = path.with_suffix(".data")
        data.write_bytes(b"data" * 100)
        program(
            f"""
            libc, name = ctypes.CDLL(None), os.fsencode(sys.argv[2])
            sys.path.insert(0, os.path.dirname(path))
            from talkative import Talkative
            if {when!r} == "late":
                os.close({number})
            assert libc.open(name, 2) == {number}
            with pagemove.PagedMemory(Talkative()) as region:
                assert not region.asarray("u8").any()
            os._exit(0)
            """,
            path,
            data,
            shell=f"{number}>&-" if when == "early" else "",
        )
        assert data.read_bytes() == b"data" * 100

    def test_a_helper_prints_where_the_program_does(self, file):
        done = program(
            """
            sys.path.insert(0, os.path.dirname(path))
            from talkative import Talkative
            with pagemove.PagedMemory(Talkative()) as region:
                assert not region.asarray("u8").any()
            """,
            _talkative(file(_NBYTES)),
        )
        assert (done.stdout, done.stderr) == ("out", "err")

    def test_a_message_goes_to_standard_error_as_it_was(self, file):
        path = file(_NBYTES)
        done = program(
            """
            a = pagemove.open_array(path, store_timeout=0.1, dtype="u1")
            os.truncate(path, 4096)
            try:
                pagemove.region_of(a).prefetch(1 << 20, 1, wait=True)
            except pagemove.StoreError:
                print("raised")
            """,
            path,
        )
        assert done.stdout.split() == ["raised"]
        assert f"cannot read 65536 bytes at offset 1048576 of {path}" in done.stderr

    def test_a_message_goes_where_a_program_sends_its_errors_later(self, file, tmp_path):
        path, log = file(_NBYTES), tmp_path / "log"
        done = program(
            """
            os.dup2(os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            a = pagemove.open_array(path, store_timeout=0.1, dtype="u1")
            os.truncate(path, 4096)
            try:
                pagemove.region_of(a).prefetch(1 << 20, 1, wait=True)
            except pagemove.StoreError:
                pass
            """,
            path,
            log,
        )
        assert done.stderr == ""
        assert "at offset 1048576" in log.read_text()
