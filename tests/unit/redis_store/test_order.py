"""Requests that arrive late, twice, in another order: no older write lands on a newer one."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import random
import threading
from collections.abc import Iterator

import pytest

from pagemove import StoreError
from pagemove.stores import RedisStore
from pagemove.stores import redis_layout as keys
from pagemove.stores.redis_lease import ACQUIRE, RENEW
from support.redis_proxy import HOLD, KEEP, PASS, TWICE, RedisProxy, is_script
from support.servers import wait_until
from unit.redis_store.arrays import CONTENTS, K, N, create, key_of, read

pytestmark = pytest.mark.needs("redis")

BLOCK = 16 * K


@pytest.fixture
def proxy(server) -> Iterator[RedisProxy]:
    with RedisProxy(server.port).running() as running:
        yield running


def failed_write(
    store: RedisStore, proxy: RedisProxy, offset: int, data: bytes, held: str = keys.WRITE
) -> None:
    """Write what does not arrive for now: neither in time nor, until it is released, later."""
    client, before = store._client, proxy.held
    patient, client._timeout = client._timeout, 0.3
    proxy.rule = lambda words: HOLD if is_script(words, held) else PASS
    # A busy machine may let the time pass before anything of it is on the way.
    while proxy.held == before:
        with pytest.raises(StoreError, match="cannot write"):
            store.write(offset, data)
    proxy.rule = lambda _: PASS
    client._timeout = patient


class TestLate:
    def test_a_late_write_after_a_newer_flush(self, server, key, proxy):
        with create(proxy, key) as store:
            failed_write(store, proxy, 0, b"old" * BLOCK)
            store.write(0, b"new" * BLOCK)
            store.flush()
            assert proxy.release() >= 1
            assert read(store, 0, 3 * BLOCK) == b"new" * BLOCK
            with RedisStore(server.url, key) as reader:
                assert read(reader, 0, 3 * BLOCK) == b"new" * BLOCK

    def test_a_late_write_of_a_part_and_of_zeros(self, key, proxy):
        with create(proxy, key) as store:
            failed_write(store, proxy, 100, b"old")
            failed_write(store, proxy, BLOCK, bytes(BLOCK))
            store.write(200, b"new")
            store.write(BLOCK, bytes(BLOCK))
            store.write(BLOCK + 5, b"5")
            assert proxy.release() >= 2
            expected = bytearray(CONTENTS[: 2 * BLOCK])
            expected[200:203] = b"new"
            expected[BLOCK:] = bytes(5) + b"5" + bytes(BLOCK - 6)
            assert read(store, 0, 2 * BLOCK) == expected

    def test_late_where_nothing_newer_came_is_whole(self, key, proxy):
        """Its outcome was not known: that it lands is as good as that it does not."""
        with create(proxy, key) as store:
            failed_write(store, proxy, 0, b"x" * 2 * BLOCK)
            assert proxy.release() >= 1
            assert read(store, 0, 2 * BLOCK) == b"x" * 2 * BLOCK
            store.write(0, b"y" * BLOCK)
            store.flush()
            assert read(store, 0, BLOCK) == b"y" * BLOCK

    def test_only_blocks_without_a_newer_write_are_taken(self, key, proxy):
        with create(proxy, key) as store:
            failed_write(store, proxy, 0, b"x" * 3 * BLOCK)
            store.write(BLOCK, b"y" * BLOCK)
            proxy.release()
            assert read(store, BLOCK, BLOCK) == b"y" * BLOCK

    def test_a_late_write_to_what_was_lost_is_not_taken_for_the_newest(self, server, key, proxy):
        with create(proxy, key) as store:
            failed_write(store, proxy, 0, b"x" * BLOCK)
            store.write(0, b"y" * BLOCK)
            server.say("DEL", key_of(store, 0))
            proxy.release()
            with pytest.raises(StoreError, match="not there any more"):
                read(store, 0, 1)
            store.write(0, b"z" * BLOCK)
            assert read(store, 0, BLOCK) == b"z" * BLOCK

    @pytest.mark.parametrize("how", ["another process", "closed and opened"])
    def test_a_late_write_of_an_earlier_process(self, server, key, proxy, how):
        """The next one begins to count anew, and is newer all the same."""
        store = create(proxy, key)
        pickled = pickle.dumps(store)
        first = pickle.loads(pickled)
        for number in range(5):
            first.write(0, bytes([number]) * BLOCK)
        failed_write(first, proxy, 0, b"old" * BLOCK)
        if how == "another process":
            second = pickle.loads(pickled)
        else:
            first.close()
            second = RedisStore(server.url, key, writable=True)
        second.write(0, b"new" * BLOCK)
        second.flush()
        assert proxy.release() >= 1
        assert read(second, 0, 3 * BLOCK) == b"new" * BLOCK
        for each in (first, second, store):
            each.close()

    def test_in_a_cluster(self, cluster, key):
        """All of it in the slot of the block."""
        with RedisStore(cluster[0].url, key, nbytes=N, create=True, block_size=BLOCK) as store:
            store.write(0, b"a" * BLOCK)
            turn, view = store._turn, memoryview(b"b" * BLOCK)
            piece = next(store._blocks.batches(0, BLOCK))
            late = turn._replace(numbers=iter([next(turn.numbers)]))
            store.write(0, b"c" * BLOCK)
            with contextlib.suppress(StopIteration):
                store._blocks.write(piece, view, late, {0: 0})
            assert read(store, 0, BLOCK) == b"c" * BLOCK


class TestTwice:
    def test_the_answer_too_many_is_not_the_next_answer(self, key, proxy):
        """What asks for one block twice: the second answer would be taken for the next one's."""
        with create(proxy, key, timeout=5) as store:
            reads = itertools.count()
            proxy.rule = lambda words: (
                TWICE if words[0] == b"MGET" and next(reads) % 2 == 0 else PASS
            )
            for number in range(20):
                store.write(0, bytes([number]) * BLOCK)
                assert read(store, 0, BLOCK) == bytes([number]) * BLOCK
            assert next(reads) >= 40

    def test_a_doubled_write_is_not_confirmed_by_the_first_answer(self, key, proxy):
        with create(proxy, key, timeout=5) as store:
            writes = itertools.count()
            proxy.rule = lambda words: (
                TWICE if is_script(words, keys.WRITE) and next(writes) % 2 == 0 else PASS
            )
            for number in range(20):
                store.write(0, bytes([number]) * BLOCK)
            store.flush()
            assert read(store, 0, BLOCK) == bytes([19]) * BLOCK
            assert next(writes) >= 40

    def test_scripts_that_the_server_has_forgotten(self, server, key):
        with create(server, key) as store:
            server.say("SCRIPT", "FLUSH")
            store.write(0, b"x" * BLOCK)
            store.flush()
            assert read(store, 0, BLOCK) == b"x" * BLOCK


class TestLateLeases:
    """What a lease, an array's beginning or its end was asked for, and by then is not wanted."""

    def keep(self, proxy: RedisProxy, script: str) -> None:
        proxy.rule = lambda words: KEEP if is_script(words, script) else PASS

    def test_taken_by_a_process_that_is_followed(self, server, key, proxy):
        store = create(proxy, key)
        pickled = pickle.dumps(store)
        first = pickle.loads(pickled)
        failed_write(first, proxy, 0, b"first", held=ACQUIRE)
        with pickle.loads(pickled) as second:
            second.write(0, b"second")
            assert proxy.release() >= 1
            second._lease.renew(second._client)
            second.write(0, b"2nd")
            second.flush()
            assert read(second, 0, 6) == b"2ndond"
        first.close()
        store.close()

    def test_renewed_after_it_was_released(self, server, key, proxy):
        self.keep(proxy, RENEW)
        store = create(proxy, key, lease=1000)
        store._lease.renew(store._client)
        store.close()
        assert proxy.release() == 1
        RedisStore(server.url, key, writable=True).close()

    def test_renewed_after_it_was_handed_over_and_expired(self, server, key, proxy):
        lease = f"pagemove:{{{key}}}:lease"
        self.keep(proxy, RENEW)
        store = create(proxy, key, lease=0.3)
        store._lease.renew(store._client)
        proxy.wait_held(1)
        held, proxy._held = proxy._held, []
        pickled = pickle.dumps(store)
        wait_until(lambda: server.say("EXISTS", lease) == b":0", "it stays")
        proxy._held = held
        assert proxy.release() >= 1
        assert server.say("EXISTS", lease) == b":0"
        with pickle.loads(pickled) as other:
            other.write(0, b"other")
        store.close()

    def test_finished_after_it_was_removed(self, server, key, proxy):
        self.keep(proxy, keys.FINISH)
        create(proxy, key).remove()
        assert proxy.release() == 1
        with create(server, key) as store:
            assert read(store) == CONTENTS

    def test_removed_after_it_was_made_anew(self, server, key, proxy):
        self.keep(proxy, keys.REMOVE)
        create(proxy, key).remove()
        with create(server, key) as store:
            assert proxy.release() == 1
            with RedisStore(server.url, key) as reader:
                assert read(reader) == read(store) == CONTENTS

    def test_a_writer_that_was_followed_removes_nothing(self, server, key):
        first = create(server, key, lease=0.3)
        first._lease.stop()
        lease = f"pagemove:{{{key}}}:lease"
        wait_until(lambda: server.say("EXISTS", lease) == b":0", "it stays")
        with RedisStore(server.url, key, writable=True) as second:
            with pytest.raises(StoreError, match="another store"):
                first.remove()
            assert read(second) == CONTENTS
        first.close()


def test_everything_that_a_store_ever_asks_arrives_again(server, key, proxy):
    """Leases, fences, writes, releases, each once more at any later time."""
    random_ = random.Random(7)
    proxy.rule = lambda words: KEEP if words[0] == b"EVAL" else PASS
    model = bytearray(N)
    stores = [RedisStore(proxy.url, key, nbytes=N, create=True, block_size=BLOCK, lease=0.6)]

    def change(store: RedisStore, again: bool) -> None:
        for _ in range(5):
            offset = random_.randrange(N - 3 * BLOCK)
            data = random_.randbytes(random_.randrange(1, 3 * BLOCK))
            model[offset : offset + len(data)] = data
            store.write(offset, data)
            if again:
                proxy.release()
        store.flush()
        assert read(store) == model

    for turn in range(6):
        change(stores[-1], again=turn % 2 == 0)
        if turn % 3 == 0:
            stores.append(pickle.loads(pickle.dumps(stores[-1])))
        else:
            while stores:
                stores.pop().close()
            proxy.release()
            # Nobody has it now, whatever still came of renewals.
            stores.append(RedisStore(proxy.url, key, writable=True, lease=0.6))
        change(stores[-1], again=False)
        assert proxy.release() > 5
        assert read(stores[-1]) == model
    while stores:
        stores.pop().close()
    proxy.release()
    with RedisStore(server.url, key, writable=True) as store:
        assert read(store) == model
        store.remove()
    # Nothing that comes after the end brings it back, or harms the next of its name.
    proxy.release()
    with create(server, key) as store:
        proxy.release()
        assert read(store) == CONTENTS


@pytest.mark.parametrize("seed", range(3))
def test_at_random(server, key, seed):
    """Threads write blocks of their own as a pager does: again until it is confirmed."""
    random_ = random.Random(seed)
    blocks = N // BLOCK
    last: dict[int, bytes] = {}
    with (
        RedisProxy(server.port, seed=seed).running() as proxy,
        create(proxy, key, lease=200) as store,
    ):
        lock = threading.Lock()
        client = store._client
        patient, client._timeout = client._timeout, 0.2

        def rule(words: list[bytes]) -> str:
            with lock:
                if is_script(words, keys.WRITE):
                    return random_.choices([PASS, HOLD, KEEP, TWICE], [6, 1, 2, 1])[0]
                return random_.choices([PASS, TWICE], [9, 1])[0] if words[0] == b"MGET" else PASS

        proxy.rule = rule
        wrong: list[int] = []

        def run(thread: int) -> None:
            numbers = random.Random(thread)
            for _ in range(12):
                block = numbers.randrange(thread, blocks, 4)
                while True:
                    data = numbers.randbytes(8) * (BLOCK // 8)
                    try:
                        store.write(block * BLOCK, data)
                        break
                    except StoreError:
                        continue
                last[block] = data
                with contextlib.suppress(StoreError):
                    if read(store, block * BLOCK, BLOCK) != data:
                        wrong.append(block)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            while each.is_alive():
                each.join(0.02)
                proxy.release()
        proxy.rule = lambda _: PASS
        client._timeout = patient
        store.flush()
        proxy.release()
        assert not wrong
        with RedisStore(server.url, key) as reader:
            for block, data in last.items():
                assert read(reader, block * BLOCK, BLOCK) == data
