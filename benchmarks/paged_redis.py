"""An array in Redis in 256 KiB blocks, in order and at random, against redis-py itself."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks._baselines import touch_by_threads
from benchmarks._measure import Effort, Finding
from benchmarks._paging import QUARTER, Chunks, Way, in_turn, speed, timed
from benchmarks._report import run_alone
from benchmarks._stores import elapsing, needed, redis_server, touch_starts, warmed
from pagemove import PagedMemory
from pagemove.stores import RedisStore

_BLOCK = 256 << 10
_BATCH = 8  # keys of one MGET: 2 MiB
_PIPELINED = 2  # MGETs of one round trip
_THREADS = 8
_IN_ORDER, _AT_RANDOM = 0.8, 0.7


def _in_order(url: str, keys: list[str]) -> Callable[[], int]:
    """Return what reads all keys into a buffer, many a round trip."""
    import redis

    client = redis.Redis.from_url(url)
    buffer = memoryview(bytearray(_BATCH * _PIPELINED * _BLOCK))

    def read() -> int:
        for first in range(0, len(keys), _BATCH * _PIPELINED):
            pipeline = client.pipeline(transaction=False)
            for start in range(first, first + _BATCH * _PIPELINED, _BATCH):
                pipeline.mget(keys[start : start + _BATCH])
            values = itertools.chain.from_iterable(pipeline.execute())
            for place, value in enumerate(values):
                buffer[place * _BLOCK : (place + 1) * _BLOCK] = value
        return len(keys)

    return read


def _at_random(url: str, keys: list[str]) -> Callable[[], int]:
    """Return what reads so many keys at random, in threads with a connection each."""
    import redis

    client = redis.Redis.from_url(url)
    random = np.random.default_rng(1)

    def run(some: list[str]) -> None:
        buffer = memoryview(bytearray(_BLOCK))
        for key in some:
            buffer[:] = client.get(key)

    def read() -> int:
        order = [keys[number] for number in random.permutation(len(keys))]
        parts = [order[first::_THREADS] for first in range(_THREADS)]
        threads = [threading.Thread(target=run, args=(part,)) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(keys)

    return read


def measure(effort: Effort) -> list[Finding]:
    needed("redis")
    import redis

    findings = []
    with redis_server() as url:
        # Twice in the server, and a quarter of it here.
        nbytes = effort.file
        blocks = nbytes // _BLOCK
        keys = [f"key {number}" for number in range(blocks)]
        client = redis.Redis.from_url(url)
        random = np.random.default_rng(0)
        with RedisStore(url, "array", nbytes=nbytes, create=True, block_size=_BLOCK) as writer:
            for number, key in enumerate(keys):
                value = random.bytes(_BLOCK)
                client.set(key, value)
                writer.write(number * _BLOCK, value)
        store = RedisStore(url, "array")
        limit = nbytes // QUARTER
        for place in elapsing():
            with (
                place.here(),
                PagedMemory(store, block_size=_BLOCK, resident_limit=limit) as region,
            ):
                warmed(region)
                seeds = itertools.count()

                def at_random(region: PagedMemory = region, seeds=seeds) -> int:
                    order = Chunks(nbytes, _BLOCK, next(seeds)).take(blocks)
                    touch_by_threads(region.address, order, _THREADS)
                    return blocks

                ordered = f"in order; {place.name}"
                scattered = f"at random, {_THREADS} threads; {place.name}"
                pipelined = "redis-py: MGETs, pipelined"
                single = f"redis-py: GET, {_THREADS} threads"
                jobs = {
                    pipelined: _in_order(url, keys),
                    ordered: touch_starts(region.address, nbytes, _BLOCK),
                    single: _at_random(url, keys),
                    scattered: at_random,
                }

                def once(job: Callable[[], int], place=place, region=region) -> float:
                    region.evict()
                    return timed(job, blocks, place, blocks)

                ways = [Way(name, partial(once, job)) for name, job in jobs.items()]
                samples = in_turn(ways, effort.passes)
                assert region.stats().errors == 0
            findings.append(speed(samples, ordered, pipelined, _IN_ORDER))
            findings.append(speed(samples, scattered, single, _AT_RANDOM))
    return findings


if __name__ == "__main__":
    run_alone(measure)
