"""stores/redis_blocks.py: what a flush waits for: replicas, the log."""

from __future__ import annotations

import os
import pickle

import pytest

from pagemove import StoreError
from pagemove.stores import RedisStore
from support.servers import Redis, free_ports, wait_until
from unit.redis_store.arrays import CONTENTS, calls, create, read

pytestmark = pytest.mark.needs("redis")


class TestFlush:
    def test_waits_for_replicas(self, own, server, key, tmp_path):
        with create(server, key, replicas=1, timeout=1) as store:
            with pytest.raises(StoreError, match="0 of 1 replicas have it"):
                store.flush()
            replica = Redis(
                tmp_path / "replica", free_ports(1)[0], "--replicaof", "127.0.0.1", str(server.port)
            )
            with replica:
                wait_until(
                    lambda: b"master_link_status:up" in replica.say_whole("INFO", "replication"),
                    "the replica does not come up",
                )
                store._timeout = 30
                store.write(0, b"twice")
                store.flush()
                replica.say("REPLICAOF", "NO", "ONE")
                with RedisStore(replica.url, key) as copy:
                    assert read(copy) == b"twice" + CONTENTS[5:]

    @pytest.mark.lean
    def test_says_when_the_log_cannot_be_relied_on(self, server, own, key):
        with (
            create(server, key, fsync=True) as store,
            pytest.raises(StoreError, match="keeps no append-only file"),
        ):
            store.flush()
        other = own("--appendonly", "yes", "--appendfsync", "everysec")
        with create(other, key, fsync=True) as store:
            if other.say("WAITAOF", 0, 0, 1).startswith(b"*"):
                store.flush()
            else:
                with pytest.raises(StoreError, match="older than WAITAOF"):
                    store.flush()

    def test_waits_for_the_log(self, own, key):
        server = own("--appendonly", "yes", "--appendfsync", "everysec")
        if not server.say("WAITAOF", 0, 0, 1).startswith(b"*"):
            pytest.skip("the server is older than WAITAOF: set PAGEMOVE_REDIS_SERVER to another")
        with create(server, key, fsync=True, timeout=30) as store:
            store.flush()
            store.write(0, b"once")
            before = calls(server, "waitaof")
            store.flush()
            # Once to see whether it can, and once in earnest.
            assert calls(server, "waitaof") == before + 2
            # Whatever was flushed is in the log.
            server.kill()
            server.start()
            assert read(store) == b"once" + CONTENTS[4:]
            server.say("CONFIG", "SET", "appendfsync", "no")
            store.write(0, b"more")
            store._timeout = 1
            with pytest.raises(StoreError, match="log was not synced in time"):
                store.flush()
            server.say("CONFIG", "SET", "appendfsync", "everysec")
            store._timeout = 30
            store.flush()


class TestWhoeverWrote:
    """No replica ever comes: whoever flushes what was written before is told so, each time."""

    def refused(self, store: RedisStore) -> None:
        for _ in range(2):
            with pytest.raises(StoreError, match="0 of 1 replicas have it"):
                store.flush()

    def test_the_one_that_it_was_handed_to(self, server, key):
        store = create(server, key, replicas=1, timeout=1.2)
        with pickle.loads(pickle.dumps(store)) as other:
            self.refused(other)
        store.close()

    def test_the_one_that_handed_it_over(self, server, key):
        store = create(server, key, replicas=1, timeout=1.2)
        with pickle.loads(pickle.dumps(store)):
            self.refused(store)
        store.close()

    def test_the_successor_of_one_that_died(self, server, key):
        pickled = pickle.dumps(create(server, key, replicas=1, timeout=1.2))
        pid = os.fork()
        if not pid:
            pickle.loads(pickled).write(0, b"left behind")
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        with pickle.loads(pickled) as store:
            self.refused(store)
            assert read(store, 0, 11) == b"left behind"

    def test_the_next_that_opens_it(self, server, key):
        create(server, key).close()
        with RedisStore(server.url, key, writable=True, replicas=1, timeout=1.2) as store:
            self.refused(store)

    @pytest.mark.lean
    def test_nothing_written_is_nothing_to_wait_for(self, server, key):
        with RedisStore(server.url, key, nbytes=100, create=True, replicas=1, timeout=1.2) as store:
            store.flush()
            assert store.flush_retryable

    def test_what_is_lost_is_said_by_every_flush(self, own, key):
        server = own()
        with create(server, key, timeout=5) as store:
            store.flush()
            server.say("SAVE")
            store.write(0, b"since")
            store.flush()
            server.kill()
            server.start()
            for _ in range(3):
                with pytest.raises(StoreError, match="lost writes that it had acknowledged"):
                    store.flush()
