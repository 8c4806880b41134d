"""Ray: references, not bytes, go through its object store."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import pytest

from support.servers import RAY, RAY_DID_NOT_START

pytestmark = [pytest.mark.needs("ray", "paging", "zstandard"), pytest.mark.slow]

# Once for all: Ray takes seconds to start.
_PROGRAM = """
import errno, os, pickle, sys
import numpy as np, pagemove, ray
from ray._private.worker import global_worker

path = sys.argv[1]
NUMBERS = np.arange(1_000_000).reshape(1000, 1000)
np.save(path, NUMBERS)
table = pagemove.open_array(path, resident_limit="1MiB")
# Far less than the array is room for.
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 << 20, _temp_dir=sys.argv[2])

def stored(value):
    return global_worker.get_serialization_context().serialize(value).total_bytes

def refused(call):
    try:
        call()
    except Exception as error:
        return str(error)

@ray.remote
def seen(array):
    region = array.region
    faults = region.stats().faults
    return (type(array).__name__, array.flags.writeable, int(array.sum()), region.resident_limit,
            region.stats().resident_nbytes <= region.resident_limit, faults)

@ray.remote
def parts(array):
    return {"rows": [array[5:10], (array.T,)], "plain": array[5] + 1}

@ray.remote
def unpicklable(path):
    return pagemove.open_array(path, mode="c")

@ray.remote
def total(array):
    return type(array).__name__, int(array.sum()), array.flags.writeable

@ray.remote
class Keeper:
    def __init__(self, array, **more):
        self.array, self.more = array, more
    def total(self):
        return int(self.array.sum() + self.more["again"]["array"][0].sum())
    def row(self, at):
        return self.array[at]
    def resident(self):
        return self.array.region.stats().resident_nbytes

# Of any size: nothing of it is there.
print("sizes", stored(table) < 1024, stored({"a": [table[3:], (table.T,)]}) < 2048)
big = path + ".big"
with open(big, "wb") as file:
    file.truncate(1 << 40)
print("a terabyte", stored(pagemove.open_array(big, dtype="f4")[5:]) < 1024)
put = ray.put(table)
assert table.region.stats().bytes_read == 0

expected = ("PagedArray", False, int(NUMBERS.sum()), 1 << 20, True, 0)
print("argument", ray.get(seen.remote(table)) == expected, ray.get(seen.remote(put)) == expected)
print("got back", type(ray.get(put)).__name__, bool((ray.get(put)[::7] == NUMBERS[::7]).all()))

made = ray.get(parts.remote(table))
print("returned", type(made["rows"][0]).__name__, bool((made["rows"][0] == NUMBERS[5:10]).all()),
      bool((made["rows"][1][0] == NUMBERS.T).all()), type(made["plain"]).__name__)

# Plain arrays of an object store cannot be written, as those of mode "r" cannot.
print("plain", made["plain"].flags.writeable, made["rows"][0].flags.writeable)

keeper = Keeper.remote(table[::2], again={"array": [put]})
again = Keeper.remote(table, again={"array": [table]})
row = ray.get(again.row.remote(3))
print("actor", ray.get(again.total.remote()) == 2 * NUMBERS.sum(), type(row).__name__,
      row[1] == 3001, 0 < ray.get(again.resident.remote()) <= 1 << 20)

private = pagemove.open_array(path, mode="c")
private[0] = 1
sends = lambda: ray.put(private), lambda: seen.remote([private])
for call in (*sends, lambda: ray.get(unpicklable.remote(path))):
    print("private", "copy=True" in refused(call))
copied = ray.get(total.remote(np.array(private)))
print("copied", copied == ("ndarray", 1000 + int(NUMBERS[1:].sum()), False))
back = ray.get(ray.put(pagemove.reference(private, copy=True))).open()
print("by value", type(back).__name__, int(back.sum()) == copied[1])

memory = pagemove.PagedMemory(nbytes=4 << 20, resident_limit="1MiB")
plain = memory.asarray(np.int64)
plain[:] = 7
print("compressed", "copy=True" in refused(lambda: pagemove.reference(plain)),
      stored(plain) > 4 << 20, ray.get(total.remote(plain)) == ("ndarray", 7 * len(plain), False))

# Plain views of a file's region are copied too, but for their reference.
with pagemove.stores.FileStore(path) as store:
    region = pagemove.PagedMemory(store)
view = region.asarray(np.int64, offset=128)
print("asarray", stored(view) > view.nbytes, stored(pagemove.reference(view)) < 1024)

written = pagemove.open_array(path, mode="r+")
written[0, 0] = 41
print("flushed", int(ray.get(parts.remote(written[:10]))["rows"][1][0][0, 0]), np.load(path)[0, 0])

stale = refused(lambda: ray.get(seen.remote(put)))
print("changed", "changed since" in stale or "was written to" in stale)
ray.shutdown()
"""
_SAID = """
sizes True True
a terabyte True
argument True True
got back PagedArray True
returned PagedArray True True ndarray
plain False False
actor True PagedArray True True
private True
private True
private True
copied True
by value ndarray True
compressed True True True
asarray True True
flushed 41 41
changed True
"""


def test_references_go_through_the_object_store(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(_PROGRAM)
    # Names of sockets are short.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        done = subprocess.run(
            [sys.executable, script, tmp_path / "table.npy", folder],
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
            env=os.environ | RAY,
        )
    if RAY_DID_NOT_START in done.stderr:
        pytest.skip("Ray gives its own processes 30 s to start, and this machine is busy")
    assert done.returncode == 0, done.stderr
    assert done.stdout == _SAID[1:], done.stderr
