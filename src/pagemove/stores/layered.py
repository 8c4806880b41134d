"""One store over another: a local cache over a remote, or changes that leave the original alone."""

from __future__ import annotations

import contextlib
import enum
import errno
import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagemove.errors import StoreError
from pagemove.stores import ranges
from pagemove.stores.base import Store, read_whole
from pagemove.stores.compressed import CompressedStore
from pagemove.stores.copies import Copies, State
from pagemove.stores.descriptors import shown, tell_in_child
from pagemove.stores.file import FileStore
from pagemove.stores.layermap import LayerMap
from pagemove.stores.layers import Layers

if TYPE_CHECKING:
    from typing_extensions import Buffer


class _Layer(enum.Enum):
    TOP = 1
    BOTTOM = 2
    BOTH = 3  # a copy that may be lost, and was written into


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
    since the last one is read from there again, and put on top again by the next; what was written
    has to be written again, as with the top alone.

    **Sharing.** One store alone may use the top and the map; any number may share the bottom. A map
    belongs to its top: remove both or none.

    **Atomicity.** That of the top; a block appears on top when it is there as a whole.

    It pickles with both stores, and with the map if that is in memory; a map's file is closed,
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
        self._begin(None, None)
        # Now, so that what is wrong with the file is told here.
        self._on_top()

    def _begin(self, bits: bytes | None, copies: State | None) -> None:
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
        self._copies = Copies(self.nbytes, self._block_size, copies)
        self._layers = Layers(self._top, self._bottom, self._block_size, self._copies, self._note)
        tell_in_child(self)

    def _in_child(self) -> None:
        # The map's file is the parent's; and a thread that is not here may have held a lock.
        self._begin(*self._in_memory())

    def _in_memory(self) -> tuple[bytes, State] | tuple[None, None]:
        """Return what is on top and what is known of it, unless a file has the map.

        Of that another store may have made something else by the time it is read again.
        """
        if self._path is not None or self._map is None:
            return None, None
        return self._map.bits, self._copies.state

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

        Examples
        --------
        >>> from pagemove.stores import CallableStore, CompressedStore, LayeredStore
        >>> bottom = CallableStore(lambda offset, length: b"." * length, 1 << 20)
        >>> with LayeredStore(CompressedStore(1 << 20), bottom) as store:
        ...     some = bytearray(3)
        ...     store.read_into(4, some)
        >>> some
        bytearray(b'...')
        """
        view = ranges.target(buffer)
        start = ranges.place(self, self.nbytes, offset, view.nbytes)
        if not view.nbytes:
            return
        pieces = ranges.pieces(start, view.nbytes, self._block_size)
        for layer, share in self._by_layer(list(pieces)):
            at, end = share[0].at, share[-1].at + share[-1].length
            if layer is _Layer.TOP:
                read_whole(self._top, start + at, view[at:end])
                # A flush may have failed meanwhile, and lost a copy before it was read.
                if any(found is not layer for found, _ in self._by_layer(share)):
                    self.read_into(start + at, view[at:end])
            elif layer is _Layer.BOTH or self._cache:
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

        Examples
        --------
        >>> from pagemove.stores import CallableStore, CompressedStore, LayeredStore
        >>> bottom = CallableStore(lambda offset, length: b"." * length, 1 << 20)
        >>> with LayeredStore(CompressedStore(1 << 20), bottom) as store:
        ...     store.write(1, b"on top")
        ...     some = bytearray(8)
        ...     store.read_into(0, some)
        >>> some
        bytearray(b'.on top.')
        """
        view = memoryview(data).cast("B")
        start = ranges.place(self, self.nbytes, offset, view.nbytes)
        top = self._used("write", start)
        if not view.nbytes:
            return
        pieces = list(ranges.pieces(start, view.nbytes, self._block_size))
        first, last = pieces[0].block, pieces[-1].block
        with self._locks.held(first, last):
            for piece in {pieces[0], pieces[-1]}:
                if self._layers.is_part(piece) and piece.block not in top:
                    part = view[piece.at : piece.at + piece.length]
                    self._layers.complete(piece.block, piece.start, part)
                    pieces.remove(piece)
            if pieces:
                at, end = pieces[0].at, pieces[-1].at + pieces[-1].length
                self._layers.write_over(pieces, view[at:end])

    def flush(self) -> None:
        """Return when what was written is as durable as the top makes it.

        Raises
        ------
        StoreError
            It is not.

        Examples
        --------
        >>> from pagemove.stores import CallableStore, CompressedStore, LayeredStore
        >>> bottom = CallableStore(lambda offset, length: b"." * length, 1 << 20)
        >>> with LayeredStore(CompressedStore(1 << 20), bottom) as store:
        ...     store.write(1, b"on top")
        ...     store.flush()
        """
        top = self._used("flush", None)
        # One at a time: of two the later map has to be written last.
        with self._flushing:
            for block in self._copies.doubtful:
                with self._locks.held(block, block):
                    if self._copies.is_doubtful(block):
                        self._layers.complete(block)
            bits, copied = top.bits, self._copies.copied
            try:
                self._top.flush()
                try:
                    top.settle(bits)
                except OSError as error:
                    raise self._failure(error, "flush", None) from error
            except BaseException:
                for block in self._copies.fail():
                    self._doubt(top, block)
                raise
            self._copies.settle(copied)

    def close(self) -> None:
        """Close both stores, and the map. Twice is fine.

        Examples
        --------
        >>> from pagemove.stores import CallableStore, CompressedStore, LayeredStore
        >>> bottom = CallableStore(lambda offset, length: b"." * length, 1 << 20)
        >>> store = LayeredStore(CompressedStore(1 << 20), bottom)
        >>> store.close()
        """
        self._let_go()
        self._top.close()
        self._bottom.close()

    def stats(self) -> dict[str, float]:
        """Return how much is on top, and the statistics of the stores.

        Returns
        -------
        dict
            ``top_blocks`` and ``blocks``; then those of both stores, as ``top.NAME`` and
            ``bottom.NAME``.

        Examples
        --------
        >>> from pagemove.stores import CallableStore, CompressedStore, LayeredStore
        >>> bottom = CallableStore(lambda offset, length: b"." * length, 1 << 20)
        >>> with LayeredStore(CompressedStore(1 << 20), bottom) as store:
        ...     store.write(1, b"on top")
        ...     store.stats()["top_blocks"]
        1
        """
        told: dict[str, float] = {
            "top_blocks": len(self._used("read", None)),
            "blocks": -(-self.nbytes // self._block_size),
        }
        for layer, store in (("top", self._top), ("bottom", self._bottom)):
            told |= {f"{layer}.{name}": value for name, value in store.stats().items()}
        return told

    def _raise_up(self, share: list[ranges.Piece], view: memoryview) -> None:
        """Read blocks that follow each other, and leave on top what is on the bottom alone."""
        on_top = []
        with self._locks.held(share[0].block, share[-1].block):
            for layer, run in self._by_layer(share):
                if layer is _Layer.TOP:
                    # It got there while this thread waited for another.
                    on_top.append(run)
                    continue
                first, end = run[0], run[-1].at + run[-1].length
                data = self._layers.below(first.block, len(run))
                if layer is _Layer.BOTH:
                    self._layers.overlay(first.block, data)
                view[first.at : end] = data[first.start : first.start + end - first.at]
                if layer is _Layer.BOTTOM and self._cache:
                    # A top without room is no reason not to read.
                    with contextlib.suppress(StoreError):
                        self._layers.put(first.block, len(run), data)
        for run in on_top:
            place, end = run[0].block * self._block_size + run[0].start, run[-1].at + run[-1].length
            self.read_into(place, view[run[0].at : end])

    def _by_layer(self, share: list[ranges.Piece]) -> Iterator[tuple[_Layer, list[ranges.Piece]]]:
        top = self._used("read", share[0].block * self._block_size)
        # What is on both layers goes by itself.
        for (layer, _), run in itertools.groupby(share, lambda piece: self._layer(top, piece)):
            yield layer, list(run)

    def _layer(self, top: LayerMap, piece: ranges.Piece) -> tuple[_Layer, int]:
        if piece.block in top:
            return _Layer.TOP, 0
        if any(self._copies.written(piece.block)):
            return _Layer.BOTH, piece.block
        return _Layer.BOTTOM, 0

    def _doubt(self, top: LayerMap, block: int) -> None:
        """Note that a copy on top may be lost, unless it was written over since."""
        with self._locks.held(block, block):
            if self._copies.doubt(block):
                # What a process finds that comes after this one. If that cannot be written, there
                # is a failure to be raised already.
                with contextlib.suppress(OSError):
                    top.remove(block, block)

    def _note(self, first: int, last: int) -> None:
        """Note that blocks are on top."""
        place = first * self._block_size
        try:
            self._used("write", place).add(first, last)
        except OSError as error:
            raise self._failure(error, "write", place) from error

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
        bits, copies = self._in_memory()
        self._let_go()
        kept = ("_top", "_bottom", "_cache", "_block_size", "_path")
        return {name: getattr(self, name) for name in kept} | {"bits": bits, "copies": copies}

    def __setstate__(self, state: dict[str, Any]) -> None:
        known = state.pop("bits"), state.pop("copies")
        self.__dict__.update(state)
        self._begin(*known)

    def __repr__(self) -> str:
        return f"LayeredStore({self._top!r}, {self._bottom!r})"
