"""An array in Redis or Valkey, on one server or a cluster: many machines share it."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from pagemove.errors import StoreError
from pagemove.stores import ranges
from pagemove.stores import redis_arrays as arrays
from pagemove.stores.base import Store, read_only
from pagemove.stores.descriptors import tell_in_child
from pagemove.stores.extras import needed
from pagemove.stores.links import Link, portable_options
from pagemove.stores.logs import hide_in_logs
from pagemove.stores.redis_blocks import Blocks
from pagemove.stores.redis_client import Client
from pagemove.stores.redis_failures import Fenced, Turn, translated
from pagemove.stores.redis_lease import Lease
from pagemove.stores.redis_secrets import check_userinfo, secrets_of, shown
from pagemove.stores.urls import Secrets, portable

if TYPE_CHECKING:
    from typing_extensions import Buffer

_KEPT = (
    "_url",
    "_key",
    "_options",
    "_timeout",
    "_replicas",
    "_fsync",
    "_seconds",
    "_writable",
    "_layout",
    "_epoch",
)
_MOST_TRIES = 3


class RedisStore(Store):
    """An array whose blocks are keys in Redis or Valkey.

    Parameters
    ----------
    url : str
        ``redis://``, ``rediss://`` or ``unix://``, or the same with ``valkey``; of any node of a
        cluster, which is noticed.
    key : str
        Name of the array, without braces. All its keys begin with ``pagemove:{KEY``.
    nbytes : int, optional
        Length of a new array; of one that is there, what it is expected to be.
    create : bool
        Make a new array, all zeros, and write it.
    writable : bool
        Write an array that is there.
    block_size : int
        What is one key, a power of two from 4 KiB to 2 MiB. An array that is there has its own.
        Best that of the regions over it, or less: a part of a block is written by reading, changing
        and writing the whole of it.
    lease : float
        Seconds after which a writer that is not heard of may be followed by another.
    replicas : int
        `flush` waits until so many replicas have what was written (WAIT).
    fsync : bool
        `flush` waits until it is in the server's append-only file, on disk (WAITAOF, of Redis 7.2
        and Valkey; before, the server has to have ``appendfsync always``).
    timeout : float
        Seconds for one call, tries again with growing pauses included.
    **options
        For redis-py's client: ``password``, ``ssl_ca_certs`` ...

    Raises
    ------
    ImportError
        redis is not installed: ``pip install 'pagemove[redis]'``.
    FileNotFoundError, FileExistsError
        There is no such array; with `create`, there is one.
    ValueError
        It has another length; `key`, `nbytes` or `block_size` cannot be.
    StoreError
        The server cannot be reached, or refuses; or another store writes the array.

    Notes
    -----
    **Sharing.** Many readers, one writer. A second one is refused, with who the first is and for
    how long; a lease that the writer renews says so, and goes when its process has died. A writer
    that was thought dead and comes back cannot change a byte. To pickle a writer hands the lease
    over, to the process that a region is served by, say: from then on it only reads, until the
    other is closed. A forked child is another store: it reads, and is refused as a second writer.

    **Atomicity.** A block is written as a whole: readers see it as it was or as it is. Several
    blocks are not written at one moment. Whatever the network does to requests, of a block no older
    write lands on a newer one; a write that raised may have been carried out, or be yet.

    **Durability.** `flush` returns when the writes are in the server's memory, and with `replicas`
    and `fsync` also there: else what survives a crash of the server is what its own settings say.
    Should a server come back without some of what it had acknowledged (after a failover, or from an
    older snapshot), the writer's next read or write there, and every flush, is an error. A block
    that was written and is not there any more (evicted, expired, deleted) is an error for
    everybody, never zeros. Run the server with ``maxmemory-policy noeviction``.

    **Cost.** A read of up to 2 MiB is a round trip, a write too; a block takes 32 bytes more than
    its contents, and next to nothing if it is zeros. It pickles with its URL and options, the
    password included, which nothing else shows.

    Examples
    --------
    >>> from pagemove.stores import RedisStore
    >>> with RedisStore("redis://server", "weights", nbytes=10**9,
    ...                 create=True) as store:  # doctest: +SKIP
    ...     store.write(0, weights)
    ...     store.flush()
    """

    #: A server that has taken a write keeps it, whatever became of a flush.
    flush_retryable = True

    def __init__(
        self,
        url: str,
        key: str,
        *,
        nbytes: int | None = None,
        create: bool = False,
        writable: bool = False,
        block_size: int = ranges.BLOCK_SIZE,
        lease: float = 10.0,
        replicas: int = 0,
        fsync: bool = False,
        timeout: float = 5.0,
        **options: Any,
    ) -> None:
        needed("redis", "redis")
        check_userinfo(url)
        if not key or "{" in key or "}" in key:
            raise ValueError(f"key must be a name without braces, not {key!r}")
        if create and nbytes is None:
            raise ValueError("a new array needs a length: pass nbytes")
        self._url, self._key = url, key
        self._options, self._timeout = options, timeout
        self._replicas, self._fsync = replicas, fsync
        self._seconds = lease
        self._writable = bool(writable or create)
        self._begin(None)
        try:
            with self._translated("open", None):
                if create:
                    length = ranges.checked_length(nbytes or 0)
                    size = ranges.checked_block_size(block_size)
                    self._layout = arrays.created(self._client, self._lease, key, length, size)
                    self._epoch = self._lease.epoch
                else:
                    self._layout, self._epoch = arrays.found(self._client, key, nbytes, repr(self))
                    if self._writable:
                        self._lease.acquire(self._client)
        except BaseException:
            self._disconnect()
            raise

    def _begin(self, token: str | None) -> None:
        self._lock = threading.Lock()
        self._holding = threading.Lock()
        self._locks = ranges.BlockLocks()
        self._connected: Client | None = None
        self._lease = Lease(self._key, repr(self), self._seconds, token)
        self._handed_over = False
        # While this is the writer.
        self._turn: Turn | None = None
        # By group: how many writes the server has acknowledged.
        self._writes: dict[int, int] = {}
        self._unlogged = Secrets(self._url, self._options)
        hide_in_logs(self._unlogged)
        tell_in_child(self)

    def _in_child(self) -> None:
        # With the parent's holder and numbers its writes would pass for the parent's. It is another
        # store, that has handed over: it reads, and has to have the lease before it writes.
        client, writes = self._connected, self._writes
        self._begin(None)
        self._of_parent, self._writes, self._handed_over = client, writes, True

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self._layout.nbytes

    @property
    def block_size(self) -> int:
        """What is one key, in bytes, without its head."""
        return self._layout.block_size

    @property
    def key(self) -> str:
        """Name of the array."""
        return self._key

    @property
    def writable(self) -> bool:
        """Whether it was opened to be written."""
        return self._writable

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill a buffer with the bytes from `offset` on.

        Parameters
        ----------
        offset : int
            First byte.
        buffer : writable buffer
            C-contiguous.

        Raises
        ------
        StoreError
            The server cannot be reached; a block is lost; another store writes the array, and this
            one was to.
        ValueError
            The range is not within the array.

        Examples
        --------
        >>> from pagemove.stores import RedisStore
        >>> with RedisStore("redis://server", "weights") as store:  # doctest: +SKIP
        ...     some = bytearray(8)
        ...     store.read_into(0, some)
        """
        view = ranges.target(buffer)
        start = ranges.place(self, self.nbytes, offset, view.nbytes)
        with self._translated("read", start):
            is_writer = self._writable and not self._handed_over
            holder = self._hold().holder if is_writer else ""
            blocks = self._blocks
            for batch in blocks.batches(start, view.nbytes):
                blocks.read(batch, view, dict(self._writes), holder)

    def write(self, offset: int, data: Buffer) -> None:
        """Write bytes from `offset` on.

        Parameters
        ----------
        offset : int
            First byte.
        data : buffer
            C-contiguous.

        Raises
        ------
        StoreError
            The server cannot be reached, or has no room; another store writes the array; what was
            written before is lost; the store is read-only.
        ValueError
            The range is not within the array.

        Examples
        --------
        >>> from pagemove.stores import RedisStore
        >>> with RedisStore("redis://server", "weights", writable=True) as store:  # doctest: +SKIP
        ...     store.write(0, b"changed")
        """
        view = memoryview(data).cast("B")
        start = ranges.place(self, self.nbytes, offset, view.nbytes)
        if not self._writable:
            raise read_only(repr(self), start)
        with self._translated("write", start):
            turn = self._hold()
            blocks = self._blocks
            for batch in blocks.batches(start, view.nbytes):
                with self._locks.held(batch[0].block, batch[-1].block):
                    written = blocks.write(batch, view, turn, dict(self._writes))
                with self._lock:
                    for group, count in written.items():
                        self._writes[group] = max(self._writes[group], count)

    def flush(self) -> None:
        """Return when all that was ever written is as durable as `replicas` and `fsync` say.

        Also what another process wrote that this store was handed over by, or that has died. To
        have failed loses nothing: what a server has taken it keeps, and the next flush asks again.

        Raises
        ------
        StoreError
            It is not; the server has lost some of it, which every flush says from then on; another
            store writes the array.

        Examples
        --------
        >>> from pagemove.stores import RedisStore
        >>> with RedisStore("redis://server", "weights", writable=True) as store:  # doctest: +SKIP
        ...     store.write(0, b"changed")
        ...     store.flush()  # by as many servers as `replicas` says
        """
        if not self._writable:
            return
        with self._translated("flush", None):
            self._blocks.settle(
                None if self._handed_over else self._hold(),
                dict(self._writes),
                replicas=self._replicas,
                fsync=self._fsync,
                seconds=self._timeout / 3,
            )

    def close(self) -> None:
        """Release the lease and the connections. Twice is fine.

        Examples
        --------
        >>> from pagemove.stores import RedisStore
        >>> store = RedisStore("redis://server", "weights")  # doctest: +SKIP
        >>> store.close()  # doctest: +SKIP
        """
        if self._writable and self._connected and self._lease.epoch and not self._handed_over:
            # What cannot be released ends by itself.
            with contextlib.suppress(StoreError), self._translated("close", None):
                self._lease.release(self._connected)
            self._lease = Lease(self._key, repr(self), self._seconds)
            self._turn = None
        self._disconnect()

    def remove(self) -> None:
        """Delete the array, and close.

        Raises
        ------
        StoreError
            It was not opened to be written, or another store writes it.

        Examples
        --------
        >>> from pagemove.stores import RedisStore
        >>> with RedisStore("redis://server", "weights", writable=True) as store:  # doctest: +SKIP
        ...     store.remove()
        """
        if not self._writable:
            raise read_only(repr(self), 0)
        with self._translated("remove", None):
            self._hold()
            arrays.remove(self._client, self._lease, self._layout)
        self.close()

    @property
    def _blocks(self) -> Blocks:
        return Blocks(self._client, self._layout, repr(self))

    @property
    def _client(self) -> Client:
        with self._lock:
            if self._connected is None:
                self._connected = Client(self._url, self._timeout, self._options)
            return self._connected

    def _disconnect(self) -> None:
        self._lease.stop()
        with self._lock:
            client, self._connected = self._connected, None
        if client is not None:
            client.close()

    def _hold(self) -> Turn:
        """Be the one that writes, or raise."""
        self._lease.check()
        turn = self._turn
        if turn is not None:
            return turn
        client = self._client
        with self._holding:
            if self._turn is None:
                if not self._lease.epoch:
                    self._lease.acquire(client)
                self._writes = self._raised_fences(client)
                self._lease.keep(client)
                self._handed_over = False
                self._turn = Turn(self._lease.holder, self._lease.epoch, itertools.count(1))
            return self._turn

    def _raised_fences(self, client: Client) -> dict[int, int]:
        """Raise all fences, with a higher epoch should one be on them that the server forgot."""
        for _ in range(_MOST_TRIES):
            try:
                return self._blocks.raise_fences(self._lease.holder, self._lease.epoch)
            except Fenced as fenced:
                self._lease.acquire(client, above=fenced.epoch)
        raise Fenced

    def _translated(self, operation: str, offset: int | None) -> AbstractContextManager[None]:
        return translated(self, operation, offset, self._who_has_it, self._secrets)

    def _who_has_it(self) -> None:
        self._lease.renew(self._client)

    def _link(self, *, written: bool = False) -> Link | None:
        if type(self) is not RedisStore:
            return None
        options, names = portable_options(self._options)
        place, parts = portable(self._url)
        given = {
            "key": self._key,
            "timeout": self._timeout,
            "replicas": self._replicas,
            "fsync": self._fsync,
            "lease": self._seconds,
        }
        # A writer's own epoch grows when it hands over, and when a helper is started again.
        version = (self.nbytes, self._layout.id, None if written else self._epoch)
        return Link(RedisStore, place, options | given, version, (*parts, *names))

    @classmethod
    def _from_link(
        cls, link: Link, writable: bool, lock: bool, options: Mapping[str, Any]
    ) -> Store:
        return cls(link.place, writable=writable, **{**link.options, **options})

    def __getstate__(self) -> dict[str, Any]:
        token = None
        if self._writable:
            # Only one process can be the writer: this one has been it.
            with self._translated("hand over", None):
                self._hold()
                token = self._lease.hand_over(self._client)
            self._lease = Lease(self._key, repr(self), self._seconds)
            self._turn, self._handed_over = None, True
        kept = {name: value for name, value in self.__dict__.items() if name in _KEPT}
        return kept | {"token": token}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({name: value for name, value in state.items() if name in _KEPT})
        self._begin(state["token"])

    def _secrets(self) -> list[str]:
        return secrets_of(self._url, self._options)

    def __repr__(self) -> str:
        return f"RedisStore({shown(self._url)!r}, {self._key!r})"
