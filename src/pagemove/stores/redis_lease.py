"""Who may write an array in Redis: one at a time, for as long as it says so every few seconds.

A lease is a key that expires: ``TOKEN EPOCH OWNER``, the token random, the owner for messages. The
epoch counts the writers. Every group of blocks has a fence with the epoch of the writer whose
writes are taken, and a new writer raises all fences before it reads or writes anything. So one that
was thought dead, and comes back, cannot change a byte, whatever its clock says: safety depends on
the fences alone, the lease only on being refused in time.

A writer whose lease has expired, because the connection was cut, takes it up again if no other
writer has been there meanwhile; the epoch tells.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import threading
import time
from typing import Any

from pagemove.errors import StoreError
from pagemove.stores.redis_client import Client, Command
from pagemove.stores.redis_layout import lease_key, meta_key

# KEYS: meta, lease. ARGV: token, owner, milliseconds.
_ACQUIRE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return {'gone'} end
local held = redis.call('GET', KEYS[2])
if held and string.sub(held, 1, #ARGV[1]) ~= ARGV[1] then
  return {'held', held, redis.call('PTTL', KEYS[2])}
end
local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('SET', KEYS[2], ARGV[1] .. ' ' .. epoch .. ' ' .. ARGV[2], 'PX', ARGV[3])
return {'ok', epoch}
"""

# KEYS: meta, lease. ARGV: what the lease was, epoch, milliseconds, what it is to be.
_RENEW = """
local held = redis.call('GET', KEYS[2])
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then return {'gone'} end
if held == ARGV[1] or held == ARGV[4] or (not held and epoch == ARGV[2]) then
  redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[3])
  return {'ok'}
end
return {'held', held or '', redis.call('PTTL', KEYS[2])}
"""

# KEYS: lease. ARGV: what it was.
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


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
        self.lost: StoreError | None = None
        self._value = b""
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, client: Client) -> int:
        """Take it; StoreError while another has it. Gives the epoch."""
        keys = (meta_key(self._key), lease_key(self._key))
        words = ("EVAL", _ACQUIRE, 2, *keys, self.token, owner(), self._milliseconds)
        return self.taken(client.run([Command(keys[0], words)])[0])

    def taken(self, answer: list[Any]) -> int:
        """Note what came of taking it: an answer of a script."""
        if answer[0] != b"ok":
            raise self._refusal(answer)
        self.epoch = int(answer[1])
        self._value = f"{self.token} {self.epoch} {owner()}".encode()
        return self.epoch

    @property
    def creation(self) -> tuple[str, str, int]:
        """What the script that creates an array needs to give its creator the lease."""
        return (self.token, owner(), self._milliseconds)

    def renew(self, client: Client, *, token: str | None = None) -> None:
        """Keep it, or hand it over to a token; StoreError if another has it."""
        value = self._value
        if token:
            value = f"{token} {self.epoch} {owner()}".encode()
        keys = (meta_key(self._key), lease_key(self._key))
        words = ("EVAL", _RENEW, 2, *keys, self._value, self.epoch, self._milliseconds, value)
        answer = client.run([Command(keys[0], words)])[0]
        if answer[0] != b"ok":
            self.lost = self._refusal(answer)
            raise self.lost

    def keep(self, client: Client) -> None:
        """Renew it from time to time, in a thread, until `release` or `stop`."""
        done = self._done = threading.Event()
        self._thread = threading.Thread(
            target=self._renew_until, args=(client, done), name="pagemove-lease", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._done.set()

    def release(self, client: Client) -> None:
        """Let another have it now rather than when it expires."""
        self.stop()
        # What it is at would take the lease up again.
        if self._thread is not None:
            self._thread.join()
        key = lease_key(self._key)
        client.run([Command(key, ("EVAL", _RELEASE, 1, key, self._value))])

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
        text = f"{_described(answer[1])}; "
        if int(answer[2]) > 0:
            text += f"its lease ends in {int(answer[2]) / 1000:.1f} s unless it is renewed"
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
        _, epoch, text = lease.decode().split(" ", 2)
        found = json.loads(text)
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(found["since"]))
        return f"writer {epoch}, process {found['process']} on {found['host']}, since {since}"
    except (ValueError, KeyError):
        return "somebody"
