"""One store over another: a local cache over a remote, or changes that leave the original alone."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagemove.errors import StoreError
from pagemove.stores import ranges
from pagemove.stores.base import Store, read_whole, write_whole
from pagemove.stores.compressed import CompressedStore
from pagemove.stores.descriptors import shown, tell_in_child
from pagemove.stores.file import FileStore
from pagemove.stores.layermap import LayerMap, blocks_of

if TYPE_CHECKING:
    from typing_extensions import Buffer


class LayeredStore(Store):
    """Reads what is on top, and through to the bottom what is not; writes on top.

    Parameters
    ----------
    top : Store
        Writable, of the same length. What is in it before counts for nothing, unless the map says
        that it is on top.
    bottom : Store
        Never written, and must not change.
    cache : bool
        Put on top what was read from the bottom too: it is read from there once. False: only what
        is written is on top.
    path : str or path-like, optional
        File of the map that says which blocks are on top; made if it is not there, or empty. By
        default, for a `FileStore` or a `CompressedStore` with a path on top, that path, links
        followed, with ``.map`` behind it; for any other top the map is in memory.
    block_size : int
        What is on top or not as one, a power of two from 4 KiB to 2 MiB. Best the region's: less
        than a block that is not yet on top is written by reading the whole of it.

    Raises
    ------
    ValueError
        The stores are not of one length; `top` cannot be written, or keeps what is in it in its
        process only and `path` is given; the map is of another store, or damaged.
    OSError
        The map cannot be opened or made.

    Notes
    -----
    **Durability.** With a map in a file: that of the top, by `flush`, which flushes the top and
    then the map. A crash leaves what was flushed, and for other blocks what is below or what was
    written. With a map in memory what is on top is found as long as the process lives that the
    store runs in (`restartable` is False). After a `flush` that failed, what came from the bottom
    since the last one is read from there again, and put on top again by the next.

    **Sharing.** The top and the map are one store's alone; the bottom may be anybody's. A map
    belongs to its top: remove both or none.

    **Atomicity.** That of the top; a block appears on top when it is there as a whole.

    It pickles with both stores, and with the map if that is in memory; a map's file is let go of,
    to be opened where the store is used next.

    Examples
    --------
    >>> import pagemove
    >>> from pagemove.stores import CallableStore, CompressedStore, LayeredStore
    >>> bottom = CallableStore(lambda offset, length: b"." * length, 1 << 20)
    >>> with LayeredStore(CompressedStore(1 << 20), bottom) as store:
    ...     store.write(500_000, b"written")
    ...     some = bytearray(11)
    ...     store.read_into(499_998, some)
    ...     some, store.stats()["top_blocks"]
    (bytearray(b'..written..'), 1)
    """

    def __init__(
        self,
        top: Store,
        bottom: Store,
        *,
        cache: bool = True,
        path: str | os.PathLike[str] | None = None,
        block_size: int = ranges.BLOCK_SIZE,
    ) -> None:
        if top.nbytes != bottom.nbytes:
            raise ValueError(
                f"top and bottom must be of one length, not {top.nbytes} and {bottom.nbytes} bytes"
            )
        if not top.writable:
            raise ValueError(f"{top!r} is on top and has to be writable")
        self._top, self._bottom, self._cache = top, bottom, bool(cache)
        self._block_size = ranges.checked_block_size(block_size)
        beside = top.path if isinstance(top, FileStore | CompressedStore) else None
        if path is None and beside is not None:
            # Where links lead, so that a top has one map whatever it is called.
            beside = Path(os.path.realpath(beside))
            path = beside.with_name(beside.name + ".map")
        if path is not None and not top.restartable:
            raise ValueError(
                f"{top!r} forgets what is in it, so a map must not remember: leave out path"
            )
        self._path = None if path is None else Path(path).absolute()
        self._begin(None)
        # Now, so that what is wrong with the file is told here.
        self._on_top()

    def _begin(self, bits: bytes | None) -> None:
        self.concurrency = min(self._top.concurrency, self._bottom.concurrency)
        self.restartable = (
            self._path is not None and self._top.restartable and self._bottom.restartable
        )
        self.flush_retryable = self._top.flush_retryable
        self._locks = ranges.BlockLocks()
        self._opening = threading.Lock()
        self._flushing = threading.Lock()
        self._map: LayerMap | None = None
        if self._path is None:
            self._map = LayerMap(self.nbytes, self._block_size, bits=bits)
        # Copied from the bottom since the last flush; and of those what a flush that failed may
        # have lost, which is on the bottom still.
        self._copied = LayerMap(self.nbytes, self._block_size)
        self._doubtful = LayerMap(self.nbytes, self._block_size)
        tell_in_child(self)

    def _in_child(self) -> None:
        # The map's file is the parent's; and a thread that is not here may have held a lock.
        self._begin(None if self._path is not None or self._map is None else self._map.bits)

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self._top.nbytes

    @property
    def writable(self) -> bool:
        """True."""
        return True

    @property
    def top(self) -> Store:
        """What is written."""
        return self._top

    @property
    def bottom(self) -> Store:
        """What is only read."""
        return self._bottom

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill a buffer with the bytes from `offset` on, of either store.

        Parameters
        ----------
        offset : int
            First byte.
        buffer : writable buffer
            C-contiguous.

        Raises
        ------
        StoreError
            One of the stores cannot be read; another store uses the map.
        ValueError
            The range is not within the store.
        """
        view = ranges.target(buffer)
        start = ranges.place(self, self.nbytes, offset, view.nbytes)
        if not view.nbytes:
            return
        pieces = ranges.pieces(start, view.nbytes, self._block_size)
        for on_top, share in self._by_layer(list(pieces)):
            at, end = share[0].at, share[-1].at + share[-1].length
            if on_top:
                read_whole(self._top, start + at, view[at:end])
            elif self._cache:
                self._raise_up(share, view)
            else:
                read_whole(self._bottom, start + at, view[at:end])

    def write(self, offset: int, data: Buffer) -> None:
        """Write bytes on top.

        Parameters
        ----------
        offset : int
            First byte.
        data : buffer
            C-contiguous.

        Raises
        ------
        StoreError
            The top cannot be written, or the bottom not be read for the rest of a block; another
            store uses the map.
        ValueError
            The range is not within the store.
        """
        view = memoryview(data).cast("B")
        start = ranges.place(self, self.nbytes, offset, view.nbytes)
        top = self._used("write", start)
        if not view.nbytes:
            return
        first, last = start // self._block_size, (start + view.nbytes - 1) // self._block_size
        with self._locks.held(first, last):
            for block in {first, last}:
                place = block * self._block_size
                length = ranges.length_of(block, self._block_size, self.nbytes)
                whole = start <= place and place + length <= start + view.nbytes
                if not whole and not self._is_on_top(top, block):
                    self._put(block, 1, self._below(block, 1))
            write_whole(self._top, start, view)
            self._note(top, first, last, start)
            self._copied.remove(first, last)

    def flush(self) -> None:
        """Return when what was written is as durable as the top makes it.

        Raises
        ------
        StoreError
            It is not.
        """
        top = self._used("flush", None)
        # One at a time: of two the later map has to be written last.
        with self._flushing:
            for block in blocks_of(self._doubtful.bits):
                self._copy_again(block)
            bits, copied = top.bits, self._copied.bits
            try:
                self._top.flush()
                try:
                    top.settle(bits)
                except OSError as error:
                    raise self._failure(error, "flush", None) from error
            except BaseException:
                for block in blocks_of(copied):
                    self._doubt(block)
                raise
            self._copied.clear(copied)

    def close(self) -> None:
        """Close both stores, and the map. Twice is fine."""
        self._let_go()
        self._top.close()
        self._bottom.close()

    def stats(self) -> dict[str, float]:
        """Tell how much is on top, and what the stores tell.

        Returns
        -------
        dict
            ``top_blocks`` and ``blocks``; then those of both stores, as ``top.NAME`` and
            ``bottom.NAME``.
        """
        told: dict[str, float] = {
            "top_blocks": len(self._used("read", None)),
            "blocks": -(-self.nbytes // self._block_size),
        }
        for layer, store in (("top", self._top), ("bottom", self._bottom)):
            told |= {f"{layer}.{name}": value for name, value in store.stats().items()}
        return told

    def _raise_up(self, share: list[ranges.Piece], view: memoryview) -> None:
        """Read blocks that follow each other from the bottom, and leave them on top."""
        with self._locks.held(share[0].block, share[-1].block):
            # Some may have got there while this thread waited for the others.
            for on_top, run in self._by_layer(share):
                at, end = run[0].at, run[-1].at + run[-1].length
                if on_top:
                    read_whole(
                        self._top, run[0].block * self._block_size + run[0].start, view[at:end]
                    )
                    continue
                data = self._below(run[0].block, len(run))
                view[at:end] = data[run[0].start : run[0].start + end - at]
                # A top without room is no reason not to read.
                with contextlib.suppress(StoreError):
                    self._put(run[0].block, len(run), data)

    def _by_layer(self, share: list[ranges.Piece]) -> Iterator[tuple[bool, list[ranges.Piece]]]:
        top = self._used("read", share[0].block * self._block_size)
        for on_top, run in itertools.groupby(
            share, lambda piece: self._is_on_top(top, piece.block)
        ):
            yield on_top, list(run)

    def _is_on_top(self, top: LayerMap, block: int) -> bool:
        return block in top and block not in self._doubtful

    def _doubt(self, block: int) -> None:
        """Note that a copy on top may be lost, unless it was written over since."""
        with self._locks.held(block, block):
            if block in self._copied:
                self._doubtful.add(block, block)

    def _below(self, first: int, count: int) -> memoryview:
        """Read whole blocks of the bottom."""
        place = first * self._block_size
        data = memoryview(bytearray(min(count * self._block_size, self.nbytes - place)))
        read_whole(self._bottom, place, data)
        return data

    def _put(self, first: int, count: int, data: memoryview) -> None:
        """Put whole blocks on top. Their locks are held."""
        place = first * self._block_size
        top, last = self._used("write", place), first + count - 1
        write_whole(self._top, place, data)
        self._copied.add(first, last)
        self._note(top, first, last, place)

    def _note(self, top: LayerMap, first: int, last: int, offset: int) -> None:
        """Note that blocks are on top, and sound."""
        try:
            top.add(first, last)
        except OSError as error:
            raise self._failure(error, "write", offset) from error
        self._doubtful.remove(first, last)

    def _copy_again(self, block: int) -> None:
        with self._locks.held(block, block):
            if block in self._doubtful:
                self._put(block, 1, self._below(block, 1))

    def _on_top(self) -> LayerMap:
        found = self._map
        if found is None:
            with self._opening:
                if self._map is None:
                    self._map = LayerMap(self.nbytes, self._block_size, self._path)
                found = self._map
        return found

    def _used(self, operation: str, offset: int | None) -> LayerMap:
        try:
            return self._on_top()
        except (OSError, ValueError) as error:
            raise self._failure(error, operation, offset) from error

    def _let_go(self) -> None:
        with self._opening:
            if self._path is not None and self._map is not None:
                self._map.close()
                self._map = None

    def _failure(self, error: Exception, operation: str, offset: int | None) -> StoreError:
        where = "in memory" if self._path is None else shown(self._path)
        return StoreError(
            getattr(error, "errno", None) or errno.EIO,
            f"cannot {operation} {self!r}: its map {where}: {error}",
            store=repr(self),
            operation=operation,
            offset=offset,
        )

    def __getstate__(self) -> dict[str, Any]:
        bits = None if self._path is not None or self._map is None else self._map.bits
        self._let_go()
        kept = ("_top", "_bottom", "_cache", "_block_size", "_path")
        return {name: getattr(self, name) for name in kept} | {"bits": bits}

    def __setstate__(self, state: dict[str, Any]) -> None:
        bits = state.pop("bits")
        self.__dict__.update(state)
        self._begin(bits)

    def __repr__(self) -> str:
        return f"LayeredStore({self._top!r}, {self._bottom!r})"
