"""Changes that nobody flushed: at the end of a region, of a program, of a forked child."""

from __future__ import annotations

import errno
import gc
import os
import re
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import pagemove
from pagemove import PagedMemory
from pagemove.paging import exits
from pagemove.testing import Fault, FaultyStore
from support import child

N = 300_000
CONTENTS = np.random.default_rng(10).bytes(N)

pytestmark = pytest.mark.needs("move")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "file"
    found.write_bytes(CONTENTS)
    return found


def opened(path: Path, *faults: Fault) -> PagedMemory:
    with FaultyStore(path, writable=True, faults=faults) as store:
        return PagedMemory(store, mode="r+", store_timeout=0)


def program(code: str, *arguments: object, status: int = 0) -> str:
    """Run a program in a new interpreter; return what it has written to standard error."""
    start = """
        import os, sys
        import numpy as np, pagemove
        from pagemove.stores import FileStore
        from pagemove.testing import Fault, FaultyStore
        path = sys.argv[1]
    """
    done = subprocess.run(
        [
            sys.executable,
            # Of os.fork, from Python 3.12 on; what the library says is looked at below.
            *("-W", "ignore:This process:DeprecationWarning"),
            "-c",
            textwrap.dedent(start) + textwrap.dedent(code),
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stderr


class TestFinaliser:
    def test_says_how_much_of_what_is_lost(self, path, capsys):
        region = opened(path, Fault("write", count=0, errno=errno.ENOSPC))
        region.asarray("u1")[[0, 70_000]] ^= 1
        with pytest.warns(ResourceWarning, match="never closed"):
            del region
        told = capsys.readouterr().err
        assert re.fullmatch(
            rf"pagemove: changes of {path} could not be saved, 131072 bytes of them are in memory "
            r"only: \[Errno 28\] cannot write .*ENOSPC.*\n",
            told,
        )

    def test_of_an_array_neither_warns_nor_tells(self, path, capsys):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            array = pagemove.open_array(path, dtype="u1", mode="r+")
            array[3] = 4
            view = array[2:5]
            del array
            assert path.read_bytes()[3] == CONTENTS[3]
            view[0] = 5
            del view
        gc.collect()
        assert path.read_bytes()[:5] == CONTENTS[:2] + bytes([5, 4]) + CONTENTS[4:5]
        assert capsys.readouterr().err == ""

    def test_in_a_cycle(self, path):
        array = pagemove.open_array(path, dtype="u1", mode="r+")
        array[3] = 4
        holder = [array]
        holder.append(holder)
        del array, holder
        gc.collect()
        assert path.read_bytes()[3] == 4


class TestExit:
    def test_changes_are_saved(self, path):
        said = program(
            """
            region = pagemove.PagedMemory(FileStore(path, writable=True), mode="r+")
            array = region.asarray("u1")
            array[5] = 6
            other = pagemove.open_array(path, dtype="u1", mode="r+", lock=False)
            other[200_000] = 7
            """,
            path,
        )
        found = path.read_bytes()
        assert (found[5], found[200_000]) == (6, 7)
        assert said == ""

    def test_also_after_an_exception_and_sys_exit(self, path):
        opened = "a = pagemove.open_array(path, dtype='u1', mode='r+')"
        program(f"{opened}; a[0] = 1; sys.exit(3)", path, status=3)
        program(f"{opened}; a[1] = 1; 1 / 0", path, status=1)
        assert path.read_bytes()[:2] == b"\1\1"

    def test_ctrl_c_ends_the_saving_of_one_region_only(self, monkeypatch):
        saved = []

        class Region:
            def __init__(self, *raises: BaseException) -> None:
                self.raises = raises

            def _save_or_tell(self) -> None:
                saved.append(self)
                if self.raises:
                    raise self.raises[0]

        regions = [Region(), Region(KeyboardInterrupt()), Region()]
        monkeypatch.setattr(exits, "_live", regions)
        with pytest.raises(KeyboardInterrupt):
            exits._save_all()
        assert saved == regions

    def test_ctrl_c_while_a_store_hangs(self, path):
        """What is not saved is told, once, and the program ends without waiting for the store."""
        started = time.monotonic()
        said = program(
            """
            import signal
            late = [Fault("write", count=0, delay=50)]
            store = FaultyStore(path, writable=True, faults=late)
            array = pagemove.open_array(store, dtype="u1", mode="r+")
            array[5] = 6
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            """,
            path,
        )
        assert time.monotonic() - started < 40
        assert said.count("could not be saved") == 1
        assert "saving them was interrupted (KeyboardInterrupt)" in said

    def test_unsaved_changes_are_reported(self, path):
        said = program(
            """
            store = FaultyStore(path, writable=True, faults=[Fault("write", count=0, errno=28)])
            array = pagemove.open_array(store, dtype="u1", mode="r+", store_timeout=0)
            array[5] = 6
            store.close()
            """,
            path,
        )
        assert f"changes of {path} could not be saved, 65536 bytes" in said
        assert path.read_bytes() == CONTENTS

    def test_private_and_read_only_ones_are_left_alone(self, path):
        said = program(
            """
            a = pagemove.open_array(path, dtype="u1", mode="c"); a[0] = 99
            b = pagemove.open_array(path, dtype="u1"); b.sum()
            """,
            path,
        )
        assert said == ""
        assert path.read_bytes() == CONTENTS

    def test_a_process_that_is_killed_saves_nothing_more(self, path):
        program(
            """
            a = pagemove.open_array(path, dtype="u1", mode="r+")
            a[0] = 1
            pagemove.region_of(a).flush()
            a[1] = CONTENTS = 2
            os.kill(os.getpid(), 9)
            """,
            path,
            status=-9,
        )
        assert path.read_bytes()[:2] == b"\1" + CONTENTS[1:2]

    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    def test_children_of_multiprocessing(self, path, tmp_path, method):
        script = tmp_path / "script.py"
        script.write_text(
            textwrap.dedent(
                f"""
                import multiprocessing, sys
                import pagemove
                kept = []
                def change(path):
                    kept.append(pagemove.open_array(path, dtype="u1", mode="r+"))
                    kept[0][5] = 6
                if __name__ == "__main__":
                    context = multiprocessing.get_context({method!r})
                    process = context.Process(target=change, args=(sys.argv[1],))
                    process.start()
                    process.join()
                    sys.exit(process.exitcode)
                """
            )
        )
        done = subprocess.run(
            [sys.executable, script, path], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert path.read_bytes()[5] == 6

    def test_a_message_when_there_is_no_stderr_any_more(self, capfd, monkeypatch):
        monkeypatch.setattr(sys, "stderr", None)
        exits.tell("it is \udcff late")
        assert capfd.readouterr().err == "pagemove: it is \\udcff late\n"


@pytest.mark.needs("fork")
class TestFork:
    def test_what_is_inherited_is_dead(self, path):
        region = opened(path)
        array = region.asarray("u1")
        array[0] = CONTENTS[0] ^ 1

        def inherited() -> list[str]:
            found = [repr(region), str(region.closed), str(region.inherited)]
            for use in (
                memoryview,
                lambda r: r.address,
                lambda r: r.asarray("u1"),
                lambda r: r.flush(),
                lambda r: r.evict(),
                lambda r: r.prefetch(wait=True),
                lambda r: r.stats(),
            ):
                with pytest.raises(ValueError, match="parent process"):
                    use(region)
            region.close()
            exits._save_all()
            return found

        before = os.listdir("/proc/self/fd")
        assert child(inherited) == [
            f"<PagedMemory of the parent process over {path}>",
            "True",
            "True",
        ]
        assert os.listdir("/proc/self/fd") == before
        assert path.read_bytes() == CONTENTS
        assert array[0] == CONTENTS[0] ^ 1
        del array
        region.close()
        assert path.read_bytes()[0] == CONTENTS[0] ^ 1

    def test_touching_it_is_a_sigsegv_and_never_zeros(self, path):
        said = program(
            """
            import faulthandler
            array = pagemove.open_array(path, dtype="u1", mode="r+")
            array[0] = 17
            pid = os.fork()
            if not pid:
                print(array[0])
                os._exit(0)
            status = os.waitpid(pid, 0)[1]
            assert os.waitstatus_to_exitcode(status) == -11, status
            assert array[0] == 17
            """,
            path,
        )
        assert said.startswith(f"pagemove: paged memory over {path}, mode 'r+', was opened before")
        assert said.count("\n") == 1
        assert path.read_bytes()[0] == 17

    def test_finalising_in_the_child_leaves_the_parent_alone(self, path):
        program(
            """
            array = pagemove.open_array(path, dtype="u1", mode="r+")
            array[0] = 17
            pid = os.fork()
            if not pid:
                del array
                sys.exit(0)  # with everything that a normal exit does
            assert os.waitpid(pid, 0)[1] == 0
            assert array[0] == 17
            assert open(path, "rb").read(1) != b"\\x11"
            array[1] = 18
            """,
            path,
        )
        assert path.read_bytes()[:2] == b"\x11\x12"

    def test_a_child_may_page_on_its_own(self, path):
        parent = pagemove.open_array(path, dtype="u1")
        assert parent[7] == CONTENTS[7]

        def page() -> int:
            own = pagemove.open_array(path, dtype="u1", resident_limit="256KiB")
            return int(own.sum(dtype=int))

        assert child(page) == sum(CONTENTS)
        assert parent[100_000] == CONTENTS[100_000]
