"""Memory that the kernel has without pinning it, in a pipe or a socket, is pinned by the program.

`tests/contract/paging/test_pinning.py` has what the kernel pins by itself.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct

import numpy as np
import numpy.typing as npt
import pytest

import pagemove
from pagemove._native import pager
from support import child

pytestmark = [
    pytest.mark.needs("paging", "fork"),
    pytest.mark.skipif(pager.codec() is None, reason="no liblz4.so.1 nor libzstd.so.1"),
]

MIB = 1 << 20
_SO_ZEROCOPY, _MSG_ZEROCOPY = 60, 0x4000000
_libc = ctypes.CDLL(None, use_errno=True)


def _noise(seed: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 4, MIB, np.uint8)


def _read(fd: int, nbytes: int) -> bytes:
    got = b""
    while len(got) < nbytes:
        got += os.read(fd, nbytes - len(got))
    return got


def _evict_others(others: list[npt.NDArray[np.uint8]]) -> None:
    for _ in range(3):
        for each in others:
            each ^= 1


def _pipe(others: list[npt.NDArray[np.uint8]]) -> bool:
    array = _noise(1)
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, MIB)
    with pagemove.pinned(array):
        where = struct.pack("QQ", array.ctypes.data, MIB)
        sent = _libc.vmsplice(writing, where, ctypes.c_size_t(1), 0)
        assert sent > 0, os.strerror(ctypes.get_errno())
        _evict_others(others)
        got = _read(reading, sent)
    os.close(reading)
    os.close(writing)
    return got == _noise(1).tobytes()[:sent]


def _socket(others: list[npt.NDArray[np.uint8]]) -> bool:
    array = _noise(1)
    listener = socket.create_server(("127.0.0.1", 0))
    sender = socket.socket()
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MIB)
    sender.setsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY, 1)
    sender.connect(listener.getsockname())
    receiver, _ = listener.accept()
    with pagemove.pinned(array):
        sender.setblocking(False)
        sent = sender.send(memoryview(array), _MSG_ZEROCOPY)
        _evict_others(others)
        got = _read(receiver.fileno(), sent)
    for each in (sender, receiver, listener):
        each.close()
    return got == _noise(1).tobytes()[:sent]


_WAYS = {"vmsplice": _pipe, "MSG_ZEROCOPY": _socket}


def _given(way: str) -> list[bool]:
    with pagemove.paged_allocations(8 * MIB, min_size="256KiB"):
        others = [_noise(seed) for seed in range(24)]
        return [_WAYS[way](others) for _ in range(4)]


@pytest.mark.parametrize("way", _WAYS)
def test_what_is_pinned_is_sent_as_it_was(way):
    assert child(_given, way, deadline=60) == [True] * 4
