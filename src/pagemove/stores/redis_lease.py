"""Who may write an array in Redis: one at a time, for as long as it says so every few seconds.

A lease is a key that expires: ``TOKEN EPOCH NONCE OWNER``, the token random, the owner for
messages. The epoch counts the writers, and with the nonce it is the *holder*, which no two have in
common, also where a server has come back without the last epochs. Every group of blocks has a fence
with the holder whose writes are taken, and a new writer raises all fences before it reads or writes
anything. So one that was thought dead, and comes back, cannot change a byte, whatever its clock
says: safety depends on the fences alone, the lease only on being refused in time.

A writer whose lease has expired, because the connection was cut, takes it up again if no other
writer has been there meanwhile: what the lease was last is also kept where it does not expire.

Requests may be held up on the way, and arrive twice: each says what it expects to find, and does
nothing if it finds something else.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from pagemove.errors import StoreError
from pagemove.stores.redis_client import Client
from pagemove.stores.redis_direct import Command
from pagemove.stores.redis_layout import lease_key, meta_key

# KEYS: meta, lease. ARGV: token, what the lease becomes, milliseconds, the epoch as it was, as it
# becomes.
ACQUIRE = """
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then return {'gone'} end
local held = redis.call('GET', KEYS[2])
if held and string.sub(held, 1, #ARGV[1]) ~= ARGV[1] then
  return {'held', held, redis.call('PTTL', KEYS[2])}
end
if epoch ~= ARGV[4] then return {'again', epoch} end
redis.call('HSET', KEYS[1], 'epoch', ARGV[5], 'last', ARGV[2])
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return {'ok'}
"""

# KEYS: meta, lease. ARGV: what the lease was, what it is to be, milliseconds.
RENEW = """
local last = redis.call('HGET', KEYS[1], 'last')
if redis.call('EXISTS', KEYS[1]) == 0 then return {'gone'} end
local held = redis.call('GET', KEYS[2])
if (last == ARGV[1] or last == ARGV[2]) and (not held or held == last) then
  redis.call('HSET', KEYS[1], 'last', ARGV[2])
  redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
  return {'ok'}
end
return {'held', held or '', redis.call('PTTL', KEYS[2])}
"""

# KEYS: meta, lease. ARGV: what it was. A renewal that is still on its way finds nothing.
RELEASE = """
if redis.call('HGET', KEYS[1], 'last') == ARGV[1] then redis.call('HDEL', KEYS[1], 'last') end
if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
return {'ok'}
"""

_MOST_ROUNDS = 20


class Lease:
    """The right of one store object to write.

    Parameters
    ----------
    key : str
        Of the array.
    name : str
        Of the store, for messages.
    seconds : float
        How long it lasts after it was renewed last.
    token : str, optional
        Of the object that handed it over.
    """

    def __init__(self, key: str, name: str, seconds: float, token: str | None = None) -> None:
        self._key = key
        self.name = name
        self._milliseconds = max(int(seconds * 1000), 1)
        self.token = token or secrets.token_hex(16)
        self.epoch = 0
        self.holder = ""
        self._value = ""
        self._refused: list[Any] | None = None
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def value(self) -> str:
        """What the key holds."""
        return self._value

    def acquire(self, client: Client, above: int = 0) -> None:
        """Take it, with an epoch higher than that; StoreError while another has it."""
        self.take(client, ACQUIRE, (), above)

    def take(self, client: Client, script: str, more: Sequence[Any], above: int = 0) -> None:
        """Take it by a script that does more.

        Raises
        ------
        StoreError
            Another has it.
        FileExistsError
            The script says that the array is there.
        """
        keys = (meta_key(self._key), lease_key(self._key))
        nonce = secrets.token_hex(8)
        before = (client.run([Command(keys[0], ("HGET", keys[0], "epoch"))])[0] or b"0").decode()
        for _ in range(_MOST_ROUNDS):
            epoch = max(int(before), above) + 1
            value = f"{self.token} {epoch} {nonce} {owner()}"
            given = (self.token, value, self._milliseconds, before, epoch, *more)
            answer = client.run([Command(keys[0], ("EVAL", script, 2, *keys, *given))])[0]
            if answer[0] != b"again":
                break
            before = answer[1].decode()
        if answer[0] == b"there":
            raise FileExistsError(
                errno.EEXIST, "there is such an array: open it without create=True", self.name
            )
        if answer[0] != b"ok":
            raise self._refusal(answer)
        self.epoch, self.holder, self._value = epoch, f"{epoch} {nonce}", value

    def renew(self, client: Client) -> None:
        """Keep it; StoreError if another has it."""
        self._renew(client, None)

    def hand_over(self, client: Client) -> str:
        """Leave it to the holder of the token that this returns; StoreError if another has it."""
        token = secrets.token_hex(16)
        # A renewal under way would take the lease back.
        self.stop(wait=True)
        try:
            self._renew(client, token)
        except BaseException:
            # It is still this one's, as far as is known.
            self.keep(client)
            raise
        return token

    def _renew(self, client: Client, token: str | None) -> None:
        value = f"{token} {self.holder} {owner()}" if token else self._value
        keys = (meta_key(self._key), lease_key(self._key))
        words = ("EVAL", RENEW, 2, *keys, self._value, value, self._milliseconds)
        answer = client.run([Command(keys[0], words)])[0]
        if answer[0] != b"ok":
            self._refused = answer
            self.check()

    def check(self) -> None:
        """Raise a StoreError if another has been found to have it."""
        if self._refused:
            raise self._refusal(self._refused)

    def keep(self, client: Client) -> None:
        """Renew it from time to time, in a thread, until `release` or `stop`."""
        done = self._done = threading.Event()
        self._thread = threading.Thread(
            target=self._renew_until, args=(client, done), name="pagemove-lease", daemon=True
        )
        self._thread.start()

    def stop(self, *, wait: bool = False) -> None:
        """End the thread, and perhaps wait for what it is at."""
        self._done.set()
        if wait and self._thread is not None:
            self._thread.join()

    def release(self, client: Client) -> None:
        """Let another have it now rather than when it expires."""
        self.stop(wait=True)
        keys = (meta_key(self._key), lease_key(self._key))
        client.run([Command(keys[0], ("EVAL", RELEASE, 2, *keys, self._value))])

    def _renew_until(self, client: Client, done: threading.Event) -> None:
        import redis

        while not done.wait(self._milliseconds / 3000):
            try:
                self.renew(client)
            except StoreError:
                return
            except (redis.RedisError, OSError):
                continue  # cut off: what is written meanwhile says so

    def _refusal(self, answer: list[Any]) -> StoreError:
        if answer[0] == b"gone":
            return gone(self.name, "write", None)
        text = _described(answer[1])
        if answer[0] == b"held" and int(answer[2]) > 0:
            text += f"; its lease ends in {int(answer[2]) / 1000:.1f} s unless it is renewed"
        return StoreError(
            errno.EBUSY,
            f"cannot write {self.name}: another store writes it: {text}. One may write at a time: "
            "close that one, or open this one without writable=True",
            store=self.name,
            operation="write",
        )


def owner() -> str:
    """Say who this is, for those who are refused."""
    process = {"host": socket.gethostname(), "process": os.getpid(), "since": int(_started)}
    return json.dumps(process)


_started = time.time()


def gone(name: str, operation: str, offset: int | None) -> StoreError:
    """Make the exception of an array that is no longer whole."""
    place = "" if offset is None else f" at byte {offset}"
    return StoreError(
        errno.ENODATA,
        f"cannot {operation} {name}{place}: it was written, and is not there any more: the server "
        "has evicted it (maxmemory), let it expire, or was started again without its data; have "
        "the server persist, and evict nothing (maxmemory-policy noeviction), and store it anew",
        store=name,
        operation=operation,
        offset=offset,
    )


def _described(lease: bytes) -> str:
    try:
        _, epoch, _, text = lease.decode().split(" ", 3)
        found = json.loads(text)
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(found["since"]))
        return f"writer {epoch}, process {found['process']} on {found['host']}, since {since}"
    except (ValueError, KeyError):
        return "somebody"
