"""Chains of fsspec's wrappers over a server that lies now and then: right bytes, or an error."""

from __future__ import annotations

import functools
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pagemove import StoreError
from pagemove.stores import FsspecStore
from support.chains import CHAINS
from support.descriptors import no_leak  # noqa: F401 (a fixture)
from support.servers import WebServer
from support.store_kinds import load_libraries

from .paging import SOAK

pytestmark = [
    pytest.mark.needs("fsspec", "web"),
    # fsspec's cache of blocks leaves closing its file to the collector.
    pytest.mark.filterwarnings("ignore:unclosed file <_io.BufferedRandom:ResourceWarning"),
]

_CONTENTS = np.random.default_rng(11).bytes(400_003)
_SECONDS = 1.5
_LIES = ("shifted", "unsaid", "shorter", "longer", "total", "star", "rangeless", "whole", "encoded")
_LIES += ("parts", "cut")
_NAMES = ("plain", "tar", "tar.gz", "zip", "zip, deflated", "blockcache", "filecache", "reference")


@pytest.fixture(scope="module", autouse=True)
def loop() -> None:
    """Start what fsspec keeps open for good, before anybody counts descriptors."""
    load_libraries()
    from fsspec.asyn import get_loop

    get_loop()


def _lie(web: WebServer, over: threading.Event, seed: int) -> None:
    chance = random.Random(seed)
    while not over.wait(chance.random() * 0.02):
        web.lie = chance.choice(["", "", *_LIES])
        if chance.random() < 0.3:
            web.faults.append(chance.choice([0, 500, 503, 0.01]))
    web.lie = ""
    web.faults.clear()


def _right(store: FsspecStore, chance: random.Random) -> bool:
    start = chance.randrange(len(_CONTENTS))
    length = min(chance.randrange(1, 70_000), len(_CONTENTS) - start)
    data = bytearray(length)
    store.read_into(start, data)
    return data == _CONTENTS[start : start + length]


def _read(store: FsspecStore, over: threading.Event, seed: int, found: list[str]) -> None:
    chance = random.Random(seed)
    while not over.is_set():
        try:
            found.append("right" if _right(store, chance) else "wrong")
        except StoreError:
            found.append("error")


def _together(calls: list[Callable[[], None]], over: threading.Event) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    over.wait(_SECONDS)
    over.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("name", _NAMES)
def test_whatever_is_answered_no_byte_is_another(tmp_path: Path, name: str) -> None:
    seed = _NAMES.index(name) if SOAK <= 1 else time.time_ns()
    with WebServer(tmp_path).running() as web:

        def placed(file: str, data: bytes) -> str:
            (tmp_path / file).write_bytes(data)
            return f"{web.url}/{file}"

        plain = lambda where, _folder, data: where("file", data)  # noqa: E731
        url = {**CHAINS, "plain": plain}[name](placed, tmp_path, _CONTENTS)
        found: list[str] = []
        over = threading.Event()
        with FsspecStore(url, timeout=0.3) as store:
            readers = [functools.partial(_read, store, over, seed + n, found) for n in range(4)]
            _together([functools.partial(_lie, web, over, seed), *readers], over)
            assert "wrong" not in found, seed
            assert "right" in found
        with FsspecStore(url, timeout=30) as store:
            chance = random.Random(seed)
            assert all(_right(store, chance) for _ in range(20)), seed
