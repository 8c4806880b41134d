"""What a program has of the library that it would not have without, as the page says that lists it.

docs/explanation/other-programs.md has the numbers; they are read there.
"""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest

from support import fresh_interpreter

pytestmark = pytest.mark.needs("paging")

PAGE = Path(__file__).parents[3] / "docs" / "explanation" / "other-programs.md"
_COLUMNS = ("threads", "descriptors", "children", "other", "handlers")

_LOOK = """
import collections, gc, json, os, signal, sys, threading, time
from pathlib import Path
import numpy
environment = dict(os.environ)

def status_of(task):
    try:
        text = Path(f"/proc/self/task/{task}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        text = "Name:gone\\nSigBlk:0"
    return {name: value.strip() for name, _, value in
            (line.partition(":") for line in text.splitlines())}

def helpers():
    found = 0
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\\0")
        except OSError:
            continue
        found += words[-2:-1] == [str(os.getpid()).encode()] and b"paging.helper" in b"".join(words)
    return found

def look():
    status = status_of(os.getpid())
    descriptors = [n for n in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{n}")]
    names, blocked = collections.Counter(), {}
    for task in os.listdir("/proc/self/task"):
        its = status_of(task)
        names[its["Name"]] += 1
        blocked[task] = int(its["SigBlk"], 16)
    return {
        "threads": sum(names.values()),
        "names": names,
        "python": [thread.name for thread in threading.enumerate()],
        "descriptors": sorted(map(int, descriptors)),
        "children": len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
        "other": helpers(),
        "caught": int(status["SigCgt"], 16),
        "ignored": int(status["SigIgn"], 16),
        "blocked": blocked,
    }

def at_rest(threads):
    # Those of the pool that are not needed end after a second.
    until = time.monotonic() + 20
    while time.monotonic() < until:
        names = look()["names"]
        if names["pagemove-work"] + names["pagemove-calls"] <= threads:
            break
        time.sleep(0.01)
    return look()

before = look()
import pagemove
after_import = look()

class Mine(pagemove.stores.Store):
    nbytes = 1 << 16
    def read_into(self, offset, buffer):
        buffer[:] = b"m" * len(buffer)

kind, path = sys.argv[1:]
# So that there is what all regions share.
if kind == "r+":
    pagemove.open_array(path, mode="r+")
other = pagemove.open_array(path)
shared = at_rest(1)
if kind == "any other store":
    region = pagemove.PagedMemory(pagemove.stores.CompressedStore(1 << 16))
else:
    store = pagemove.stores.FileStore(path, writable=kind == "r+")
    region = pagemove.PagedMemory(store, mode=kind)
    store.close()
view = memoryview(region)
view[0]
opened = at_rest(18 if kind == "any other store" else 1)
flags = [vma.flags for vma in pagemove.vmas() if vma.start <= region.address < vma.end]
view.release()
region.close()
# The thread that reads the log ends when the helper has.
until = time.monotonic() + 20
while look()["threads"] > shared["threads"] and time.monotonic() < until:
    time.sleep(0.005)
closed = look()
del other
gc.collect()
print(json.dumps({
    "before": before, "import": after_import, "shared": shared, "opened": opened, "closed": closed,
    "end": look(), "flags": sorted(flags[0]), "environment": dict(os.environ) == environment,
}))
"""


def _claims() -> dict[str, dict[str, str]]:
    """Read the table of the page: by store, what is in each column."""
    rows = re.findall(
        r"^\| (a file[^|]*|any other store) \|(.*)\|$", PAGE.read_text(), re.MULTILINE
    )
    names = (re.sub(r'a file, mode `"(.*)"`', r"\1", first) for first, _ in rows)
    cells = ([cell.strip() for cell in rest.split("|")] for _, rest in rows)
    found = zip(names, cells, strict=True)
    return {name: dict(zip(_COLUMNS, row, strict=True)) for name, row in found}


CLAIMS = _claims()
_MODES = ["r", "r+", "c"]


def test_the_page_has_all_kinds() -> None:
    assert list(CLAIMS) == [*_MODES, "any other store"]


@pytest.fixture(
    scope="module",
    params=[*_MODES, pytest.param("any other store", marks=pytest.mark.needs("zstandard", "fork"))],
)
def seen(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("presence") / "array.npy"
    np.save(path, np.arange(1 << 16))
    found = json.loads(fresh_interpreter(_LOOK, request.param, str(path)))
    return request.param, found


def _names(signals: int) -> str:
    found = [each.name for each in signal.valid_signals() if signals >> (each - 1) & 1]
    return ", ".join(found) or "none"


def test_a_region_adds_what_the_page_says_and_takes_it_away(seen) -> None:
    kind, found = seen
    before, shared, opened, closed = (
        found[name] for name in ("before", "shared", "opened", "closed")
    )
    added = {
        "threads": str(opened["threads"] - shared["threads"]),
        "descriptors": str(len(set(opened["descriptors"]) - set(shared["descriptors"]))),
        "children": str(opened["children"]),
        "other": str(opened["other"]),
        "handlers": _names(opened["caught"] & ~before["caught"]),
    }
    assert added == CLAIMS[kind]
    assert min(set(opened["descriptors"]) - set(before["descriptors"])) > 2
    assert opened["ignored"] == before["ignored"]
    for name in ("threads", "names", "python", "descriptors", "children", "other"):
        assert closed[name] == shared[name], name

    names = {name: opened["names"][name] - shared["names"].get(name, 0) for name in opened["names"]}
    names = {name: count for name, count in names.items() if count}
    alone = kind not in _MODES
    assert names.pop("pagemove-faults", 0) == alone
    assert names.pop("pagemove-calls", 0) == alone
    assert names.pop("pagemove-work", 0) == (16 if alone else 0)
    # The name of a Python thread is the kernel's too from Python 3.14 on.
    assert sum(names.values()) == alone
    for name in ("pagemove-stderr", "pagemove-faults", "pagemove-work"):
        assert shared["names"][name] == 1
    python = ["MainThread"] if kind in _MODES else ["MainThread", "pagemove-log"]
    assert opened["python"] == python

    # All but SIGKILL, SIGSTOP and the two that the C library keeps for itself.
    everything = (1 << 31) - 1 & ~(1 << 8) & ~(1 << 18)
    new = set(opened["blocked"]) - set(before["blocked"])
    assert len(new) == opened["threads"] - before["threads"]
    assert all(opened["blocked"][task] & everything == everything for task in new)
    assert {"dd", "dc"} <= set(found["flags"])


def test_importing_adds_nothing_and_the_last_region_takes_the_rest(seen) -> None:
    kind, found = seen
    before, end = found["before"], found["end"]
    if kind == "r+":  # what waits for SIGTERM stays
        assert _names(end["caught"] & ~before["caught"]) == "SIGTERM"
        assert end["names"].pop("pagemove-ending") == 1
        end["threads"] -= 1
        end["caught"] = end["caught"] & before["caught"]
    for name in ("threads", "descriptors", "children", "other", "caught", "ignored"):
        assert found["import"][name] == before[name], name
        assert end[name] == before[name], name
    assert found["environment"]
