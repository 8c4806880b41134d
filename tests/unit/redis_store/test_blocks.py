"""stores/redis_blocks.py: what is lost is told and never zeros; whole blocks only."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from pagemove import StoreError
from pagemove.stores import RedisStore
from support.servers import wait_until
from unit.redis_store.arrays import CONTENTS, K, N, create, key_of, read

pytestmark = pytest.mark.needs("redis")


class TestBlocks:
    @pytest.mark.lean
    def test_new_is_zeros_and_zeros_take_nothing(self, server, key):
        with RedisStore(server.url, key, nbytes=N, create=True) as store:
            assert read(store) == bytes(N)
            store.write(0, CONTENTS)
            store.write(0, bytes(N))
            assert read(store) == bytes(N)
            assert server.say("STRLEN", key_of(store, 0)) == b":32"

    @pytest.mark.lean
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

    @pytest.mark.lean
    @pytest.mark.parametrize("part", ["written", "fence"])
    def test_what_is_known_of_blocks_may_be_evicted_too(self, server, key, part):
        with create(server, key) as store:
            server.say("DEL", getattr(store._layout, part)(0))
            server.say("DEL", key_of(store, 0))
            for use in (lambda: read(store, 0, 10), lambda: store.write(0, b"x" * 16 * K)):
                with pytest.raises(StoreError, match="not there any more"):
                    use()

    @pytest.mark.lean
    def test_an_expired_block(self, server, key):
        with create(server, key) as store:
            server.say("PEXPIRE", key_of(store, 1), 1)
            wait_until(lambda: server.say("EXISTS", key_of(store, 1)) == b":0", "it stays")
            with pytest.raises(StoreError, match="not there any more"):
                read(store)

    @pytest.mark.lean
    def test_a_block_written_by_another_writer(self, server, key):
        with create(server, key) as store:
            server.say("SET", key_of(store, 1), "short")
            with pytest.raises(StoreError, match="block 1 has 5 bytes, not 16416"):
                read(store)

    @pytest.mark.lean
    def test_a_block_that_is_another(self, server, key):
        """As long as it should be, and of the same array, or of another: it is not this one."""
        with create(server, key) as store, create(server, f"{key}-2", CONTENTS[::-1]) as other:
            for source in (key_of(store, 2), key_of(other, 1)):
                server.say("COPY", source, key_of(store, 1), "REPLACE")
                for start, length in ((16 * K, 16 * K), (17 * K, 1)):
                    with pytest.raises(StoreError, match="is not that block") as caught:
                        read(store, start, length)
                    assert caught.value.offset == 16 * K

    def test_everything_flushed_away(self, own, key):
        server = own()
        with create(server, key) as store, RedisStore(server.url, key) as reader:
            server.say("FLUSHDB")
            for use in (
                lambda: read(store),
                lambda: read(reader),
                lambda: store.write(0, bytes(16 * K)),
                store.flush,
            ):
                with pytest.raises(StoreError, match="not there any more"):
                    use()

    @pytest.mark.lean
    def test_a_bitmap_that_was_made_anew(self, server, key):
        """Its bits say that nothing was written; its length says that it is not the one."""
        with create(server, key) as store, RedisStore(server.url, key) as reader:
            server.say("DEL", key_of(store, 0), store._layout.written(0))
            server.say("SETBIT", store._layout.written(0), 0, 0)
            with pytest.raises(StoreError, match="not there any more"):
                read(reader, 0, 1)

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
