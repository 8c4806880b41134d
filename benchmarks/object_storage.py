"""`FsspecStore` over S3 in blocks, by several threads: read by obstore, against s3fs alone."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks._measure import Effort, Finding
from benchmarks._paging import compared
from benchmarks._report import run_alone
from benchmarks._stores import elapsing, free_port, needed, nginx_server, running
from pagemove.stores import FsspecStore

_BLOCKS = (64 << 10, 2 << 20)
_THREADS = (1, 8, 32)
_REQUESTS = {64 << 10: 128, 2 << 20: 32}
#: So much the more complicated way has to be faster, to be worth it.
_WORTH_IT = 1.3


# The server should not be the limit. nginx plays S3, where it is installed: an object that anybody
# may read is no more than a range over HTTP. Without it moto does, which is slower than both.
@contextlib.contextmanager
def _nginx(contents: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    with nginx_server(contents) as url:
        yield "nginx", {"anon": True, "endpoint_url": url}


@contextlib.contextmanager
def _moto(contents: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    import s3fs

    needed("moto")
    port = free_port()
    program = "from moto.server import main; main()"
    with running([sys.executable, "-c", program, "-H", "127.0.0.1", "-p", str(port)], port):
        endpoint = f"http://127.0.0.1:{port}"
        options = {"key": "any", "secret": "any", "endpoint_url": endpoint}
        filesystem = s3fs.S3FileSystem(**options)
        filesystem.mkdir("bucket")
        filesystem.pipe("bucket/x", contents)
        yield "moto, which is the limit", options


def _reading(store: FsspecStore, block: int, threads: int, requests: int) -> Callable[[], int]:
    """Return what reads so many blocks at random, in threads."""
    buffers = [bytearray(block) for _ in range(threads)]
    seeds = itertools.count()

    def read() -> int:
        random = np.random.default_rng(next(seeds))
        offsets = (random.integers(store.nbytes // block, size=requests) * block).tolist()

        def run(first: int) -> None:
            for offset in offsets[first::threads]:
                store.read_into(offset, buffers[first])

        running = [threading.Thread(target=run, args=(first,)) for first in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        return requests

    return read


def measure(effort: Effort) -> list[Finding]:
    needed("s3fs", "obstore")
    serve = _nginx if shutil.which("nginx") else _moto
    contents = np.random.default_rng(0).bytes(min(effort.file, 64 << 20))
    with serve(contents) as (server, options):
        # One that obstore cannot have, and that changes nothing.
        by_s3fs = {**options, "default_fill_cache": False}
        with (
            FsspecStore("s3://bucket/x", timeout=60, **options) as ours,
            FsspecStore("s3://bucket/x", timeout=60, **by_s3fs) as theirs,
        ):
            stores = {"obstore": ours, "s3fs": theirs}
            target = _WORTH_IT if serve is _nginx else None
            findings = []
            for place, block, threads in itertools.product(elapsing(), _BLOCKS, _THREADS):
                requests = max(min(_REQUESTS[block], effort.pages), threads)
                jobs = {
                    name: _reading(store, block, threads, requests)
                    for name, store in stores.items()
                }
                what = f"{block >> 10} KiB, {threads} threads; {place.name}"
                findings.append(
                    compared(jobs, what, requests, place, effort.passes, target, server)
                )
            return findings


if __name__ == "__main__":
    run_alone(measure)
