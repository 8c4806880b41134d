"""A helper process leaves the program alone: children, descriptors, folder, main module, time."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from pagemove import PagedMemory
from pagemove.stores import Store
from support import child, wait_for
from support.helpers import has_ended, helpers, kill_helper, numbered, reined, stop_helper, touch
from support.slowness import patience

pytestmark = pytest.mark.needs("paging", "fork")

K = 1024


def _run(folder: Path, script: str, *flags: str, **environment: str) -> str:
    """Run a script in a folder, to its end without an error; return what it prints."""
    path = folder / "script.py"
    path.write_text(textwrap.dedent(script))
    result = subprocess.run(
        [sys.executable, *flags, str(path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=os.environ | environment,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


class TestChildren:
    def test_it_is_none(self, tmp_path):
        """Not seen by wait(), by a handler of SIGCHLD, or by who reaps all children."""
        assert child(_not_a_child, tmp_path, deadline=60) == (0, 0, True)

    def test_one_that_cannot_be_run_is_not_left_behind(self, tmp_path):
        """Where the program is what orphans become children of, as init of a container is."""
        assert child(_not_run, tmp_path, deadline=60) == (errno.ENOEXEC, 0)


def _not_run(folder: Path) -> tuple[int | None, int]:
    path = folder / "python"
    path.write_bytes(b"no program" * 100)
    path.chmod(0o700)
    multiprocessing.set_executable(str(path))
    set_child_subreaper = 36
    assert ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0) == 0
    code, left = None, 0
    try:
        PagedMemory(reined(folder, numbered(64 * K)))
    except OSError as error:
        code = error.errno
    with contextlib.suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
        left += 1
    return code, left


def _not_a_child(folder: Path) -> tuple[int, int, bool]:
    told = []
    signal.signal(signal.SIGCHLD, lambda *_: told.append(1))
    waited = 0

    def wait() -> None:
        nonlocal waited
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return
        waited += 1

    store = reined(folder, numbered(16 * 4 * K))
    with PagedMemory(store, block_size=4 * K, prefetch="off", store_timeout=20) as region:
        wait()
        (pid,) = helpers()
        kill_helper()
        wait_for(lambda: has_ended(pid))
        wait()
        touch(region.address)  # by another
        wait()
    wait()
    return waited, len(told), not helpers()


class Starting(Store):
    """Starts a program, and tells what that has open."""

    nbytes = 4096

    def read_into(self, offset: int, buffer: Any) -> None:
        told = subprocess.run(
            [sys.executable, "-c", _OPEN], close_fds=False, capture_output=True, check=True
        ).stdout
        buffer[:] = told.ljust(len(buffer))


_OPEN = """
import os
for fd in os.listdir("/proc/self/fd"):
    try:
        print(fd, os.readlink(f"/proc/self/fd/{fd}"))
    except OSError:
        pass
"""


class TestDescriptors:
    def test_a_program_that_a_store_starts_has_none_of_them(self):
        lines = child(_opened_by_a_program, deadline=60)
        assert [line.split()[0] for line in lines] == ["0", "1", "2"]
        assert lines[0] == "0 /dev/null"

    def test_it_has_what_its_parent_prints_to_and_no_more(self):
        found = child(_opened_by_the_helper, deadline=60)
        assert found["kept"] == 0
        assert found["input"] == "/dev/null"

    def test_where_the_parent_has_closed_the_standard_ones(self):
        standard, low = child(_without_standard, deadline=60)
        assert standard == ["/dev/null"] * 3
        assert low == []


def _opened_by_a_program() -> list[str]:
    with PagedMemory(Starting(), block_size=4 * K, store_timeout=30) as region:
        return touch(region.address, 4096).decode().strip().splitlines()


def _opened_by_the_helper() -> dict[str, Any]:
    _, write = os.pipe()
    os.set_inheritable(write, True)
    name = os.readlink(f"/proc/self/fd/{write}")
    with PagedMemory(Starting(), block_size=4 * K):
        (pid,) = helpers()
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        return {"kept": links.count(name), "input": os.readlink(f"/proc/{pid}/fd/0")}


def _without_standard() -> tuple[list[str], list[str]]:
    for fd in range(3):
        os.close(fd)
    with PagedMemory(Starting(), block_size=4 * K):
        (pid,) = helpers()
        standard = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)]
        low = [fd for fd in "012" if _is_ours(fd)]
    return standard, low


def _is_ours(fd: str) -> bool:
    try:
        link = os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return False
    return link.startswith(("socket:", "/memfd:", "anon_inode:[pidfd]"))


class TestImports:
    @pytest.mark.parametrize("flags", [(), ("-P",), ("-I",), ("-E",)], ids=" ".join)
    def test_none_from_where_its_user_stands(self, tmp_path, flags):
        shared, home = tmp_path / "shared", tmp_path / "home"
        shared.mkdir()
        home.mkdir()
        for name in ("socket", "numpy", "json", "sitecustomize", "usercustomize", "pagemove"):
            (shared / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
        printed = _run(
            home,
            f"""
            import os
            import numpy, pagemove
            os.chdir({str(shared)!r})
            with pagemove.PagedMemory(
                pagemove.stores.CompressedStore(1 << 16), mode="r+"
            ) as region:
                array = region.asarray("u1")
                array[:] = 7
                region.evict()
                print(int(array[5]), os.getcwd() == {str(shared)!r})
                del array
            """,
            *flags,
            PYTHONPATH=f":{home}",
        )
        assert printed.split() == ["7", "True"]
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("how", ["-m", "PYTHONPATH=.", "script"])
    @pytest.mark.parametrize("stands", [True, False], ids=["there", "elsewhere"])
    def test_the_librarys_stores_import_what_is_installed(self, tmp_path, how, stands):
        """Not what lies where the program began, which the program itself has not imported."""
        pytest.importorskip("zstandard")
        (tmp_path / "program.py").write_text(
            textwrap.dedent(
                f"""
                import os, pathlib
                import pagemove

                def use():
                    store = pagemove.stores.CompressedStore(1 << 16)
                    with pagemove.PagedMemory(store, mode="r+", store_timeout=60) as region:
                        array = region.asarray("u1")
                        array[:] = 7
                        region.evict()
                        print(int(array[5]))
                        del array

                use()
                for name in ("numpy", "socket", "zstandard", "json", "pagemove", "fsspec"):
                    text = f"open({str(tmp_path / "ran")!r}, 'w').close()"
                    pathlib.Path(f"{{name}}.py").write_text(text)
                if not {stands}:
                    os.chdir("/")
                use()
                """
            )
        )
        words = {"-m": ["-m", "program"], "script": ["program.py"]}.get(
            how, ["-c", "import program"]
        )
        result = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            env=os.environ | ({"PYTHONPATH": "."} if "=" in how else {}),
        )
        assert (result.returncode, result.stdout) == (0, "7\n7\n"), result.stderr
        assert not (tmp_path / "ran").exists()

    def test_what_the_program_has_is_what_the_helper_has(self, tmp_path):
        """Not where another one is installed: of what the library needs, and of a user's store."""
        zstandard = pytest.importorskip("zstandard")
        for folder, text in (("mine", _MINE), ("first", "nothing = 0")):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "store_of_mine.py").write_text(text)
        (tmp_path / "first" / "zstandard").symlink_to(os.path.dirname(zstandard.__file__))
        printed = _run(
            tmp_path,
            """
            import sys
            sys.path[:0] = [sys.path[0] + "/mine", sys.path[0] + "/first"]
            import numpy, zstandard
            import pagemove
            from pagemove.paging import imports
            from store_of_mine import Mine
            for store in (Mine(), pagemove.stores.CompressedStore(1 << 16)):
                with pagemove.PagedMemory(store) as region, memoryview(region) as view:
                    print(view[5])
            path = imports.library_path()
            print(path.index(sys.path[0]) > path.index(sys.path[1]) == 0)
            """,
        )
        assert printed.split() == ["109", "0", "True"]

    def test_a_module_beside_the_script_is_found(self, tmp_path):
        (tmp_path / "mine.py").write_text(_MINE)
        assert _run(tmp_path, _USING.format("from mine import Mine")) == "109\n"


_MINE = """
import pagemove
class Mine(pagemove.stores.Store):
    nbytes = 1 << 16
    def read_into(self, offset, buffer):
        buffer[:] = b"m" * len(buffer)
"""
_USING = """
import pagemove
{}
with pagemove.PagedMemory(Mine()) as region:
    with memoryview(region) as view:
        print(view[5])
"""


class TestMain:
    def test_a_script_without_a_guard_runs_once(self, tmp_path):
        pytest.importorskip("zstandard")
        printed = _run(
            tmp_path,
            f"""
            open({str(tmp_path / "runs")!r}, "a").write("x")
            import pagemove
            with pagemove.PagedMemory(pagemove.stores.CompressedStore(1 << 16)) as region:
                print(region.nbytes)
            """,
        )
        assert printed == "65536\n"
        assert (tmp_path / "runs").read_text() == "x"

    def test_one_that_has_the_store_itself_is_told_what_it_lacks(self, tmp_path):
        runs = tmp_path / "runs"
        printed = _run(
            tmp_path,
            f"open({str(runs)!r}, 'a').write('x')\n"
            + _MINE
            + """
try:
    pagemove.PagedMemory(Mine())
except OSError as error:
    print(error)
""",
        )
        assert "RuntimeError: the main module opens" in printed
        assert 'under `if __name__ == "__main__":`' in printed
        assert runs.read_text() == "xx", "the program, and its helper once"

    def test_with_a_guard_it_serves_its_own_store(self, tmp_path):
        text = _MINE + 'if __name__ == "__main__":\n' + textwrap.indent(_USING.format(""), "    ")
        assert _run(tmp_path, text) == "109\n"

    def test_one_that_replaces_threads_and_sockets_as_gevent_does(self, tmp_path):
        """They are cooperative then: none would run while the helper waits for its end."""
        text = """
import _thread, socket, threading
if __name__ != "__main__":
    def never(*args, **options):
        raise RuntimeError("replaced")
    _thread.start_new_thread = threading._start_new_thread = socket.socket = never
"""
        using = textwrap.indent(_USING.format(""), "    ")
        assert _run(tmp_path, f'{text}{_MINE}if __name__ == "__main__":\n{using}') == "109\n"


class TestTime:
    def test_that_did_not_run_does_not_count(self, tmp_path):
        """All of the process group is stopped for longer than store_timeout, in a read."""
        program = _program(tmp_path)
        try:
            wait_for((tmp_path / "begun").exists)
            os.killpg(program.pid, signal.SIGSTOP)
            threading.Event().wait(8)
            (tmp_path / "go").touch()
            os.killpg(program.pid, signal.SIGCONT)
            assert program.communicate(timeout=patience(60))[0] == "[115, 115]\n"
            assert program.returncode == 0
        finally:
            program.kill()
            program.communicate()

    def test_of_a_helper_that_alone_is_stopped_counts(self, tmp_path):
        assert child(_stopped_alone, tmp_path, deadline=60) == "late"


#: Its read begins, and is over when it may go on.
_SLOW = _MINE.replace("Mine", "Slow").replace(
    '        buffer[:] = b"m"',
    """        open("begun", "w").close()
        while not os.path.exists("go"):
            time.sleep(0.01)
        buffer[:] = b"s\"""",
)


def _program(folder: Path) -> subprocess.Popen[str]:
    path = folder / "program.py"
    path.write_text(
        f"import os, time\n{_SLOW}"
        + textwrap.dedent("""
        if __name__ == "__main__":
            how = dict(block_size=4096, store_timeout=6, prefetch="off")
            region = pagemove.PagedMemory(Slow(), **how)
            with memoryview(region) as view:
                print([view[0], view[4096]])
            region.close()
        """)
    )
    return subprocess.Popen(
        [sys.executable, str(path)],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _stopped_alone(folder: Path) -> str:
    store = reined(folder, numbered(16 * 4 * K))
    with PagedMemory(store, block_size=4 * K, prefetch="off", store_timeout=1) as region:
        pid = stop_helper()
        try:
            touch(region.address)
        except OSError:
            return "late"
        finally:
            os.kill(pid, signal.SIGCONT)
    return "answered"
