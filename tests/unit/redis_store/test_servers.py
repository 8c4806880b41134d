"""stores/redis_client.py: servers that come and go, one or a cluster of them."""

from __future__ import annotations

import errno
import shutil
import subprocess
import threading
import time

import numpy as np
import pytest

from pagemove import StoreError
from pagemove.stores import RedisStore
from support.servers import free_ports, wait_until
from unit.redis_store.arrays import CONTENTS, K, N, create, read

pytestmark = pytest.mark.needs("redis")


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


class TestEncrypted:
    def test_values_of_all_sizes(self, own, key, tmp_path):
        if not shutil.which("openssl"):
            pytest.skip("openssl is not installed")
        key_file, certificate = tmp_path / "key", tmp_path / "certificate"
        files = ("-keyout", key_file, "-out", certificate)
        names = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, *names]
        subprocess.run(command, check=True, capture_output=True)
        port = free_ports(2)[1]  # the first is what the server has besides
        tls = ("--tls-port", str(port), "--tls-auth-clients", "no", "--tls-ca-cert-file")
        files = (certificate, "--tls-cert-file", certificate, "--tls-key-file", key_file)
        own(*tls, *map(str, files))
        options = {"ssl_ca_certs": str(certificate)}
        url = f"rediss://127.0.0.1:{port}"
        size = {"nbytes": N, "block_size": 16 * K}
        with RedisStore(url, key, create=True, **size, **options) as store:
            store.write(0, CONTENTS)
            for length in (1, 100, 16 * K, 100 * K, N):
                assert read(store, 0, length) == CONTENTS[:length]
            assert read(store, 17 * K, 40 * K) == CONTENTS[17 * K : 57 * K]
        with pytest.raises(StoreError, match="certificate"):
            RedisStore(url, key, timeout=1)


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
