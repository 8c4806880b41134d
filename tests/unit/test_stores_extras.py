"""stores/extras.py: libraries that only some stores need are not imported before they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pagemove.stores.extras import needed

EXTRAS = ("aiohttp", "fsspec", "multiprocessing", "redis", "s3fs", "zstandard")


def test_importing_the_package_imports_none_of_them():
    program = f"import sys, pagemove, pagemove.stores; print(*set(sys.modules) & set({EXTRAS!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_one_that_is_missing_is_named_with_what_installs_it():
    with pytest.raises(
        ModuleNotFoundError, match=r"nosuch\.part is not.*'pagemove\[some\]'"
    ) as caught:
        needed("nosuch.part", "some")
    assert caught.value.name == "nosuch"


def test_what_one_that_is_there_lacks_is_not_taken_for_it(tmp_path, monkeypatch):
    (tmp_path / "broken_library.py").write_text("import another_that_is_missing")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="another_that_is_missing"):
        needed("broken_library", "some")
