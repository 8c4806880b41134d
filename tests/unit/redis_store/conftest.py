"""Servers that the tests of RedisStore share, and those that a test may kill."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.servers import Redis, free_ports, redis_cluster


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with Redis(tmp_path_factory.mktemp("redis"), free_ports(1)[0]) as running:
        yield running


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Callable[..., Redis]]:
    """Run servers that a test may kill."""
    with contextlib.ExitStack() as stack:

        def start(*options: str) -> Redis:
            server = Redis(tmp_path / "redis", free_ports(1)[0], *options)
            return stack.enter_context(server)

        yield start


@pytest.fixture(autouse=True)
def key(request: pytest.FixtureRequest) -> str:
    return f"{request.node.name}-{os.getpid()}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Redis]]:
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as members:
        yield members
