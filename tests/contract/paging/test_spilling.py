"""Where private changes go when they leave memory: an unnamed file, or an error at opening."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from pagemove import PAGE_SIZE
from support import native
from support.paging import MIB, paged, wrong_words

pytestmark = pytest.mark.needs("paging")

_NBYTES = 2 * MIB
_PROGRAM = """
    import os, sys, warnings
    import numpy as np, pagemove
    warnings.simplefilter("ignore", pagemove.KernelFaultsWarning)
    a = pagemove.open_array(sys.argv[1], dtype="u8", mode="c", resident_limit="512KiB")
    a += 1
    print(os.listdir(sys.argv[2]))
    a.tofile(sys.argv[1] + ".changed")
    """


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = Path(native.__file__).parent / "tmpfile.c"
    return native.library_file(source, tmp_path_factory.mktemp("library"))


def run(code: str, *arguments: object, **environment: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
    )


@pytest.mark.parametrize("tmpfile", [True, False], ids=["O_TMPFILE", "without"])
def test_changes_come_back_and_the_file_has_no_name(file, tmp_path, library, tmpfile):
    path = file(_NBYTES)
    folder = tmp_path / "spill"
    folder.mkdir()
    without = {} if tmpfile else {"LD_PRELOAD": library, "NO_TMPFILE": "1"}
    done = run(_PROGRAM, path, folder, TMPDIR=folder, **without)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == "[]"
    changed = np.fromfile(f"{path}.changed", np.uint64) - np.uint64(1)
    assert wrong_words(changed) is None


def test_blocks_from_both_files_are_read_beside_each_other(file):
    """One read brings many blocks, but those of one file alone."""
    path = file(_NBYTES)
    with paged(path, "c", block_size=PAGE_SIZE) as memory:
        found = memory.asarray(np.uint64)
        changed = found[:: 3 * PAGE_SIZE // 8]
        changed[:] = 7
        memory.evict()
        memory.prefetch(wait=True)
        expected = np.fromfile(path, np.uint64)
        expected[:: 3 * PAGE_SIZE // 8] = 7
        assert np.array_equal(found, expected)
        del found, changed


def test_a_directory_that_takes_no_file_is_an_error_at_opening(file, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    code = """
        import os, sys, tempfile
        import pagemove
        tempfile.gettempdir()
        os.rmdir(sys.argv[2])
        try:
            pagemove.open_array(sys.argv[1], dtype="u8", mode="c")
        except OSError as error:
            print(error.errno, error)
        pagemove.open_array(sys.argv[1], dtype="u8")
        """
    done = run(code, file(_NBYTES), gone, TMPDIR=gone)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "2"
    assert "TMPDIR" in done.stdout
    assert str(gone) in done.stdout


def test_a_full_directory_is_said_to_be_full(file, tmp_path):
    code = """
        import os, resource, signal, sys
        import pagemove
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        a = pagemove.open_array(
            sys.argv[1], dtype="u8", mode="c", resident_limit="512KiB", store_timeout=0.2
        )
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        a += 1
        """
    done = run(code, file(_NBYTES), TMPDIR=tmp_path)
    assert done.returncode == -7
    assert f"cannot be written to the unnamed file in {tmp_path} (TMPDIR): File" in done.stderr


def test_a_fork_while_another_thread_opens_one(file, tmp_path, library):
    """No lock of the process survives a fork in the hands of a thread that is not in the child."""
    gate = tmp_path / "gate"
    code = """
        import os, signal, sys, threading
        import pagemove
        path, gate = sys.argv[1:]
        def spill():
            a = pagemove.open_array(path, dtype="u1", mode="c", prefetch="off")
            a[0] = 1
            pagemove.region_of(a).evict(0, 65536)
            assert a[0] == 1
        thread = threading.Thread(target=spill)
        thread.start()
        while not os.path.exists(gate):
            os.sched_yield()
        pid = os.fork()
        if not pid:
            signal.alarm(20)
            os.environ.pop("TMPFILE_GATE")
            os.unsetenv("TMPFILE_GATE")
            spill()
            os._exit(0)
        print(os.waitpid(pid, 0)[1])
        os.unlink(gate)
        thread.join()
        """
    done = run(code, file(_NBYTES), gate, LD_PRELOAD=library, TMPFILE_GATE=gate)
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr
