"""Arrays in Redis: made, and found."""

from __future__ import annotations

import errno
import secrets

from pagemove.stores import redis_layout as keys
from pagemove.stores.redis_blocks import Blocks
from pagemove.stores.redis_client import Client
from pagemove.stores.redis_direct import Command
from pagemove.stores.redis_failures import Fenced
from pagemove.stores.redis_lease import Lease, gone


def created(client: Client, lease: Lease, key: str, nbytes: int, block_size: int) -> keys.Layout:
    """Make an array, all zeros, and take the lease of it; return where its blocks are.

    Raises
    ------
    FileExistsError
        There is one.
    StoreError
        Another store makes it at the moment.
    """
    groups = keys.groups_for(nbytes, block_size)
    layout = keys.Layout(key, secrets.token_hex(8), nbytes, block_size, groups)
    values = (keys.FORMAT, layout.id, nbytes, block_size, groups, 0)
    fields = [word for both in zip(keys.META_FIELDS, values, strict=True) for word in both]
    lease.take(client, keys.CREATE, fields)
    Blocks(client, layout, lease.name).prepare(lease.holder, lease.epoch)
    meta = keys.meta_key(key)
    finished = client.run([Command(meta, ("EVAL", keys.FINISH, 1, meta, layout.id))])[0]
    if finished != [b"ok"]:
        raise gone(lease.name, "create", None)
    return layout


def remove(client: Client, lease: Lease, layout: keys.Layout) -> None:
    """Delete an array; Fenced if another store writes it."""
    meta = keys.meta_key(layout.key)
    words = ("EVAL", keys.REMOVE, 1, meta, layout.id, lease.value)
    if client.run([Command(meta, words)])[0] != [b"ok"]:
        raise Fenced
    Blocks(client, layout, lease.name).delete()


def found(client: Client, key: str, nbytes: int | None, name: str) -> tuple[keys.Layout, int]:
    """Return where the blocks of an array are, and how many writers it has had.

    Parameters
    ----------
    client : Client
        To the servers.
    key : str
        Of the array.
    nbytes : int or None
        What it is expected to have.
    name : str
        Of the store, for messages.

    Raises
    ------
    FileNotFoundError
        There is none, or it was never finished.
    ValueError
        It has another length, or another format.
    """
    meta = keys.meta_key(key)
    words = ("HMGET", meta, *keys.META_FIELDS, "epoch")
    form, identity, length, size, groups, ready, epoch = client.run([Command(meta, words)])[0]
    if form is None or ready != b"1":
        state = "it was never finished" if form else "there is no such array"
        raise FileNotFoundError(errno.ENOENT, f"{state}: make it with create=True and nbytes", name)
    if int(form) != keys.FORMAT:
        raise ValueError(f"{name} was made by another version of pagemove (format {form})")
    if nbytes not in (None, int(length)):
        raise ValueError(f"{name} has {int(length)} bytes, not {nbytes}")
    layout = keys.Layout(key, identity.decode(), int(length), int(size), int(groups))
    return layout, int(epoch)
