"""No lost write while the kernel refuses pages at random: no memory, pinned, merged."""

from __future__ import annotations

import contextlib
import errno
import random
import threading
from collections.abc import Iterator

import pytest

from support import child
from support.paging import KIB, MIB
from support.trouble import WAYS, refused

from .hot import Hot

pytestmark = pytest.mark.needs("paging")


@contextlib.contextmanager
def refusals(seed: int) -> Iterator[None]:
    """Refuse some pages on some way, and others on another a moment later."""
    rng = random.Random(seed)
    over = threading.Event()

    def again() -> None:
        while not over.is_set():
            ways = rng.sample(list(WAYS.values()), rng.randint(1, 3))
            period = rng.randint(2, 200)
            how = {"first": rng.randrange(period), "count": rng.randint(1, 5), "period": period}
            with refused(*ways, code=rng.choice((errno.ENOMEM, errno.EBUSY)), **how):
                over.wait(rng.random() * 0.02)

    thread = threading.Thread(target=again)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(
    ("block", "blocks"), [(4 * KIB, 4), (4 * KIB, 200), (64 * KIB, 4), (64 * KIB, 24), (2 * MIB, 4)]
)
@pytest.mark.parametrize("mode", ["r+", "c"])
def test_pages_that_are_refused_at_random(file, mode, block, blocks):
    path = file(max(2 * blocks, 16) * block)
    how = {"store_timeout": 30.0}
    hot = Hot(path, mode, block, blocks, how=how, within=lambda _: refusals(blocks + block))
    assert child(hot.run, deadline=120)["evicted"] > 10
