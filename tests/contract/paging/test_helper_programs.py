"""Stores of one's own in programs of all shapes: how they are started, and what imports what."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import zipapp
from pathlib import Path

import pytest

from support.slowness import SLOWNESS

pytestmark = pytest.mark.needs("paging", "fork")

#: Each run of it leaves a letter in the file `runs`.
_MINE = """
import os, sys
with open(os.environ["RUNS"], "a") as runs:
    runs.write("x")
import pagemove

class Mine(pagemove.stores.Store):
    nbytes = 1 << 16

    def read_into(self, offset, buffer):
        buffer[:] = b"m" * len(buffer)

def use(_=None):
    with pagemove.PagedMemory(Mine()) as region, memoryview(region) as view:
        return view[5]
"""
_GUARDED = f"""{_MINE}
if __name__ == "__main__":
    try:
        print(use())
    except (TypeError, RuntimeError, OSError) as error:
        print(type(error).__name__, error)
"""

# Not the words that _run has in the environment: Python drops an option that it has already, and
# the first one would be overruled by "error".
_STRICT = ("-W", "error", "-W", "ignore:system calls on paged")


def _run(folder: Path, *words: str, text: str | None = None) -> tuple[str, int]:
    """Run Python there until it succeeds; return its output, and how often it ran."""
    runs = folder / "runs"
    result = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        # The threads of NumPy's library block no signals. Unprivileged users are warned.
        env={
            **os.environ,
            "RUNS": str(runs),
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore:system calls on paged memory",
        },
        input=text,
        capture_output=True,
        text=True,
        timeout=100 * SLOWNESS,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout.strip(), len(runs.read_text())


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "package"
    folder.mkdir()
    for name in ("__main__", "module"):
        (folder / f"{name}.py").write_text(_GUARDED)
    (folder / "__init__.py").touch()
    return folder


class TestMain:
    """Where the main module has the store's class: it is imported there, or a sentence says why."""

    @pytest.mark.parametrize(
        "words",
        [
            ("package/module.py",),
            ("-m", "package.module"),
            ("-c", "import runpy; runpy.run_path('package/module.py', run_name='__main__')"),
            (
                "-c",
                "import runpy; runpy.run_module('package.module', run_name='__main__', "
                "alter_sys=True)",
            ),
        ],
        ids=["script", "module", "run_path", "run_module"],
    )
    @pytest.mark.usefixtures("package")
    def test_that_can_be_imported(self, tmp_path, words):
        assert _run(tmp_path, *words) == ("109", 2)

    @pytest.mark.parametrize("how", ["package", "folder", "archive", "command", "input"])
    def test_that_cannot(self, tmp_path, package, how):
        text = None
        blocked = "import sys; sys.modules['cloudpickle'] = None\n"
        (package / "__main__.py").write_text(blocked + _GUARDED)
        if how == "archive":
            zipapp.create_archive(package, tmp_path / "archive")
        if how == "command":
            words: tuple[str, ...] = ("-c", blocked + _GUARDED)
        elif how == "input":
            words, text = ("-",), blocked + _GUARDED
        else:
            words = {"package": ("-m", "package"), "folder": ("package",)}.get(how, ("archive",))
        said, runs = _run(tmp_path, *words, text=text)
        assert said.startswith("TypeError <__main__.Mine object")
        where = "no file" if text or how == "command" else "the __main__ of a package"
        assert f"its class, or a function of it, is in {where}" in said
        assert "install cloudpickle, or define it at the top level of a module" in said
        assert runs == 1

    @pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
    def test_in_a_worker_of_multiprocessing(self, tmp_path, method):
        """It is another name for the main module there."""
        (tmp_path / "script.py").write_text(
            f"""{_MINE}
if __name__ == "__main__":
    import multiprocessing
    with multiprocessing.get_context("{method}").Pool(1) as pool:
        print(pool.map(use, range(2)))
"""
        )
        assert _run(tmp_path, "script.py")[0] == "[109, 109]"


class TestNoEnd:
    """What would go on forever, each process starting the next, ends at the first repetition."""

    def test_a_module_that_opens_its_own_store_when_it_is_imported(self, tmp_path):
        (tmp_path / "mine.py").write_text(_MINE + "VALUE = use()\n")
        said, runs = _run(
            tmp_path,
            "-c",
            "try: import mine\nexcept OSError as error: print(str(error).partition('\\n')[0])",
        )
        assert "RuntimeError: the module mine opens" in said
        assert "open it in a function, or on first use" in said
        assert runs == 2

    def test_one_that_opens_a_store_of_another_module(self, tmp_path):
        (tmp_path / "other.py").write_text(_MINE)
        (tmp_path / "mine.py").write_text(_MINE + "import other\nVALUE = other.use()\n")
        said, _ = _run(tmp_path, "-c", "import mine; print(mine.use(), mine.VALUE)")
        assert said == "109 109"

    def test_a_store_that_opens_one_like_itself(self, tmp_path):
        (tmp_path / "mine.py").write_text(
            _MINE.replace(
                "    nbytes",
                "    def __getstate__(self):\n        return 1\n"
                "    def __setstate__(self, _):\n        use()\n"
                "    nbytes",
            )
        )
        said, runs = _run(
            tmp_path,
            "-c",
            "import mine\ntry: mine.use()\nexcept OSError as error: print(error)",
        )
        assert "4 deep" in said
        assert runs == 5


class TestHosts:
    """Programs that Python is a part of: started again, they would do the same again."""

    @pytest.mark.parametrize(
        "host",
        [
            "sys.executable = '/bin/sh'",
            "sys.frozen = True",
            "sys.frozen, sys.executable = True, '/bin/sh'",
        ],
    )
    def test_are_not_started_again(self, tmp_path, host):
        (tmp_path / "script.py").write_text(
            f"{_MINE}\n{host}\ntry: use()\nexcept OSError as error: print(error)\n"
        )
        said, runs = _run(tmp_path, "script.py")
        assert "no Python to run a store in: sys.executable is" in said
        assert "call multiprocessing.set_executable()" in said
        assert runs == 1

    def test_that_are_called_as_python_is_are_started_once(self, tmp_path):
        host = tmp_path / "python-host"
        host.write_text(
            f"#!{sys.executable}\n{_MINE}\n"
            "if os.path.getsize(os.environ['RUNS']) > 4: sys.exit()\n"
            "sys.executable = os.path.abspath(__file__)\n"
            "try: use()\nexcept OSError as error: print(error, flush=True)\n"
        )
        host.chmod(0o700)
        said, runs = _run(tmp_path, host.name)
        inner, outer = said.splitlines()
        assert "call multiprocessing.set_executable()" in inner
        assert "ended before it had its store" in outer
        assert runs == 2

    def test_run_the_configured_python(self, tmp_path):
        (tmp_path / "mine.py").write_text(_MINE)
        code = """
            import multiprocessing, sys
            python, sys.executable, sys.frozen = sys.executable, "/bin/sh", True
            multiprocessing.set_executable(python)
            import mine
            print(mine.use())
        """
        assert _run(tmp_path, "-c", textwrap.dedent(code)) == ("109", 2)


class TestSignals:
    def test_that_a_program_waits_for_reach_no_thread_of_the_library(self, tmp_path):
        """One that does not block it would get it, and the process would end."""
        (tmp_path / "mine.py").write_text(_MINE)
        code = """
            import os, signal
            import mine, pagemove
            with pagemove.PagedMemory(mine.Mine()):
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
                os.kill(os.getpid(), signal.SIGUSR1)
                print(signal.sigwait({signal.SIGUSR1}).name, signal.pthread_sigmask(0, []))
        """
        said, _ = _run(tmp_path, "-c", textwrap.dedent(code))
        assert said == "SIGUSR1 {<Signals.SIGUSR1: 10>}"


class TestWarnings:
    def test_none_when_it_ends(self, tmp_path):
        """Its threads have ended before its main thread, which waits for them."""
        (tmp_path / "mine.py").write_text(
            f"{_MINE}\nimport _thread, time\n"
            "def close(self):\n"
            "    until = time.monotonic() + 20\n"
            "    while _thread._count() and time.monotonic() < until: time.sleep(0.001)\n"
            "Mine.close = close\n"
        )
        code = "import mine; print(mine.use())"
        assert _run(tmp_path, *_STRICT, "-c", code) == ("109", 2)
