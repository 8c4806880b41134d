"""Files for what compressed memory has no room for: forks, disk space, rooms that are full."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pagemove import PagedAllocations, PagedMemory
from support import child
from support.children import fork
from support.descriptors import files_in
from support.disks import small_disk
from support.paging import Words, noise
from support.programs import run_paged
from support.slowness import patience

pytestmark = pytest.mark.needs("paging", "fork")

MIB = 1 << 20
_BLOCK = 65536


def _spilling(folder: Path, nbytes: int = 16 * MIB, limit: int = 2 * MIB) -> PagedMemory:
    return PagedMemory(
        nbytes=nbytes, resident_limit=limit, block_size=_BLOCK, store_limit=MIB, spill=folder
    )


def _files(folder: Path) -> list[int]:
    """Return the bytes on the disk of each unnamed file there that this process has."""
    return [each.stat().st_blocks * 512 for each in files_in(folder).values()]


def _ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _both_go_on(folder: Path) -> list[object]:
    found: list[object] = []
    with _spilling(folder) as region:
        words = region.asarray("u8")
        expected = noise(region.nbytes)
        words[:] = expected
        descriptors = len(os.listdir("/proc/self/fd"))
        for turn in range(4):
            pids = []
            for number in range(3):
                pid = fork()
                if not pid:
                    right = bool((words == expected).all())
                    changed = expected.copy()
                    changed[number::3] = words[number::3] = np.uint64(turn)
                    right = right and bool((words == changed).all())
                    grandchild = fork()
                    if not grandchild:
                        words[7] += np.uint64(1)
                        changed[7] += np.uint64(1)
                        os._exit(0 if (words == changed).all() else 1)
                    right = right and _ended(grandchild) == 0 and bool((words == changed).all())
                    os._exit(0 if right else 1)
                pids.append(pid)
            part = slice(turn * len(words) // 4, (turn + 1) * len(words) // 4)
            expected[part] = words[part] = noise(words[part].nbytes, turn + 1)
            found.append([_ended(pid) for pid in pids])
            found.append(bool((words == expected).all()))
        found.append(len(os.listdir("/proc/self/fd")) - descriptors)
        del words
    return found


def test_parent_and_children_go_on_apart(tmp_path):
    assert child(_both_go_on, tmp_path, deadline=120) == [[0, 0, 0], True] * 4 + [0]


def _space_is_free_again(folder: Path) -> tuple[bool, bool, bool, int, int]:
    with _spilling(folder) as region:
        words = region.asarray("u8")
        words[:] = noise(region.nbytes)
        ready, go = os.pipe(), os.pipe()
        pid = fork()
        if not pid:
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            os._exit(0 if (words == noise(region.nbytes)).all() else 1)
        os.read(ready[0], 1)
        words[:] = noise(region.nbytes, 1)
        both = sum(_files(folder))
        os.write(go[1], b"x")
        right = _ended(pid) == 0
        for seed in (2, 3):
            words[:] = noise(region.nbytes, seed)
            region.evict()
        alone, files = sum(_files(folder)), len(_files(folder))
        words[:] = 0
        region.evict()
        left = sum(_files(folder))
        del words
    return right, both > 24 * MIB, alone < 20 * MIB, files, left


def test_the_space_of_what_was_changed_is_free_when_the_child_has_ended(tmp_path):
    right, both, alone, files, left = child(_space_is_free_again, tmp_path, deadline=120)
    assert (right, both, alone, left) == (True, True, True, 0)
    assert files <= 2


def _many_live(folder: Path) -> list[int]:
    """As many children live on as there may be files, and more: the parent has one."""
    with _spilling(folder, 4 * MIB, MIB) as region:
        words = region.asarray("u8")
        expected = noise(region.nbytes)
        words[:] = expected
        go, pids = os.pipe(), []
        for number in range(70):
            pid = fork()
            if not pid:
                os.close(go[1])
                os.read(go[0], 1)
                right = (words == expected).all()
                os._exit(0 if right else 1)
            pids.append(pid)
            part = slice(number % 8 * 65536, (number % 8 + 1) * 65536)
            expected[part] = words[part] = noise(words[part].nbytes, number)
        os.close(go[1])
        found = [_ended(pid) for pid in pids]
        right = bool((words == expected).all()) and len(_files(folder)) == 1
        words[:] = expected = noise(region.nbytes, 5)
        right = right and bool((words == expected).all())
        del words
    return [*found, int(not right)]


def _deep(folder: Path, depth: int) -> int:
    """Return how many generations find what they should, each with a file of its own."""
    with _spilling(folder, 2 * MIB, MIB) as region:
        words = region.asarray("u8")
        expected = noise(region.nbytes)
        words[:] = expected
        for generation in range(depth):
            part = slice(generation % 8 * 32768, (generation % 8 + 1) * 32768)
            expected[part] = words[part] = noise(words[part].nbytes, generation)
            if not (words == expected).all():
                os._exit(generation)
            pid = fork()
            if pid:
                found = _ended(pid)
                if generation:
                    os._exit(found)
                del words
                return found
        os._exit(depth)


def test_children_of_children(tmp_path):
    assert child(_deep, tmp_path, 40, deadline=120) == 40


def _without_directory(folder: Path) -> list[bool]:
    folder.mkdir()
    with _spilling(folder) as region:
        words = region.asarray("u8")
        expected = noise(region.nbytes)
        words[:] = expected
        folder.rmdir()
        pid = fork()
        if not pid:
            os._exit(0 if (words == expected).all() else 1)
        found = [_ended(pid) == 0]
        for seed in range(1, 4):
            words[:] = expected = noise(region.nbytes, seed)
            found.append(bool((words == expected).all()))
        del words
    return found


def test_a_parent_needs_the_directory_no_more(tmp_path):
    assert all(child(_without_directory, tmp_path / "gone", deadline=60))


def test_more_children_than_files(tmp_path):
    assert not any(child(_many_live, tmp_path, deadline=240))


_POOL = """
import multiprocessing
import numpy as np

def total(i):
    return int(arrays[i].sum())

if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    random = np.random.default_rng(0)
    arrays = [random.integers(0, 2**62, 1 << 18) for _ in range(16)]
    with multiprocessing.Pool(4) as pool:
        print(pool.map(total, range(16)) == [int(each.sum()) for each in arrays])
"""


def test_a_pool_by_fork_of_a_program_that_spills(tmp_path):
    done = run_paged(tmp_path, _POOL, "--limit=8MiB", "--spill=.")
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def _without_a_library(folder: Path) -> tuple[bool, int, int]:
    with _spilling(folder) as region:
        words = region.asarray("u8")
        words[: len(words) // 2] = np.arange(len(words) // 2)
        region.evict()
        kept = region.stats().store
        right = bool((words[: len(words) // 2] == np.arange(len(words) // 2)).all())
        right = right and not words[len(words) // 2 :].any()
        del words
    return right, int(kept["compressed_blocks"]), int(kept["spilled_blocks"])


def test_without_a_library_what_is_no_one_value_goes_there(tmp_path, monkeypatch):
    monkeypatch.setenv("PAGEMOVE_CODEC", "none")
    program = f"""
import sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from contract.paging.test_spill_files import _without_a_library
print(_without_a_library(Path(sys.argv[1])))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=False,
    )
    assert done.stdout == "(True, 0, 128)\n", done.stderr


def _until_full(folder: Path, limit: int, store_limit: int, kind: str) -> int:
    """Make arrays until one is a MemoryError; all that were made are right. Return how many."""

    def fill() -> None:
        with limits:
            while len(made) < 200:
                array = noise(MIB, len(made))
                if kind == "mixed" and len(made) % 2:
                    array >>= np.uint64(40)
                made.append(array)

    made: list[Words] = []
    limits = PagedAllocations(limit, store_limit=store_limit, spill=folder, min_size=65536)
    with pytest.raises(MemoryError) as full:
        fill()
    assert "(spill) is full" in full.value.__notes__[-1]
    for seed, array in enumerate(made[: len(made) // 2]):
        expected = np.random.default_rng(seed).integers(0, 2**64, MIB // 8, np.uint64)
        assert (array == (expected >> np.uint64(40 * (kind == "mixed" and seed % 2)))).all()
    return len(made)


@pytest.mark.needs("root")
@pytest.mark.parametrize("kind", ["noise", "mixed"])
def test_where_neither_has_room_an_array_is_a_memory_error(tmp_path, kind):
    with small_disk(tmp_path / "small", 20 * MIB) as small:
        made = child(_until_full, small, 16 * MIB, 16 * MIB, kind, deadline=120)
    least, most = (36, 52) if kind == "noise" else (44, 90)
    assert least <= made <= most
