"""stores/redis.py and redis_layout.py: what an array is, made, found and refused."""

from __future__ import annotations

import errno

import pytest

from pagemove import StoreError
from pagemove.stores import RedisStore
from pagemove.stores.redis_layout import Layout, groups_for
from unit.redis_store.arrays import K, N, create, read

pytestmark = pytest.mark.needs("redis")


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


@pytest.mark.lean
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
        with pytest.raises(ValueError, match="pass nbytes"):
            RedisStore(server.url, "a", create=True)

    def test_no_server(self):
        with pytest.raises(StoreError, match="cannot open RedisStore") as caught:
            RedisStore("redis://me:secret@127.0.0.1:1", "a", timeout=0.2)
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize(
        "url",
        [
            "redis://:part@whole/rest@127.0.0.1:1/0",
            "redis://me:part@whole?rest@127.0.0.1:1/0",
            "rediss://:part@whole/rest?db=1@127.0.0.1:1",
        ],
    )
    def test_a_password_that_would_be_taken_for_the_host(self, url):
        with pytest.raises(ValueError, match="percent-encoded") as caught:
            RedisStore(url, "a", timeout=0.2)
        assert not any(word in str(caught.value) for word in ("part", "whole", "rest"))

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
