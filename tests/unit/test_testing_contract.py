"""testing/contract.py: the contract of stores finds what is wrong with a store."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_SUITE = """
from support.stores import BytesStore
from pagemove.stores import Store
from pagemove.testing import StoreContract

class Wrong(BytesStore):
{body}

class TestWrong(StoreContract):
    reopens = False
    {more}

    def make_store(self, contents, *, writable):
        return Wrong(contents, writable=writable)
"""


#: The plugins that are installed take longer to be imported than the tests take.
_ALONE = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def _run(folder: Path, select: str = "") -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """Return the files and names of the tests that passed, and of those that failed."""
    options = ["-q", "-rA", "--tb=no", "-k", select, "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "."],
        cwd=folder,
        env={**_ALONE, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    found = [
        set(re.findall(rf"(?m)^{word} (\S+?)::\S+::(\w+)", done.stdout))
        for word in ("PASSED", "FAILED")
    ]
    assert found[0] or found[1], done.stdout + done.stderr
    return found[0], found[1]


def _outcomes(folder: Path, more: str = "") -> tuple[set[str], set[str]]:
    """Return the names of the tests of a store that is right which passed, and which failed."""
    (folder / "test_right.py").write_text(_SUITE.format(body="    pass", more=more))
    passed, failed = _run(folder)
    return {name for _, name in passed}, {name for _, name in failed}


#: What is wrong with a store, and the test that finds it.
_WRONG = [
    (
        """
    def read_into(self, offset, buffer):
        super().read_into(offset, memoryview(buffer)[:100])
""",
        "test_read_fills_the_buffer",
    ),
    (
        """
    def read_into(self, offset, buffer):
        super().read_into(max(offset, 0), memoryview(buffer)[:self.nbytes - max(offset, 0)])
""",
        "test_read_beyond_the_end_raises",
    ),
    (
        """
    def write(self, offset, data):
        super().write(offset & -4096, data)
""",
        "test_write_changes_these_bytes_only",
    ),
    (
        """
    def write(self, offset, data):
        super().write(offset, memoryview(data)[:self.nbytes - offset])
""",
        "test_write_beyond_the_end_raises_and_changes_nothing",
    ),
    (
        """
    def write(self, offset, data):
        self._contents[offset:offset + len(data)] = bytes(data)
""",
        "test_read_only_unless_asked",
    ),
    (
        """
    def write(self, offset, data):
        self.writable or super().write(offset, data)
        begin = offset & -4096
        block = bytearray(min(4096 * 3, self.nbytes - begin))
        self.read_into(begin, block)
        import time
        time.sleep(0.001)
        view = memoryview(data).cast("B")
        block[offset - begin:offset - begin + len(view)] = view
        super().write(begin, block)
""",
        "test_write_parts_that_do_not_overlap_at_the_same_time",
    ),
    (
        """
    def close(self):
        assert not self.__dict__.get("closed")
        self.closed = True
""",
        "test_close_twice",
    ),
    (
        """
    def __reduce__(self):
        return Wrong, (bytes(self.nbytes),)
""",
        "test_pickles",
    ),
    ("""    def stats(self): return {"state": "fine"}""", "test_statistics_are_numbers"),
]


def test_what_is_wrong_is_found(tmp_path):
    """All of them in one run of pytest, which takes longer to start than its tests do."""
    for number, (body, _) in enumerate(_WRONG):
        (tmp_path / f"test_{number}.py").write_text(_SUITE.format(body=body, more=""))
    failed = _run(tmp_path, " or ".join(sorted({finds for _, finds in _WRONG})))[1]
    for number, (_, finds) in enumerate(_WRONG):
        assert (f"test_{number}.py", finds) in failed


def test_a_right_store_passes(tmp_path):
    passed, failed = _outcomes(tmp_path)
    assert not failed
    assert {"test_write_any_contiguous_buffer", "test_read_only_unless_asked"} <= passed
    assert "test_write_is_kept" not in passed  # its pickle holds a copy


@pytest.mark.parametrize(
    ("more", "left_out"),
    [("writable = False", "test_write"), ("read_only = False", "test_read_only_unless_asked")],
)
def test_what_a_store_cannot_do_is_left_out(tmp_path, more, left_out):
    passed, failed = _outcomes(tmp_path, more)
    assert not failed
    assert not [name for name in passed if name.startswith(left_out)]


def test_a_class_without_make_store_says_so(tmp_path):
    (tmp_path / "test_none.py").write_text(
        "from pagemove.testing import StoreContract\nclass TestNone(StoreContract): pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env=_ALONE,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert "NotImplementedError: TestNone must define make_store" in done.stdout
