"""What each start method does with each mode: the table of docs/how-to/processes.md."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest

import pagemove
from support.children import newborn
from support.slowness import patience

pytestmark = pytest.mark.needs("paging", "fork", "zstandard")

NUMBERS = np.arange(60_000)
MODES = ("r", "r+", "c", "compressed")
_NOT_INHERITED = MODES[1:3]
METHODS = [pytest.param("spawn", marks=pytest.mark.slow), "forkserver", "fork"]
_opened: dict[str, np.ndarray] = {}


def _open(folder: Path) -> dict[str, np.ndarray]:
    for mode in MODES[:3]:
        np.save(folder / f"{mode}.npy", NUMBERS)
        _opened[mode] = pagemove.open_array(
            folder / f"{mode}.npy", mode=mode, resident_limit="256KiB"
        )
    region = pagemove.PagedMemory(nbytes=NUMBERS.nbytes)
    _opened["compressed"] = region.asarray(NUMBERS.dtype)
    _opened["compressed"][:] = NUMBERS
    for mode in MODES[1:]:
        _opened[mode][7] = -7
    return _opened


def _seen(array):
    return type(array).__name__, array.flags.writeable, array[7:9].tolist(), int(array.sum())


def _inherited(mode):
    return _seen(_opened[mode])


def _ends_well(array):
    os._exit(0 if array[7] == 7 else 3)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_passed(tmp_path, method):
    newborn(_passed, tmp_path, method, deadline=100)


def _passed(folder, method):
    arrays = _open(folder)
    total = int(NUMBERS.sum())
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        found = pool.submit(_seen, arrays["r"]).result(100)
        assert found == ("PagedArray", False, [7, 8], total)
        found = pool.submit(_seen, arrays["r+"]).result(100)
        assert found == ("PagedArray", False, [-7, 8], total - 14)
        assert np.load(folder / "r+.npy")[7] == -7
        with pytest.raises(ValueError, match="copy=True"):
            pool.submit(_seen, arrays["c"]).result(100)
        with pytest.raises(ValueError, match="copy=True"):
            pagemove.reference(arrays["compressed"])
        # Whose arrays are plain, and so are copied.
        found = pool.submit(_seen, arrays["compressed"]).result(100)
        assert found == ("ndarray", True, [-7, 8], total - 14)


@pytest.mark.parametrize("act", ["_by_a_pool", "_by_a_process"])
def test_what_is_inherited(tmp_path, act):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys, {__name__} as here; here.{act}(sys.argv[1])",
            tmp_path,
        ],
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert len(said) == 2, said
    for line, mode in zip(said, ("mode 'r+'", "mode 'c'"), strict=True):
        assert mode in line
        assert "was opened before a fork" in line
        assert "be passed" in line


def _by_a_pool(folder):
    arrays = _open(Path(folder))
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, fork) as pool:
        found = pool.submit(_inherited, "r").result(100)
        assert found == ("PagedArray", False, [7, 8], int(NUMBERS.sum()))
    with ProcessPoolExecutor(1, fork) as pool:
        found = pool.submit(_inherited, "compressed").result(100)
        assert found == ("ndarray", True, [-7, 8], int(NUMBERS.sum()) - 14)
    for mode in _NOT_INHERITED:
        with ProcessPoolExecutor(1, fork) as pool, pytest.raises(BrokenProcessPool):
            pool.submit(_inherited, mode).result(100)
    assert [int(array[7]) for array in arrays.values()] == [7, -7, -7, -7]


def _by_a_process(folder):
    arrays = _open(Path(folder))
    assert _status_of(arrays["r"]) == 0
    assert _status_of(arrays["compressed"]) == 3  # with what was stored there
    assert {_status_of(arrays[mode]) for mode in _NOT_INHERITED} == {-signal.SIGSEGV}


def _status_of(array):
    process = multiprocessing.get_context("fork").Process(target=_ends_well, args=(array,))
    process.start()
    process.join(100)
    return process.exitcode


def test_a_program_has_none_of_it(tmp_path):
    newborn(_by_exec, tmp_path)


def _by_exec(folder):
    _open(folder)
    regions = [pagemove.region_of(array) for array in _opened.values()]
    program = (
        "print(open('/proc/self/maps').read(), len(__import__('os').listdir('/proc/self/fd')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, close_fds=False
    )
    assert done.stderr == ""
    assert not any(f"{region.address:x}-" in done.stdout for region in regions)
    assert int(done.stdout.split()[-1]) <= 4
