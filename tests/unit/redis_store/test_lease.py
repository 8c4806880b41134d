"""stores/redis_lease.py: one writes at a time."""

from __future__ import annotations

import errno
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from pagemove import StoreError
from pagemove.stores import RedisStore
from support.children import child, living_child
from support.servers import Redis, wait_until
from unit.redis_store.arrays import CONTENTS, N, create, read

pytestmark = pytest.mark.needs("redis")


def _reads(server: Redis, key: str) -> set[int]:
    with RedisStore(server.url, key) as store:
        return set(read(store, 0, 100))


class TestOneWriter:
    @pytest.mark.lean
    def test_a_second_writer_gets_the_holder_and_the_time_left(self, server, key):
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

    @pytest.mark.lean
    def test_one_that_comes_back_cannot_change_a_byte(self, server, key):
        """Its process was stopped for longer than the lease; then somebody else began."""
        first = create(server, key, lease=0.3)
        first._lease.stop()
        wait_until(lambda: server.say("EXISTS", f"pagemove:{{{key}}}:lease") == b":0", "it stays")
        with RedisStore(server.url, key, writable=True) as second:
            second.write(0, b"second")
            for write in (
                lambda: read(first, 0, 6),
                lambda: first.write(0, b"first!"),
                first.flush,
            ):
                with pytest.raises(StoreError, match="another store") as caught:
                    write()
                assert caught.value.errno == errno.EBUSY
            assert read(second, 0, 6) == b"second"
        # For good, although nobody has it now: what it knows may be old.
        with pytest.raises(StoreError, match="another store writes it"):
            first.write(0, b"first!")
        first.close()

    def test_a_process_that_was_stopped(self, server, key):
        """For longer than the lease, in the middle of writing: not a byte of it comes after."""
        program = textwrap.dedent(
            f"""
            from pagemove import StoreError
            from pagemove.stores import RedisStore
            store = RedisStore({server.url!r}, {key!r}, writable=True, lease=0.3)
            print("ready", flush=True)
            try:
                while True:
                    store.write(0, b"1" * {N})
            except StoreError as error:
                print(error.errno, flush=True)
            for use in (store.flush, lambda: store.read_into(0, bytearray(5))):
                try:
                    use()
                except StoreError as error:
                    print(error.errno, flush=True)
            """
        )
        create(server, key).close()
        command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", program]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as first:
            try:
                assert first.stdout.readline() == b"ready\n"
                wait_until(lambda: _reads(server, key) == {ord("1")}, "it does not write")
                first.send_signal(signal.SIGSTOP)
                lease = f"pagemove:{{{key}}}:lease"
                wait_until(lambda: server.say("EXISTS", lease) == b":0", "it stays")
                with RedisStore(server.url, key, writable=True) as second:
                    second.write(0, b"2" * N)
                    second.flush()
                    first.send_signal(signal.SIGCONT)
                    out, _ = first.communicate(timeout=30)
                    assert out.split() == [str(errno.EBUSY).encode()] * 3
                    assert read(second) == b"2" * N
            finally:
                first.kill()

    def test_one_that_the_server_has_forgotten(self, own, key):
        """A server that comes back without the last writer gives the next the same number."""
        server = own()
        create(server, key).close()
        server.say("SAVE")
        forgotten = RedisStore(server.url, key, writable=True)
        server.kill()
        server.start()
        with RedisStore(server.url, key, writable=True) as store:
            assert store._lease.epoch == forgotten._lease.epoch or not forgotten._lease.epoch
            forgotten._lease.stop()
            store.write(0, b"store")
            for use in (
                lambda: forgotten.write(0, b"forgotten"),
                forgotten.flush,
                lambda: read(forgotten),
            ):
                with pytest.raises(StoreError, match="another store"):
                    use()
            assert read(store, 0, 5) == b"store"
        forgotten.close()

    def test_fences_that_are_higher_than_the_count_of_writers(self, server, key):
        """The node that counts the writers came back with an older count."""
        with create(server, key) as store:
            fence = store._layout.fence(0)
        server.say("HSET", fence, "epoch", 50, "holder", "50 somebody")
        with RedisStore(server.url, key, writable=True) as store:
            store.write(0, b"next")
            store.flush()
            assert read(store) == b"next" + CONTENTS[4:]
            assert store._lease.epoch == 51
        assert server.say("HGET", f"pagemove:{{{key}}}:meta", "epoch") == b"$2"

    @pytest.mark.lean
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

    @pytest.mark.lean
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

    def test_one_that_could_not_be_handed_over_is_kept(self, server, key, monkeypatch):
        def cut(*_: object) -> None:
            raise ConnectionResetError(errno.ECONNRESET, "cut")

        with create(server, key, lease=2) as store:
            with monkeypatch.context() as patch:
                patch.setattr(type(store._lease), "_renew", cut)
                with pytest.raises(StoreError, match="cannot hand over"):
                    pickle.dumps(store)
            renewed = []
            real = store._lease._renew
            monkeypatch.setattr(
                store._lease, "_renew", lambda *given: (real(*given), renewed.append(given))
            )
            wait_until(lambda: bool(renewed), "nobody renews it")
            store.write(0, b"still mine")

    @pytest.mark.lean
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

    @pytest.mark.needs("fork")
    def test_a_forked_child_is_another_store(self, server, key):
        """With the parent's numbers its writes would be taken for the parent's."""
        with create(server, key) as store:

            def use() -> tuple[bytes, list[int]]:
                codes = []
                for call in (
                    lambda: store.write(0, b"child!"),
                    lambda: pickle.dumps(store),
                    store.remove,
                ):
                    with pytest.raises(StoreError, match="another store writes it: writer 1, proc"):
                        call()
                    codes.append(1)
                store.flush()
                found = read(store, 0, 6)
                store.close()
                return found, codes

            store.write(0, b"parent")
            assert child(use) == (b"parent", [1, 1, 1])
            store.write(6, b"goes on")
            store.flush()
            assert read(store, 0, 13) == b"parentgoes on"

    @pytest.mark.needs("fork")
    def test_a_forked_child_follows_when_the_parent_has_closed(self, server, key):
        store = create(server, key)

        def use() -> bytes:
            store.write(0, b"child!")
            store.flush()
            store.close()
            return b"done"

        with living_child() as other:
            store.close()
            assert child(use) == b"done"
            assert other.run(os.getpid) == other.pid
        with RedisStore(server.url, key) as reader:
            assert read(reader, 0, 8) == b"child!" + CONTENTS[6:8]

    @pytest.mark.needs("fork")
    def test_a_forked_child_waits_for_no_thread_of_the_parent(self, server, key):
        with create(server, key) as store, store._lock, store._holding:
            assert child(read, store, 0, 9) == CONTENTS[:9]

    def test_closing_lets_go_at_once(self, server, key):
        create(server, key, lease=1000).close()
        RedisStore(server.url, key, writable=True).close()
