"""What the benchmarks of stores share: stores that are measured with, their regions, a server."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._measure import Unmeasurable
from benchmarks._paging import Place, places
from pagemove import PagedMemory
from pagemove.stores import Store

_STARTING = 20.0
_LARGEST = 2 << 20

_NGINX = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/errors;
events {{ worker_connections 256; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
  client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
  uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
  server {{ listen 127.0.0.1:{port}; root {folder}/root; }}
}}
"""


class Instant(Store):
    """Has its bytes in memory and does nothing but copy them.

    Parameters
    ----------
    nbytes : int
        Every 2 MiB are the same.
    delay : float
        Seconds that each read waits before, as for a network.
    """

    def __init__(self, nbytes: int, delay: float = 0.0, concurrency: int = 16) -> None:
        self._nbytes, self._delay = nbytes, delay
        self.concurrency = concurrency
        self._begin()

    def _begin(self) -> None:
        # A read may begin anywhere in the first 2 MiB.
        self._bytes = memoryview(np.tile(np.arange(1, _LARGEST // 8 + 1, dtype="<u8"), 2)).cast("B")

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def read_into(self, offset: int, buffer: Any) -> None:
        if self._delay:
            time.sleep(self._delay)
        start = offset % _LARGEST
        buffer[:] = self._bytes[start : start + len(buffer)]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_bytes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def sum_of_starts(self, step: int) -> int:
        """Add up the words that begin each `step` bytes."""
        starts = np.arange(0, self._nbytes, step) % _LARGEST // 8 + 1
        return int(starts.sum())


def elapsing() -> list[Place]:
    """Return the ways to run, for what more than one process does: the time that passes counts."""
    return [replace(place, clock=time.perf_counter_ns) for place in places()]


def warmed(region: PagedMemory) -> PagedMemory:
    """Return the region once its helper is up, without anything in it."""
    region.prefetch(0, region.block_size, wait=True)
    region.evict()
    return region


def touch_starts(address: int, nbytes: int, step: int) -> Callable[[], int]:
    """Return what reads the first word of every `step` bytes in order, and adds them up."""
    from benchmarks._baselines import touch_each

    offsets = np.arange(0, nbytes, step, dtype=np.uint64)

    def touch() -> int:
        touch_each(address, offsets)
        return len(offsets)

    return touch


def needed(*modules: str) -> None:
    """Raise `Unmeasurable` unless these can be imported."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise Unmeasurable(f"{', '.join(missing)} not installed")


@contextmanager
def redis_server() -> Iterator[str]:
    """Run a Redis server on a free port of loopback; return its URL."""
    needed("redis")
    if not shutil.which("redis-server"):
        raise Unmeasurable("redis-server is not installed")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        command = ["redis-server", *options, "--loglevel", "warning"]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            awaited(port)
            yield f"redis://127.0.0.1:{port}"
        finally:
            server.kill()
            server.wait()


@contextmanager
def nginx_server(contents: bytes) -> Iterator[str]:
    """Have nginx serve ``/bucket/x`` on a free port of loopback; return its URL."""
    if not shutil.which("nginx"):
        raise Unmeasurable("nginx is not installed")
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # its worker is nobody
        (folder / "root" / "bucket").mkdir(parents=True)
        (folder / "root" / "bucket" / "x").write_bytes(contents)
        (folder / "configuration").write_text(_NGINX.format(folder=folder, port=port))
        command = ["nginx", "-p", name, "-e", f"{name}/errors", "-c", f"{name}/configuration"]
        with running(command, port):
            yield f"http://127.0.0.1:{port}"


@contextmanager
def running(command: list[str], port: int) -> Iterator[None]:
    """Run a server, from when it listens."""
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        awaited(port)
        yield
    finally:
        server.terminate()
        server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def awaited(port: int) -> None:
    """Wait until somebody listens."""
    limit = time.monotonic() + _STARTING
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.01)
