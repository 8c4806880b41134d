"""Sum an array on S3 that is larger than the memory it may take.

Run: python examples/sum_on_s3.py [URL [ENDPOINT]]

Without a URL the example plays it all: a server (moto) on this machine, and an array of 64 MB in
it. ENDPOINT is that of S3-compatible storage other than Amazon's; credentials come from where s3fs
finds them. How a URL of yours behaves under a limit, `pagemove page` measures without a program:

    pagemove page s3://bucket/array.npy --limit 8MiB --block 1MiB
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pagemove import open_array, region_of

LIMIT = "8MiB"
ROWS = 1000
DEADLINE = 60


@contextlib.contextmanager
def played(rows: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run a server with an array of rows of 64 kB; return its URL, and what opens it."""
    import fsspec

    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    # A process of its own: a thread of this one could not serve an array of this one, for whoever
    # touches that holds the interpreter's lock.
    program = "from moto.server import main; main()"
    server = subprocess.Popen(
        [sys.executable, "-c", program, "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(port)
        options = {"key": "any", "secret": "any", "endpoint_url": f"http://127.0.0.1:{port}"}
        fsspec.filesystem("s3", **options).mkdir("bucket")
        with fsspec.open("s3://bucket/array.npy", "wb", **options) as file:
            np.save(file, np.arange(rows * 8000, dtype=np.float64).reshape(rows, 8000))
        yield "s3://bucket/array.npy", options
    finally:
        server.kill()
        server.wait()


def wait_for(port: int) -> None:
    """Wait until somebody listens."""
    limit = time.monotonic() + DEADLINE
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if time.monotonic() > limit:
            raise TimeoutError("the server does not answer")
        time.sleep(0.05)


def total(url: str, options: dict[str, Any]) -> float:
    """Sum an array, and say what that took."""
    array = open_array(
        url,
        storage_options=options,
        resident_limit=LIMIT,
        # A request takes milliseconds whatever it brings: few, large blocks.
        block_size="1MiB",
        store_timeout=30,
    )
    before = time.perf_counter()
    found = float(array.sum(dtype=np.float64))
    took = time.perf_counter() - before
    stats = region_of(array).stats()
    print(f"{url}: {array.shape} of {array.dtype}, {array.nbytes / 1e6:.0f} MB")
    print(f"the sum is {found:.17g}, after {took:.2f} s")
    print(
        f"{stats.bytes_read / 1e6:.0f} MB were read, {stats.prefetched} blocks of them before they "
        f"were needed; {stats.resident_nbytes / 1e6:.1f} MB are in memory"
    )
    return found


def main(arguments: Sequence[str] | None = None, rows: int = ROWS) -> int:
    """Run the example; 0 if the sum is right, as far as that is known."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        import s3fs  # noqa: F401
    except ModuleNotFoundError:
        print("Nothing done: s3fs is not installed: pip install 'pagemove[s3]'")
        return 0
    if given:
        total(given[0], {"endpoint_url": given[1]} if len(given) > 1 else {})
        return 0
    try:
        import moto  # noqa: F401
    except ModuleNotFoundError:
        print("Nothing done: moto is not installed (pip install 'moto[server]'); or name a URL")
        return 0
    with played(rows) as (url, options):
        found = total(url, options)
    count = rows * 8000
    if not np.isclose(found, count * (count - 1) / 2, rtol=1e-12):
        print("The sum is wrong.")
        return 1
    print("The sum is right.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
