"""What a helper process answers, whatever a store raises or returns; and how it is started."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
import types
from typing import Any

import pytest

from pagemove import StoreError, UnsupportedError
from pagemove.paging import handover, helper
from pagemove.paging.handover import Helper
from pagemove.paging.imports import program_path
from pagemove.stores import CallableStore, CompressedStore, LayeredStore, Store
from pagemove.stores.base import check_count, read_whole
from support.stores import BytesStore

HEADER = struct.Struct("=iI")


def _answered(error: BaseException) -> tuple[int, str]:
    """Return the errno and the text of the answer that an exception becomes."""
    answer = helper._failure(error)
    code, length = HEADER.unpack_from(answer)
    assert len(answer) == HEADER.size + length <= HEADER.size + 4000
    assert b"\0" not in answer[HEADER.size :]
    return code, answer[HEADER.size :].decode(errors="replace")


class UnspeakableError(OSError):
    """Raises whatever is asked of it."""

    def __str__(self) -> str:
        raise KeyboardInterrupt

    __repr__ = __str__

    @property
    def errno(self) -> int:
        raise SystemExit(3)


class OddError(OSError):
    def __init__(self, code: object) -> None:
        super().__init__("odd")
        self.errno = code  # type: ignore[assignment]


def _deep() -> BaseException:
    error: BaseException = ValueError("at the bottom")
    for depth in range(5000):
        outer = RuntimeError(depth)
        outer.__cause__ = error
        error = outer
    return error


class TestAnswers:
    @pytest.mark.parametrize(
        "code",
        [None, 0, -1, -2, -(1 << 40), 4096, 1 << 31, 1 << 70, "5", 5.0, True, b"x", ...],
        ids=repr,
    )
    def test_what_is_no_errno_is_eio(self, code):
        assert _answered(OddError(code))[0] == errno.EIO

    @pytest.mark.parametrize("code", [errno.EPIPE, errno.ETIMEDOUT, errno.EAGAIN, 1, 4095])
    def test_an_errno_is_itself(self, code):
        assert _answered(OSError(code, "so"))[0] == code

    @pytest.mark.parametrize(
        ("error", "text"),
        [
            (socket.gaierror(socket.EAI_NONAME, "Name not known"), "Name not known"),
            (UnspeakableError(), "UnspeakableError"),
            (SystemExit(0), "SystemExit: 0"),
            (KeyboardInterrupt(), "KeyboardInterrupt"),
            (GeneratorExit(), "GeneratorExit"),
            (MemoryError(), "MemoryError"),
            (RecursionError("deep"), "RecursionError: deep"),
            (OSError(5, "lone \udcff surrogate"), "lone \\udcff surrogate"),
            (OSError(5, "a\0b"), "a\\0b"),
            (ValueError("x" * (1 << 20)), "ValueError: xxxx"),
            (ValueError("\N{SNOWMAN}" * 5000), "\N{SNOWMAN}"),
            (ExceptionGroup("some", [OSError(5, "one")]), "some"),
            (_deep(), ""),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
    )
    def test_every_exception_is_one(self, error, text):
        code, found = _answered(error)
        assert code > 0
        assert text in found

    def test_also_where_there_is_no_memory_for_one(self, monkeypatch):
        def none(*_: object) -> bytes:
            raise MemoryError

        packing = types.SimpleNamespace(pack=none)
        monkeypatch.setattr(helper, "_ANSWER", packing)
        code, text = _answered(OSError(errno.ENOSPC, "full"))
        assert code == errno.EIO
        assert "MemoryError" in text


class Counting(BytesStore):
    """Says how many bytes it has done, as files do."""

    says: Any = None

    def read_into(self, offset: int, buffer: object) -> Any:
        super().read_into(offset, buffer)
        return self.says

    def write(self, offset: int, data: object) -> Any:
        super().write(offset, data)
        return self.says


class TestCounts:
    @pytest.mark.parametrize("says", [None, 8, True, False, "7", b"7", 7.0])
    def test_all_or_nothing_said_is_success(self, says):
        store = Counting(bytes(16))
        store.says = says
        read_whole(store, 0, bytearray(8))

    @pytest.mark.parametrize("says", [0, 7, 9, -1])
    def test_a_short_one_is_an_error(self, says):
        store = Counting(bytes(16), writable=True)
        store.says = says
        with pytest.raises(StoreError, match=f"it read {says} bytes of 8") as caught:
            read_whole(store, 4, bytearray(8))
        assert (caught.value.errno, caught.value.offset) == (errno.EIO, 4)
        with pytest.raises(StoreError, match=f"wrote {says} bytes of 8"):
            check_count(store, "write", 0, 8, store.write(0, bytes(8)))

    def test_of_the_layers_of_a_store(self):
        bottom = Counting(bytes(8192))
        bottom.says = 12
        with (
            LayeredStore(BytesStore(bytes(8192), writable=True), bottom, cache=False) as store,
            pytest.raises(StoreError, match="it read 12 bytes of 8"),
        ):
            store.read_into(0, bytearray(8))

    def test_of_a_function_that_writes(self):
        store = CallableStore(lambda _, n: bytes(n), 64, lambda _, data: len(data) - 1)
        with pytest.raises(StoreError, match="wrote 7 bytes of 8"):
            store.write(0, bytes(8))


class Given(Store):
    nbytes = 4096

    def read_into(self, offset: int, buffer: Any) -> None:
        raise NotImplementedError


class TestStarting:
    @pytest.mark.parametrize("executable", [None, "", "/nowhere/python"])
    def test_without_a_python_it_says_what_to_do(self, monkeypatch, executable):
        monkeypatch.setattr("multiprocessing.spawn.get_executable", lambda: executable)
        monkeypatch.setattr(sys, "executable", executable)
        with pytest.raises(UnsupportedError, match=r"multiprocessing.set_executable\(\)"):
            Helper(Given())

    def test_the_python_of_multiprocessing_is_used(self, monkeypatch, tmp_path):
        other = tmp_path / "python"
        other.symlink_to(sys.executable)
        monkeypatch.setattr("multiprocessing.spawn.get_executable", lambda: os.fsencode(other))
        assert handover._command()[0] == os.fsencode(other)

    def test_its_path_is_without_the_current_directory(self, monkeypatch):
        monkeypatch.setattr(sys, "path", ["", ".", "./", "lib", "/somewhere", 3])
        assert program_path() == [os.path.abspath("lib"), "/somewhere"]

    def test_what_cannot_be_opened_leaves_nothing_open(self, monkeypatch):
        def full(*_: object) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        before = os.listdir("/proc/self/fd")
        monkeypatch.setattr(handover.socket, "socketpair", full)
        with pytest.raises(OSError, match="Too many"):
            Helper(Given())
        assert os.listdir("/proc/self/fd") == before

    def test_no_main_module_for_stores_that_need_none(self):
        kinds = [CompressedStore(4096)] if "zstandard" in sys.modules else []
        for store in (*kinds, Given(), BytesStore(b"x")):
            preparation = handover._parts(store)[0][0]
            assert set(preparation) == {"argv", "dir"}

    def test_one_in_the_main_module(self, monkeypatch, tmp_path):
        """Imported from its file; by value where there is none, or a sentence says how."""
        main = types.ModuleType("__main__")
        monkeypatch.setitem(sys.modules, "__main__", main)
        mine = types.new_class("Mine", (Given,))
        mine.__module__, mine.__qualname__ = "__main__", "Mine"
        main.Mine = mine  # type: ignore[attr-defined]
        main.__spec__ = None
        script = tmp_path / "script.py"
        script.touch()
        main.__file__ = str(script)
        assert handover._parts(mine())[0][0]["init_main_from_path"] == str(script)
        main.__file__ = "<stdin>"
        monkeypatch.setitem(sys.modules, "cloudpickle", None)
        with pytest.raises(TypeError, match="is in no file; install cloudpickle, or define it"):
            handover._parts(mine())
        by_value = types.SimpleNamespace(dumps=lambda *_: b"by value")
        monkeypatch.setitem(sys.modules, "cloudpickle", by_value)
        preparation, *_, pickled = handover._parts(mine())[0]
        assert pickled == b"by value"
        assert set(preparation) == {"argv", "dir"}

    def test_not_while_a_helper_imports_the_main_module(self, monkeypatch):
        monkeypatch.setattr(helper, "importing_main", True)
        with pytest.raises(RuntimeError, match='if __name__ == "__main__"'):
            Helper(Given())
