"""The examples do what they say: run as scripts on small data, and taken apart."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pagemove import PAGE_SIZE
from support.examples import EXAMPLES, load

pytestmark = pytest.mark.needs("move")


def test_every_example_is_tested() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    paging = {
        "demo",
        "page_file",
        "kmeans",
        "update_table",
        "c_extension",
    }  # test_examples_paging.py
    stores = {
        "compressed_swap",
        "embeddings_in_redis",
        "ray_actors",
        "sum_on_s3",
    }  # test_examples_stores.py
    assert names == {"reorder_file", "compact_heap"} | paging | stores


@pytest.mark.parametrize(
    ("name", "last"), [("reorder_file", "as long as copying."), ("compact_heap", "copying.")]
)
def test_it_runs_as_a_script(name: str, last: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10_000)
    argument = {"reorder_file": str(path), "compact_heap": "30"}[name]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), argument],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith(last)


@pytest.mark.parametrize("nbytes", [1, PAGE_SIZE, 5 * PAGE_SIZE + 17, 300 * PAGE_SIZE - 1])
def test_reorder_file(nbytes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(nbytes).bytes(nbytes))
    assert load("reorder_file").main([str(path)]) == 0
    printed = capsys.readouterr().out
    assert "All the same." in printed
    assert printed.count(hashlib.sha256(path.read_bytes()).hexdigest()[:32]) == 3
    mappings = re.search(r"mappings before, after\W+(\d+), (\d+)", printed)
    assert mappings is not None
    assert mappings[1] == mappings[2]
    assert re.search(r"bytes copied\W+0\W", printed)


def test_reorder_file_takes_the_interpreter_by_default() -> None:
    path = load("reorder_file").default_file()
    assert path.is_file()
    assert path == Path(sys.executable).resolve() or "python" in path.name


def test_reorder_file_refuses_what_is_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").touch()
    for path in (tmp_path, tmp_path / "none", tmp_path / "empty"):
        assert load("reorder_file").main([str(path)]) == 2
        assert str(path) in capsys.readouterr().err


def test_reorder_file_notices_another_content(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = load("reorder_file")
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3 * PAGE_SIZE)
    outcomes = {pages: example.reverse_and_back(path, pages) for pages in example.SIZES}
    assert not example.report(path, outcomes, "0" * 64)
    assert "They differ." in capsys.readouterr().out


@pytest.mark.parametrize("rows", [1, 7, 60])
def test_compact_heap(rows: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert load("compact_heap").main([str(rows)]) == 0
    printed = capsys.readouterr().out
    assert "Every live row is at the front" in printed
    before = re.search(r"resident before\W+([\d.]+) MiB", printed)
    after = re.search(r"resident after\W+([\d.]+) MiB", printed)
    assert before is not None
    assert after is not None
    assert float(after[1]) < float(before[1])


@pytest.mark.parametrize("method", ["compact_by_moving", "compact_by_copying"])
def test_compacting_keeps_the_live_rows_in_order(method: str) -> None:
    example = load("compact_heap")
    heap = example.Heap(40)
    with heap.memory:
        heap.fragment()
        assert not heap.is_compact()
        assert heap.resident() == 40 * example.ROW_BYTES
        getattr(example, method)(heap)
        assert heap.is_compact()
        assert heap.resident() == len(heap.live) * example.ROW_BYTES
        assert heap.rows()[: len(heap.live), 5].tolist() == heap.live.tolist()
        # The check itself: one wrong word, and one page too many.
        heap.rows()[2, 9] += 1
        assert not heap.is_compact()
        heap.rows()[2, 9] -= 1
        heap.rows()[len(heap.live), 0] = 1
        assert not heap.is_compact()


def test_runs_join_neighbours() -> None:
    runs = load("compact_heap").runs
    assert runs(np.array([2, 3, 4, 7, 9, 10])) == [(2, 5), (7, 8), (9, 11)]
    assert runs(np.array([], int)) == []
