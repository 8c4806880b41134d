"""stores/redis*.py: what is lost is told, one writes at a time, and servers that come and go."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pagemove import StoreError
from pagemove.stores import RedisStore
from pagemove.stores.redis_layout import Layout, groups_for
from support.servers import Redis, free_ports, redis_cluster, wait_until

pytestmark = pytest.mark.needs("redis")

K = 1024
N = 300 * K + 7
CONTENTS = np.random.default_rng(1).bytes(N)


def read(store: RedisStore, offset: int = 0, length: int | None = None) -> bytes:
    buffer = bytearray(store.nbytes - offset if length is None else length)
    store.read_into(offset, buffer)
    return bytes(buffer)


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


def create(server: Redis, key: str, contents: bytes = CONTENTS, **options: object) -> RedisStore:
    options = {"block_size": 16 * K, **options}
    store = RedisStore(server.url, key, nbytes=len(contents), create=True, **options)
    store.write(0, contents)
    return store


def key_of(store: RedisStore, block: int) -> str:
    return store._layout.block_key(block)


class TestLayout:
    @pytest.mark.parametrize("block_size", [4 * K, 64 * K, 2048 * K])
    @pytest.mark.parametrize("nbytes", [1, 5 << 20, (1 << 30) + 1])
    def test_every_block_has_a_place_of_its_own(self, nbytes, block_size):
        layout = Layout("a", "id", nbytes, block_size, groups_for(nbytes, block_size))
        blocks = range(layout.blocks)
        places = {(layout.group(block), layout.bit(block)) for block in blocks}
        assert len(places) == layout.blocks
        assert max(bit for _, bit in places) <= layout.last_bit
        assert {group for group, _ in places} == set(range(layout.groups))

    def test_what_is_read_at_a_time_is_in_one_group(self):
        layout = Layout("a", "id", 1 << 30, 64 * K, groups_for(1 << 30, 64 * K))
        assert {layout.group(block) for block in range(32, 64)} == {1}
        assert layout.groups == 64


class TestOpening:
    def test_finds_the_shape(self, server, key):
        create(server, key).close()
        with RedisStore(server.url, key) as store:
            assert (store.nbytes, store.block_size, store.writable) == (N, 16 * K, False)
            assert store.key == key
        with pytest.raises(ValueError, match=f"has {N} bytes, not 5"):
            RedisStore(server.url, key, nbytes=5)

    def test_what_is_not_there(self, server, key):
        with pytest.raises(FileNotFoundError, match="make it with create=True"):
            RedisStore(server.url, key)

    def test_what_is_there_already(self, server, key):
        with create(server, key), pytest.raises(FileExistsError, match="without create=True"):
            RedisStore(server.url, key, nbytes=5, create=True)

    def test_a_creator_that_died_half_way(self, server, key):
        create(server, key).close()
        server.say("HSET", f"pagemove:{{{key}}}:meta", "ready", 0)
        with pytest.raises(FileNotFoundError, match="never finished"):
            RedisStore(server.url, key)
        with RedisStore(server.url, key, nbytes=100, create=True) as store:
            assert read(store) == bytes(100)

    def test_nothing_of_an_earlier_array_is_seen(self, server, key):
        create(server, key).close()
        server.say("DEL", f"pagemove:{{{key}}}:meta")
        with RedisStore(server.url, key, nbytes=N, create=True, block_size=16 * K) as store:
            assert read(store) == bytes(N)

    def test_refuses(self, server):
        for bad in ("", "a{b", "}"):
            with pytest.raises(ValueError, match="name without braces"):
                RedisStore(server.url, bad)
        with pytest.raises(ValueError, match="give nbytes"):
            RedisStore(server.url, "a", create=True)

    def test_no_server(self):
        with pytest.raises(StoreError, match="cannot open RedisStore") as caught:
            RedisStore("redis://me:secret@127.0.0.1:1", "a", timeout=0.2)
        assert "secret" not in str(caught.value)

    def test_a_password(self, own, key):
        server = own()
        server.say("CONFIG", "SET", "requirepass", "secret")
        with pytest.raises(StoreError, match=r"[Aa]uth") as caught:
            RedisStore(server.url, key, timeout=30)
        assert caught.value.errno == errno.EACCES
        url = server.url.replace("//", "//:secret@")
        with RedisStore(url, key, nbytes=10, create=True) as store:
            assert "secret" not in repr(store)
        with RedisStore(server.url, key, password="secret") as store:
            assert read(store) == bytes(10)

    def test_removing(self, server, key):
        store = create(server, key)
        store.remove()
        pattern = f"pagemove:{{{key}".replace("[", r"\[").replace("]", r"\]")
        assert server.say_whole("KEYS", f"{pattern}*") in (b"", b"\n")


class TestBlocks:
    def test_new_is_zeros_and_zeros_take_nothing(self, server, key):
        with RedisStore(server.url, key, nbytes=N, create=True) as store:
            assert read(store) == bytes(N)
            store.write(0, CONTENTS)
            store.write(0, bytes(N))
            assert read(store) == bytes(N)
            assert server.say("STRLEN", key_of(store, 0)) == b":0"

    def test_an_evicted_block_is_an_error_and_not_zeros(self, server, key):
        with create(server, key) as store:
            server.say("DEL", key_of(store, 3))
            assert read(store, 0, 48 * K) == CONTENTS[: 48 * K]
            with RedisStore(server.url, key) as other:
                for one in (store, other):
                    with pytest.raises(StoreError, match="noeviction") as caught:
                        read(one, 47 * K, 2 * K)
                    assert (caught.value.errno, caught.value.offset) == (errno.ENODATA, 48 * K)
            store.write(48 * K, CONTENTS[48 * K : 64 * K])
            assert read(store) == CONTENTS

    @pytest.mark.parametrize("part", ["written", "fence"])
    def test_what_is_known_of_blocks_may_be_evicted_too(self, server, key, part):
        with create(server, key) as store:
            server.say("DEL", getattr(store._layout, part)(0))
            server.say("DEL", key_of(store, 0))
            for use in (lambda: read(store, 0, 10), lambda: store.write(0, b"x" * 16 * K)):
                with pytest.raises(StoreError, match="not there any more"):
                    use()

    def test_an_expired_block(self, server, key):
        with create(server, key) as store:
            server.say("PEXPIRE", key_of(store, 1), 1)
            wait_until(lambda: server.say("EXISTS", key_of(store, 1)) == b":0", "it stays")
            with pytest.raises(StoreError, match="not there any more"):
                read(store)

    def test_a_block_that_somebody_else_has_written(self, server, key):
        with create(server, key) as store:
            server.say("SET", key_of(store, 1), "short")
            with pytest.raises(StoreError, match="block 1 has 5 bytes, not 16384"):
                read(store)

    def test_no_room(self, own, key):
        server = own("--maxmemory", "5mb")
        with RedisStore(server.url, key, nbytes=20 << 20, create=True) as store:
            with pytest.raises(StoreError) as caught:
                store.write(0, os.urandom(20 << 20))
            assert caught.value.errno == errno.ENOSPC
            written = caught.value.offset
            assert written is not None

    def test_eviction_by_the_server_is_never_zeros(self, own, key):
        server = own("--maxmemory", "6mb", "--maxmemory-policy", "allkeys-random")
        contents = np.random.default_rng(2).bytes(12 << 20)
        with RedisStore(server.url, key, nbytes=12 << 20, create=True) as store:
            outcomes = set()
            for offset in range(0, 12 << 20, 64 * K):
                with contextlib.suppress(StoreError):
                    store.write(offset, contents[offset : offset + 64 * K])
            for offset in range(0, 12 << 20, 64 * K):
                try:
                    found = read(store, offset, 64 * K)
                except StoreError:
                    outcomes.add("error")
                else:
                    # Zeros: it was never written, for the write has failed.
                    same = found == contents[offset : offset + 64 * K]
                    outcomes.add("bytes" if same else "zeros")
            assert "error" in outcomes
            assert "zeros" not in outcomes

    def test_readers_see_whole_blocks_only(self, server, key):
        """One process writes, two read: every block is all of one value."""
        with RedisStore(server.url, key, nbytes=64 * K, create=True, block_size=16 * K) as store:
            store.write(0, b"\1" * 64 * K)
            program = textwrap.dedent(
                f"""
                import sys
                from pagemove.stores import RedisStore
                with RedisStore({server.url!r}, {key!r}) as store:
                    seen = set()
                    buffer = bytearray(64 * 1024)
                    print("ready", flush=True)
                    while 0 not in seen:
                        store.read_into(0, buffer)
                        for at in range(0, len(buffer), 16 * 1024):
                            values = set(buffer[at : at + 16 * 1024])
                            assert len(values) == 1, values
                            seen |= values
                    print(len(seen))
                """
            )
            readers = [
                subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
                for _ in range(2)
            ]
            try:
                for reader in readers:
                    assert reader.stdout.readline() == b"ready\n"
                for number in range(1500):
                    store.write(16 * K * (number % 4), bytes([number % 250 + 1]) * 16 * K)
                store.write(0, bytes(64 * K))
                for reader in readers:
                    out, _ = reader.communicate(timeout=30)
                    assert reader.returncode == 0
                    assert int(out) > 2
            finally:
                for reader in readers:
                    reader.kill()
                    reader.communicate()


class TestOneWriter:
    def test_a_second_is_told_who_has_it_and_for_how_long(self, server, key):
        with create(server, key, lease=20), pytest.raises(StoreError) as caught:
            RedisStore(server.url, key, writable=True)
        assert caught.value.errno == errno.EBUSY
        text = str(caught.value)
        assert f"process {os.getpid()} on {os.uname().nodename}, since 2" in text
        assert re.search(r"its lease ends in (19|20)\.\d s", text)

    def test_a_lease_is_kept_while_it_is_used(self, server, key):
        with create(server, key, lease=0.5) as store:
            time.sleep(1.2)  # more than twice as long as it lasts
            with pytest.raises(StoreError, match="another store writes it"):
                RedisStore(server.url, key, writable=True)
            store.write(0, b"still mine")

    def test_a_writer_that_dies_is_followed(self, server, key):
        program = (
            "import os; from pagemove.stores import RedisStore\n"
            f"store = RedisStore({server.url!r}, {key!r}, nbytes={N}, create=True, lease=1)\n"
            "store.write(0, b'left behind'); os._exit(0)"
        )
        subprocess.run([sys.executable, "-c", program], check=True)
        refused = 0
        limit = time.monotonic() + 20
        while True:
            try:
                store = RedisStore(server.url, key, writable=True)
            except StoreError:
                refused += 1
                assert time.monotonic() < limit
                time.sleep(0.05)
            else:
                break
        with store:
            assert refused
            assert read(store, 0, 11) == b"left behind"
            store.write(0, b"goes on")

    def test_one_that_comes_back_cannot_change_a_byte(self, server, key):
        """Its process was stopped for longer than the lease; then somebody else began."""
        first = create(server, key, lease=0.3)
        first._lease.stop()
        wait_until(lambda: server.say("EXISTS", f"pagemove:{{{key}}}:lease") == b":0", "it stays")
        with RedisStore(server.url, key, writable=True) as second:
            second.write(0, b"second")
            for write in (lambda: first.write(0, b"first!"), first.flush):
                with pytest.raises(StoreError, match="another store") as caught:
                    write()
                assert caught.value.errno == errno.EBUSY
            assert read(second, 0, 6) == b"second"
        # For good, although nobody has it now: what it knows may be old.
        with pytest.raises(StoreError, match="another store writes it"):
            first.write(0, b"first!")
        first.close()

    def test_one_that_lost_the_connection_goes_on_if_nobody_came(self, server, key):
        with create(server, key, lease=0.3) as store:
            store._lease.stop()
            lease = f"pagemove:{{{key}}}:lease"
            wait_until(lambda: server.say("EXISTS", lease) == b":0", "it stays")
            store.write(0, b"goes on")
            store._lease.keep(store._client)
            wait_until(lambda: server.say("EXISTS", lease) == b":1", "it is not taken up")
            with pytest.raises(StoreError, match="another store writes it"):
                RedisStore(server.url, key, writable=True)

    def test_pickling_hands_it_over(self, server, key):
        store = create(server, key)
        with pickle.loads(pickle.dumps(store)) as other:
            other.write(0, b"other")
            assert read(store, 0, 5) == b"other"
            for again in (lambda: store.write(0, b"store"), lambda: pickle.dumps(store)):
                with pytest.raises(StoreError, match="another store writes it"):
                    again()
            assert read(other, 0, 5) == b"other"
        store.write(0, b"store")
        assert read(store, 0, 5) == b"store"
        store.close()

    def test_a_process_started_anew_from_the_same_pickle_goes_on(self, server, key):
        pickled = pickle.dumps(create(server, key))
        died = pickle.loads(pickled)
        died.write(0, b"before")
        with pickle.loads(pickled) as store:
            assert read(store, 0, 6) == b"before"
            store.write(0, b"after!")
            with pytest.raises(StoreError, match="another store"):
                died.write(0, b"zombie")
            assert read(store, 0, 6) == b"after!"
        died.close()

    def test_closing_lets_go_at_once(self, server, key):
        create(server, key, lease=1000).close()
        RedisStore(server.url, key, writable=True).close()


class TestServersThatComeAndGo:
    def test_one_that_starts_again_with_its_data(self, own, key):
        server = own("--appendonly", "yes", "--appendfsync", "always")
        with create(server, key, timeout=20, fsync=True) as store:
            store.flush()
            server.kill()
            found: list[bytes] = []
            reading = threading.Thread(target=lambda: found.append(read(store)))
            reading.start()
            time.sleep(0.3)  # so that it has been refused some times
            server.start()
            reading.join()
            assert found == [CONTENTS]
            store.write(7, b"goes on")
            store.flush()
            server.kill()
            server.start()
            assert read(store) == CONTENTS[:7] + b"goes on" + CONTENTS[14:]

    def test_one_that_is_gone_is_an_error_in_time(self, own, key):
        server = own()
        store = create(server, key, timeout=0.5)
        server.kill()
        before = time.monotonic()
        with pytest.raises(StoreError, match="cannot read"):
            read(store)
        with pytest.raises(StoreError, match="cannot write"):
            store.write(0, b"x")
        store.close()
        assert time.monotonic() - before < 10

    def test_one_that_hangs_is_an_error_in_time(self, own, key):
        server = own()
        with create(server, key, timeout=0.5) as store:
            server.freeze()
            with pytest.raises(StoreError) as caught:
                read(store)
            assert caught.value.errno == errno.ETIMEDOUT
            server.freeze(on=False)
            assert read(store) == CONTENTS

    def test_one_that_has_forgotten_everything(self, own, key):
        server = own()
        with create(server, key, timeout=2) as store, RedisStore(server.url, key) as reader:
            server.kill()
            server.start()
            for use in (
                lambda: read(store),
                lambda: read(reader),
                lambda: store.write(0, bytes(32 * K)),
                store.flush,
            ):
                with pytest.raises(StoreError, match="not there any more"):
                    use()

    def test_one_that_comes_back_with_less(self, own, key):
        """An older snapshot: the blocks are there, and whole, and not what was written last."""
        server = own()
        with create(server, key, timeout=5) as store:
            server.say("SAVE")
            store.write(0, b"written since")
            server.kill()
            server.start()
            for use in (
                lambda: read(store, 0, 13),
                lambda: store.write(0, bytes(32 * K)),
                store.flush,
            ):
                with pytest.raises(StoreError, match="lost writes that it had acknowledged"):
                    use()

    def test_cut_connections_are_not_noticed(self, server, key):
        with create(server, key) as store:
            for number in range(5):
                server.say("CLIENT", "KILL", "TYPE", "normal")
                store.write(number, b"x")
                server.say("CLIENT", "KILL", "TYPE", "normal")
                assert read(store, 0, 5) == b"x" * (number + 1) + CONTENTS[number + 1 : 5]


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


def calls(server: Redis, command: str) -> int:
    """Count how often a command was carried out."""
    found = re.search(rf"cmdstat_{command}:calls=(\d+)".encode(), server.say_whole("INFO", "all"))
    return int(found[1]) if found else 0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Redis]]:
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as members:
        yield members


class TestCluster:
    LARGE = np.random.default_rng(5).bytes(20 << 20)

    def test_blocks_are_on_all_nodes(self, cluster, key):
        with create(cluster[0], key, self.LARGE, block_size=64 * K) as store:
            assert store._client.nodes == 3
            assert read(store) == self.LARGE
            counts = [int(node.say("DBSIZE")[1:]) for node in cluster]
            assert min(counts) > 20
        with RedisStore(cluster[1].url, key) as store:
            assert read(store) == self.LARGE
        with RedisStore(cluster[2].url, key, writable=True) as store:
            store.remove()

    def test_slots_that_move_are_followed(self, cluster, key):
        with (
            create(cluster[0], key, self.LARGE, block_size=64 * K) as store,
            RedisStore(cluster[1].url, key) as reader,
        ):
            assert read(reader, 0, 100) == self.LARGE[:100]
            first = f"127.0.0.1:{cluster[0].port}"
            names = [node.say_whole("CLUSTER", "MYID").decode().strip() for node in cluster]
            moving = subprocess.Popen(
                ["redis-cli", "--cluster", "reshard", first, "--cluster-from", names[0],
                 "--cluster-to", names[1], "--cluster-slots", "2000", "--cluster-yes"],
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
            rounds = 0
            while moving.poll() is None or not rounds:
                offset = (rounds * 700_001) % (19 << 20)
                store.write(offset, self.LARGE[offset : offset + 100_000])
                assert read(reader, offset, 1 << 20) == self.LARGE[offset : offset + (1 << 20)]
                rounds += 1
            assert moving.returncode == 0
            store.flush()
            assert read(store) == self.LARGE
            store.remove()

    def test_a_node_that_starts_again_without_its_data(self, cluster, key):
        """The last test of this cluster: it loses what the node had."""
        with create(cluster[0], key, self.LARGE, block_size=64 * K, timeout=20) as store:
            before = self.LARGE
            cluster[2].kill()
            cluster[2].start()
            wait_until(
                lambda: b"cluster_state:ok" in cluster[2].say_whole("CLUSTER", "INFO"),
                "it does not come back",
            )
            outcomes = set()
            for offset in range(0, len(before), 2 << 20):
                try:
                    assert read(store, offset, 2 << 20) == before[offset : offset + (2 << 20)]
                    outcomes.add("bytes")
                except StoreError as error:
                    assert "not there any more" in str(error)  # noqa: PT017
                    outcomes.add("error")
            assert outcomes == {"bytes", "error"}
