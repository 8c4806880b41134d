"""Under gevent, in a notebook, in uvicorn and gunicorn: the real ones."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support.servers import WebServer, free_ports, wait_until

pytestmark = pytest.mark.needs("paging", "fork")

ITEMS = 100_000
DEADLINE = 100


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """Serve an array, and an archive that has it."""
    root = tmp_path / "root"
    root.mkdir()
    np.save(root / "array.npy", np.arange(ITEMS))
    with zipfile.ZipFile(root / "array.zip", "w") as archive:
        archive.write(root / "array.npy", "array.npy")
    with WebServer(root).running() as server:
        yield server.url


# Without a main guard. What it opens is of stores in other processes, and of fsspec in this one.
_PLAIN = """
import sys, pagemove
url = {url!r}
print("begins", flush=True)
with pagemove.PagedMemory(nbytes=1 << 20) as region:
    array = region.asarray("u1")
    array[:] = 3
    print(array.sum())
    del array
for source in (url + "/array.npy", "zip://array.npy::" + url + "/array.zip"):
    print(pagemove.open_array(source).sum())
"""
_SAID = f"begins\n{3 << 20}\n" + 2 * f"{ITEMS * (ITEMS - 1) // 2}\n"


@pytest.mark.needs("gevent", "fsspec", "zstandard")
def test_gevent(tmp_path, served):
    script = tmp_path / "script.py"
    script.write_text("from gevent import monkey; monkey.patch_all()\n" + _PLAIN.format(url=served))
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert (result.stdout, result.returncode) == (_SAID, 0), result.stderr


_CELLS = (
    _PLAIN,
    """
    import pagemove.stores
    class Mine(pagemove.stores.Store):
        nbytes = 4096
        def read_into(self, offset, buffer):
            buffer[:] = b"m" * len(buffer)
    try:
        pagemove.PagedMemory(Mine())
    except TypeError as error:
        print(error)
    """,
    """
    region = pagemove.PagedMemory(nbytes=1 << 20)
    region.asarray("u1")[:] = 1
    region.close()
    """,
)

_NOTEBOOK = """
import sys, nbformat
from nbclient import NotebookClient
cells = [nbformat.v4.new_code_cell(text) for text in {cells!r}]
book = nbformat.v4.new_notebook(cells=cells)
NotebookClient(book, timeout=60, kernel_name="python3").execute(cwd={folder!r})
for cell in book.cells:
    for output in cell.outputs:
        sys.stdout.write(output.get("text", repr(output)))
"""


@pytest.mark.needs("notebook", "fsspec", "zstandard")
def test_a_notebook(tmp_path, served):
    cells = [textwrap.dedent(cell) for cell in (_CELLS[0].format(url=served), *_CELLS[1:])]
    # As the warning for users without kernel faults would be in what is compared.
    quiet = "import warnings; warnings.filterwarnings('ignore', 'system calls on paged memory')\n"
    cells[0] = f"{quiet}import sys; sys.modules['cloudpickle'] = None\n" + cells[0]
    result = subprocess.run(
        [sys.executable, "-c", _NOTEBOOK.format(cells=cells, folder=str(tmp_path))],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        env=os.environ | {"IPYTHONDIR": str(tmp_path / "ipython")},
    )
    assert result.returncode == 0, result.stderr
    first, said = result.stdout[: len(_SAID)], result.stdout[len(_SAID) :]
    assert first == _SAID
    assert "install cloudpickle, or define it at the top level of a module" in said
    assert said.count("\n") == 1


_APPLICATION = """
import functools, os, pagemove

@functools.cache
def array():
    return pagemove.open_array("array.npy", mode="r+", writeback_interval=None)

def change():
    array()[::1000] += 1
    return str(os.getpid()).encode()

async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        array()
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    body = change()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})

def wsgi(environ, start):
    body = change()
    start("200 OK", [])
    return [body]
"""
_GUNICORN = ("gunicorn", "application:wsgi", "--log-level", "warning", "-b", "127.0.0.1:{port}")
_SERVERS = {
    "uvicorn": (
        *("uvicorn", "application:asgi", "--log-level", "warning", "--port", "{port}"),
        *("--host", "127.0.0.1"),
    ),
    "gunicorn": _GUNICORN,
    "gunicorn, gthread": (*_GUNICORN, "-k", "gthread", "--threads", "2"),
    "gunicorn, gevent": (*_GUNICORN, "-k", "gevent"),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("uvicorn", marks=pytest.mark.needs("uvicorn")),
        pytest.param("gunicorn", marks=pytest.mark.needs("gunicorn")),
        pytest.param("gunicorn, gthread", marks=pytest.mark.needs("gunicorn")),
        pytest.param("gunicorn, gevent", marks=pytest.mark.needs("gunicorn", "gevent")),
    ],
)
def test_a_server_that_is_ended_saves(tmp_path, name):
    """It never flushes; uvicorn ends by raising SIGTERM again."""
    (tmp_path / "application.py").write_text(_APPLICATION)
    np.save(tmp_path / "array.npy", np.zeros(ITEMS, np.int64))
    (port,) = free_ports(1)
    words = [word.format(port=port) for word in _SERVERS[name]]
    with subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as server:
        try:
            wait_until(lambda: _answers(port) or server.poll() is not None, f"{name} is silent")
            server.terminate()
            said, _ = server.communicate(timeout=DEADLINE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
    assert server.returncode in (0, -signal.SIGTERM), said
    changed = np.load(tmp_path / "array.npy")
    assert (changed[::1000] == 1).all(), said
    assert changed.sum() == ITEMS // 1000


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
            return bool(int(answer.read()))
    except OSError:
        return False
