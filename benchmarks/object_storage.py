"""`FsspecStore` over S3 in blocks, by several threads: read by obstore, against s3fs alone."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks._measure import Effort, Finding
from benchmarks._paging import Place, Way, in_turn, speed, timed
from benchmarks._report import run_alone
from benchmarks._stores import elapsing, needed, nginx_server, running
from pagemove.stores import FsspecStore

_BLOCKS = (64 << 10, 2 << 20)
_THREADS = (1, 8, 32)
_REQUESTS = {64 << 10: 128, 2 << 20: 32}
#: So much the more complicated way has to be faster, to be worth it.
_WORTH_IT = 1.3


# The server should not be the limit. nginx plays S3, where it is installed: an object that anybody
# may read is no more than a range over HTTP. Without it moto does, which is slower than both.
@contextlib.contextmanager
def _nginx(_port: int, contents: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    with nginx_server(contents) as url:
        yield "nginx", {"anon": True, "endpoint_url": url}


@contextlib.contextmanager
def _moto(port: int, contents: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    import s3fs

    needed("moto")
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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve = _nginx if shutil.which("nginx") else _moto
    contents = np.random.default_rng(0).bytes(min(effort.file, 64 << 20))
    with serve(port, contents) as (server, options):
        # One that obstore cannot have, and that changes nothing.
        by_s3fs = {**options, "default_fill_cache": False}
        with (
            FsspecStore("s3://bucket/x", timeout=60, **options) as ours,
            FsspecStore("s3://bucket/x", timeout=60, **by_s3fs) as theirs,
        ):
            stores = {"obstore": ours, "s3fs": theirs}
            target = _WORTH_IT if serve is _nginx else None
            return [
                _compared(stores, server, target, block, threads, place, effort)
                for place in elapsing()
                for block, threads in itertools.product(_BLOCKS, _THREADS)
            ]


def _compared(
    stores: dict[str, FsspecStore],
    server: str,
    target: float | None,
    block: int,
    threads: int,
    place: Place,
    effort: Effort,
) -> Finding:
    requests = max(min(_REQUESTS[block], effort.pages), threads)
    what = f"{block >> 10} KiB, {threads} threads; {place.name}"
    with place.here():
        ways = []
        for name, store in stores.items():
            job = _reading(store, block, threads, requests)
            ways.append(Way(f"{name}, {what}", partial(timed, job, requests, place, requests)))
        samples = in_turn(ways, effort.passes)
    return speed(samples, ways[0].name, ways[1].name, target, server)


if __name__ == "__main__":
    run_alone(measure)
