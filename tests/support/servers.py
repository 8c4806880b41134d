"""Servers on free ports of loopback, for as long as a test needs them."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

DEADLINE = 30.0

#: What plays Redis: another release of it, or Valkey, can be named.
REDIS_SERVER = os.environ.get("PAGEMOVE_REDIS_SERVER", "redis-server")


def free_ports(count: int) -> list[int]:
    """Find ports that nobody listens on, nor 10000 above, where a cluster has its bus."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        for port in range(20000 + os.getpid() % 9000, 45000):
            sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
            try:
                for one, number in zip(sockets, (port, port + 10000), strict=True):
                    one.bind(("127.0.0.1", number))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise OSError("no free ports")


def wait_until(holds: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + DEADLINE
    while not holds():
        if time.monotonic() > limit:
            raise TimeoutError(what)
        time.sleep(0.01)


#: For programs that use Ray: patience, and no report to its makers.
RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "200",
}
RAY_DID_NOT_START = "The current node timed out during startup"


class Process:
    """A server that is a process of its own; killed at the end, whatever it does."""

    def __init__(self, command: list[str], folder: Path) -> None:
        # Not to be left behind by tests that are killed.
        self._command = ["setpriv", "--pdeathsig", "KILL", *command]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            wait_until(self.is_up, f"{self._command} does not answer")
        except BaseException:
            self.kill()
            raise

    def is_up(self) -> bool:
        raise NotImplementedError

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self, *, on: bool = True) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if on else signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


class Redis(Process):
    """A Redis server; its folder keeps what it persists."""

    def __init__(self, folder: Path, port: int, *options: str) -> None:
        self.port = port
        self.url = f"redis://127.0.0.1:{port}"
        folder.mkdir(exist_ok=True)
        base = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--loglevel", "warning"]
        super().__init__([REDIS_SERVER, *base, *options], folder)

    def is_up(self) -> bool:
        return self.say("PING") == b"+PONG"

    def say(self, *words: object) -> bytes:
        """Send a command, and give the first line of the answer."""
        parts = [str(word).encode() for word in words]
        text = b"*%d\r\n" % len(parts)
        text += b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE) as one:
                one.sendall(text)
                with one.makefile("rb") as answer:
                    return answer.readline().strip()
        except OSError:
            return b""

    def say_whole(self, *words: object) -> bytes:
        """Send a command, and give the whole of an answer that is one string."""
        parts = ["redis-cli", "-p", str(self.port), *map(str, words)]
        return subprocess.run(parts, check=True, capture_output=True, timeout=DEADLINE).stdout


@contextlib.contextmanager
def redis_cluster(folder: Path, nodes: int = 3) -> Iterator[list[Redis]]:
    """Run so many primaries that share the slots."""
    with contextlib.ExitStack() as stack:
        members = [
            Redis(folder / str(port), port, "--cluster-enabled", "yes")
            for port in free_ports(nodes)
        ]
        for member in members:
            stack.enter_context(member)
        hosts = [f"127.0.0.1:{member.port}" for member in members]
        subprocess.run(
            ["redis-cli", "--cluster", "create", *hosts, "--cluster-yes"],
            check=True,
            capture_output=True,
            timeout=60,
        )
        for member in members:
            wait_until(
                lambda member=member: b"cluster_state:ok" in member.say_whole("CLUSTER", "INFO"),
                "the cluster does not come up",
            )
        yield members


class Moto(Process):
    """S3 as moto plays it."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        program = "from moto.server import main; main()"
        super().__init__(
            [sys.executable, "-c", program, "-H", "127.0.0.1", "-p", str(port)], folder
        )

    @property
    def options(self) -> dict[str, object]:
        """What s3fs is told."""
        return {"key": "test", "secret": "test", "endpoint_url": self.url}

    def is_up(self) -> bool:
        return _listens(self.port)


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """Files, with ranges; and what may go wrong with them."""

    protocol_version = "HTTP/1.1"
    server: WebServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if self.server.faults:
            fault = self.server.faults.pop(0)
            if isinstance(fault, float):
                time.sleep(fault)
            elif fault == 0:
                self.close_connection = True
                return
            else:
                self._answer(fault, b"")
                return
        if not path.is_file():
            self._answer(404, b"")
            return
        data = path.read_bytes()
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if span is None or not self.server.ranges:
            self._answer(200, data)
            return
        first, last = int(span[1]), min(int(span[2]), len(data) - 1)
        if first > last:
            self._answer(416, b"", f"bytes */{len(data)}")
        else:
            self._lie(first, last, data)

    def _lie(self, first: int, last: int, data: bytes) -> None:
        """Answer with a range, or with what a broken server makes of it."""
        lie, part, total = self.server.lie, data[first : last + 1], len(data)
        span: str | None = f"bytes {first}-{last}/{total}"
        headers: dict[str, str] = {}
        if lie == "shifted" and total > 1:
            first, last = (first - 1, last - 1) if first else (1, last + 1)
            part, span = data[first : last + 1], f"bytes {first}-{last}/{total}"
        elif lie == "unsaid":
            span = None
        elif lie == "shorter":
            span, part = f"bytes {first}-{last - 1}/{total}", part[:-1]
        elif lie == "longer":
            part = data[first : last + 2]
        elif lie == "total":
            span = f"bytes {first}-{last}/{total + 1}"
        elif lie == "star":
            span = f"bytes {first}-{last}/*"
        elif lie == "rangeless":
            span = f"bytes */{total}"
        elif lie == "whole":
            self._answer(200, data)
            return
        elif lie == "encoded":
            headers["Content-Encoding"] = "gzip"
        elif lie == "parts":
            headers["Content-Type"] = "multipart/byteranges; boundary=x"
        elif lie in ("endless", "cut", "drip"):
            headers["Transfer-Encoding"] = "chunked"
        self._answer(206, part, span, headers)

    def _answer(
        self,
        status: int,
        data: bytes,
        span: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        headers = headers or {}
        self.send_response(status)
        if "Transfer-Encoding" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{self.server.version}"')
        if span:
            self.send_header("Content-Range", span)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            if "Transfer-Encoding" in headers:
                self._chunks(data)
            elif self.command != "HEAD":
                # Who has the answer is to find it counted.
                self.server.sent += len(data)
                self.wfile.write(data)

    def _chunks(self, data: bytes) -> None:
        """Send without a length: too little, without end, or a byte now and then."""
        if self.server.lie == "cut":
            self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data) - 1, data[:-1]))
            return
        drips = self.server.lie == "drip"
        part = b"1\r\nx\r\n" if drips else b"10000\r\n" + bytes(65536) + b"\r\n"
        limit = time.monotonic() + DEADLINE
        while time.monotonic() < limit:
            self.wfile.write(part)
            self.server.sent += len(part)
            time.sleep(0.05 if drips else 0)

    def do_HEAD(self) -> None:
        path = Path(self.translate_path(self.path))
        self._answer(200 if path.is_file() else 404, path.read_bytes() if path.is_file() else b"")


class WebServer(http.server.ThreadingHTTPServer):
    """Serves a folder with ranges, in threads of this process.

    Attributes
    ----------
    asked : list of str
        The ranges of all requests.
    faults : list
        What happens to the next requests: a status, 0 for a connection that is cut, or seconds (a
        float) of waiting before the answer.
    ranges : bool
        Whether ranges are given.
    version : str
        The ETag of everything.
    lie : str
        What is wrong with answers that should be ranges.
    sent : int
        Bytes of all bodies.
    folder : Path
        What is served.
    """

    daemon_threads = True
    handler = _Ranges

    def __init__(self, folder: Path, port: int = 0) -> None:
        super().__init__(
            ("127.0.0.1", port), functools.partial(self.handler, directory=str(folder))
        )
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[str] = []
        self.faults: list[int | float] = []
        self.ranges = True
        self.version = "first"
        self.lie = ""
        self.sent = 0
        self.folder = folder

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that has gone

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            thread.join()
            self.server_close()


class Web(Process):
    """The same in a process of its own.

    A thread of this process could not serve a region of this process: whoever touches that holds
    the GIL.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.root = folder / "root"
        self.root.mkdir()
        program = (
            f"import sys; sys.path[:0] = {sys.path!r}; from pathlib import Path; "
            "from support.servers import WebServer; "
            f"WebServer(Path({str(self.root)!r}), {port}).serve_forever()"
        )
        super().__init__([sys.executable, "-c", program], folder)

    def is_up(self) -> bool:
        return _listens(self.port)


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def no_redis() -> str | None:
    """Say what is missing for a Redis server and its client."""
    if not shutil.which(REDIS_SERVER) or not shutil.which("redis-cli"):
        return f"{REDIS_SERVER} or redis-cli is not installed (apt-get install redis-server)"
    return no_module("redis")()


def no_module(*names: str) -> Callable[[], str | None]:
    """Return a probe for libraries."""

    def probe() -> str | None:
        from importlib.util import find_spec

        missing = [name for name in names if find_spec(name) is None]
        return f"{', '.join(missing)} not installed" if missing else None

    return probe
