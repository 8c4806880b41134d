"""Compressed memory, or a compressed file, as a store: swap for one array."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagemove.errors import StoreError
from pagemove.stores import ranges
from pagemove.stores.base import Store
from pagemove.stores.blockfile import Layout
from pagemove.stores.blocklog import BlockLog, Doubt, create, layout_of
from pagemove.stores.descriptors import shown, tell_in_child
from pagemove.stores.extras import needed

if TYPE_CHECKING:
    import zstandard
    from typing_extensions import Buffer

#: zstd's fastest and best.
_LEVELS = (-7, 22)


class _Shelf:
    """Blocks in memory, as `BlockLog` has them in a file."""

    def __init__(self, blocks: dict[int, bytes]) -> None:
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def nbytes(self) -> int:
        return sum(map(len, list(self.blocks.values())))

    def get(self, block: int) -> bytes | None:
        return self.blocks.get(block)

    def put(self, block: int, data: bytes | None) -> None:
        if data is None:
            self.blocks.pop(block, None)
        else:
            self.blocks[block] = data

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


class CompressedStore(Store):
    """Blocks compressed by zstd, in the memory of the process that runs the store, or in a file.

    A new one is all zeros. Blocks of zeros take no room at all.

    Parameters
    ----------
    nbytes : int, optional
        Length. May be left out for a file that is there.
    level : int
        Of zstd: -7 (fastest) to 22 (smallest). 1 is where speed and size are both good for blocks
        of memory; 3 takes a half longer.
    path : str or path-like, optional
        Keep the blocks in this file, which is made if it is not there, or empty. By default they
        are kept in memory.
    block_size : int
        What is compressed as one, a power of two from 4 KiB to 2 MiB. Best the region's: less than
        a block is written by reading, changing and compressing the whole of it. A file that is
        there keeps its own.

    Raises
    ------
    ImportError
        zstandard is not installed: ``pip install 'pagemove[compressed]'``.
    ValueError
        `level` or `block_size` is out of range; there is no length, or another than the file has;
        the file is something else.
    OSError
        The file cannot be made or opened.

    Notes
    -----
    **Durability.** In memory: none, and `flush` does nothing; should the process that runs the
    store die, what was evicted is gone, and reading it is an error (`restartable` is False). In a
    file: what was written is there after the process died, and what was flushed also after the
    machine did. After a `flush` that failed the next copies what lives into a new file, and checks
    it; it fails if a block did not survive. `flush` also fails if the path leads to another file.

    **Sharing.** None. A file is used by one store at a time, by a lock that goes with its process:
    the first use of a second store raises `StoreError`. The file is locked from the first read or
    write on until `close`, or until the store is pickled: so it can be filled here, and then paged.

    **Atomicity.** A crash leaves each block as it was before a write or as it was after it. Each is
    stored with a checksum, which covers its number and when it was written; one that has changed by
    itself is an error.

    **Cost.** The compressed blocks are beyond the region's limit: `stats` says how many bytes. Of a
    file at most half is dead, or 4 MiB; then what lives is copied into a new file of the same owner
    and mode, and writers wait for that. Where there cannot be one, or the file has several hard
    links, it grows, and a log record says so.
    Opening it reads the head of each block. Threads compress and decompress at the same time,
    without the GIL.

    A store in memory pickles with all that is in it, and the copy goes its own way.

    Examples
    --------
    >>> import pagemove
    >>> with pagemove.stores.CompressedStore(1 << 20) as store:
    ...     store.write(1000, b"spam" * 50_000)
    ...     some = bytearray(8)
    ...     store.read_into(100_000, some)
    ...     some, store.stats()["ratio"] > 100
    (bytearray(b'spamspam'), True)
    """

    # What a flush that failed may have lost is written again by the next one.
    flush_retryable = True

    def __init__(
        self,
        nbytes: int | None = None,
        *,
        level: int = 1,
        path: str | os.PathLike[str] | None = None,
        block_size: int = ranges.BLOCK_SIZE,
    ) -> None:
        if not _LEVELS[0] <= level <= _LEVELS[1]:
            raise ValueError(f"level must be from {_LEVELS[0]} to {_LEVELS[1]}, not {level}")
        needed("zstandard", "compressed")
        self._level = level
        self._path = None if path is None else Path(path).absolute()
        size = ranges.checked_block_size(block_size)
        if self._path is None:
            if nbytes is None:
                raise ValueError("nbytes says how long the store is: pass it, or a file with path")
            self._layout = Layout(ranges.checked_length(nbytes), size)
        else:
            self._layout = _made_or_found(self._path, nbytes, size)
        self.restartable = self._path is not None
        self._begin({}, None)

    def _begin(self, blocks: dict[int, bytes], doubt: Doubt | None) -> None:
        self._doubt = doubt  # of the file, when it was open last
        self._shelf: _Shelf | BlockLog | None = None if self._path else _Shelf(blocks)
        self._opening = threading.Lock()
        self._locks = ranges.BlockLocks()
        self._codecs = threading.local()
        tell_in_child(self)

    def _in_child(self) -> None:
        # The file is the parent's; and a thread that is not here may have held a lock.
        shelf = self._shelf
        doubt = shelf.doubt if isinstance(shelf, BlockLog) else self._doubt
        self._begin(shelf.blocks if isinstance(shelf, _Shelf) else {}, doubt)

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self._layout.nbytes

    @property
    def writable(self) -> bool:
        """True."""
        return True

    @property
    def block_size(self) -> int:
        """What is compressed as one, in bytes."""
        return self._layout.block_size

    @property
    def path(self) -> Path | None:
        """The file; None for a store in memory."""
        return self._path

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
            A block is damaged, or the file cannot be read, or another store uses it.
        ValueError
            The range is not within the store.

        Examples
        --------
        >>> import pagemove
        >>> with pagemove.stores.CompressedStore(1 << 20) as store:
        ...     some = bytearray(3)
        ...     store.read_into(4, some)
        >>> bytes(some) == bytes(3)  # never written
        True
        """
        view = ranges.target(buffer)
        start = ranges.place(self, self.nbytes, offset, view.nbytes)
        for piece in ranges.pieces(start, view.nbytes, self.block_size):
            part = view[piece.at : piece.at + piece.length]
            block = self._block(piece.block, "read")
            if block is None:
                part[:] = bytes(piece.length)
            else:
                part[:] = memoryview(block)[piece.start : piece.start + piece.length]

    def write(self, offset: int, data: Buffer) -> None:
        """Compress and keep bytes.

        Parameters
        ----------
        offset : int
            First byte.
        data : buffer
            C-contiguous.

        Raises
        ------
        StoreError
            The file cannot be written, or another store uses it.
        ValueError
            The range is not within the store.

        Examples
        --------
        >>> import pagemove
        >>> with pagemove.stores.CompressedStore(1 << 20) as store:
        ...     store.write(4, b"spam")
        ...     some = bytearray(4)
        ...     store.read_into(4, some)
        >>> some
        bytearray(b'spam')
        """
        view = memoryview(data).cast("B")
        start = ranges.place(self, self.nbytes, offset, view.nbytes)
        for piece in ranges.pieces(start, view.nbytes, self.block_size):
            part = view[piece.at : piece.at + piece.length]
            with self._locks.held(piece.block, piece.block):
                whole = ranges.length_of(piece.block, self.block_size, self.nbytes)
                if piece.length < whole:
                    before = bytearray(self._block(piece.block, "write") or whole)
                    before[piece.start : piece.start + piece.length] = part
                    part = memoryview(before)
                packed = None if ranges.is_zero(part) else self._compressor.compress(part)
                shelf = self._used("write", start)
                try:
                    shelf.put(piece.block, packed)
                except OSError as error:
                    raise self._failure(error, "write", start) from error

    def flush(self) -> None:
        """Return when all that was written is durable, if it is in a file.

        Raises
        ------
        StoreError
            It cannot be made durable.

        Examples
        --------
        >>> import pagemove
        >>> with pagemove.stores.CompressedStore(1 << 20) as store:
        ...     store.write(4, b"spam")
        ...     store.flush()
        """
        shelf = self._used("flush", None)
        try:
            shelf.sync()
        except OSError as error:
            raise self._failure(error, "flush", None) from error

    def close(self) -> None:
        """Release the file, which is opened again when it is used. Twice is fine.

        Examples
        --------
        >>> import pagemove
        >>> store = pagemove.stores.CompressedStore(1 << 20)
        >>> store.close()
        """
        with self._opening:
            if isinstance(self._shelf, BlockLog):
                self._doubt = self._shelf.doubt
                self._shelf.close()
                self._shelf = None

    def stats(self) -> dict[str, float]:
        """Return how well it compresses.

        Returns
        -------
        dict
            ``blocks``: how many there are that are not zeros; ``stored_nbytes``: what they take;
            ``ratio``: how many times as much they were, 0 without any; in a file also
            ``file_nbytes`` and ``compactions``.

        Examples
        --------
        >>> import pagemove
        >>> with pagemove.stores.CompressedStore(1 << 20) as store:
        ...     store.write(0, b"spam" * 50_000)
        ...     store.stats()["ratio"] > 100
        True
        """
        shelf = self._used("read", None)
        blocks, stored = len(shelf), shelf.nbytes
        told: dict[str, float] = {
            "blocks": blocks,
            "stored_nbytes": stored,
            "ratio": blocks * self.block_size / stored if stored else 0.0,
        }
        if isinstance(shelf, BlockLog):
            told |= {"file_nbytes": shelf.file_nbytes, "compactions": shelf.compactions}
        return told

    def _block(self, block: int, operation: str) -> bytes | None:
        """Return a block as it was written; None: zeros."""
        import zstandard

        place = block * self.block_size
        shelf = self._used(operation, place)
        try:
            packed = shelf.get(block)
            if packed is None:
                return None
            # It says how long it is, and that many bytes are allocated.
            length = ranges.length_of(block, self.block_size, self.nbytes)
            if zstandard.frame_content_size(packed) != length:
                raise OSError(errno.EIO, f"block {block} has another length than it should")
            data: bytes = self._decompressor.decompress(
                packed, length, read_across_frames=False, allow_extra_data=False
            )
        except (OSError, zstandard.ZstdError) as error:
            raise self._failure(error, operation, place) from error
        if len(data) != length:
            raise self._failure(OSError(errno.EIO, f"block {block} is truncated"), operation, place)
        return data

    def _used(self, operation: str, offset: int | None) -> _Shelf | BlockLog:
        shelf = self._shelf
        if shelf is None:
            with self._opening:
                if self._shelf is None:
                    assert self._path is not None
                    try:
                        self._shelf = _opened(self._path, self._layout, self._doubt)
                    except (OSError, ValueError) as error:
                        raise self._failure(error, operation, offset) from error
                shelf = self._shelf
        return shelf

    # Neither may be used by two threads at a time.
    @property
    def _compressor(self) -> zstandard.ZstdCompressor:
        found: zstandard.ZstdCompressor | None = getattr(self._codecs, "compressor", None)
        if found is None:
            import zstandard

            found = zstandard.ZstdCompressor(level=self._level, write_checksum=True)
            self._codecs.compressor = found
        return found

    @property
    def _decompressor(self) -> zstandard.ZstdDecompressor:
        found: zstandard.ZstdDecompressor | None = getattr(self._codecs, "decompressor", None)
        if found is None:
            import zstandard

            found = zstandard.ZstdDecompressor(max_window_size=ranges.LARGEST_BLOCK)
            self._codecs.decompressor = found
        return found

    def _failure(self, error: Exception, operation: str, offset: int | None) -> StoreError:
        place = "" if offset is None else f" at byte {offset}"
        cause = error.strerror if isinstance(error, OSError) and error.strerror else error
        return StoreError(
            getattr(error, "errno", None) or errno.EIO,
            f"cannot {operation} {self!r}{place}: {cause}",
            store=repr(self),
            operation=operation,
            offset=offset,
        )

    def __getstate__(self) -> dict[str, Any]:
        state = {"level": self._level, "path": self._path, "layout": self._layout}
        if isinstance(self._shelf, _Shelf):
            return state | {"blocks": dict(self._shelf.blocks), "doubt": None}
        # Handed over: two processes cannot use the file at a time.
        self.close()
        return state | {"blocks": {}, "doubt": self._doubt}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._level, self._path, self._layout = state["level"], state["path"], state["layout"]
        self.restartable = self._path is not None
        self._begin(state["blocks"], state["doubt"])

    def __repr__(self) -> str:
        where = f", path={str(self._path)!r}" if self._path else ""
        return f"CompressedStore({self.nbytes}{where})"


def _opened(path: Path, layout: Layout, doubt: Doubt | None) -> BlockLog:
    """Open the file of a store; ValueError if another store's is in its place."""
    found = BlockLog(path, doubt)
    if found.layout == layout:
        return found
    found.close()
    raise ValueError(
        f"{shown(path)} now holds {found.layout.nbytes} bytes in blocks of "
        f"{found.layout.block_size}: it is another store's"
    )


def _made_or_found(path: Path, nbytes: int | None, block_size: int) -> Layout:
    """Make a file for a store of so many bytes, or find one."""
    if nbytes is not None:
        layout = Layout(ranges.checked_length(nbytes), block_size)
        try:
            create(path, layout)
        except FileExistsError:
            pass
        else:
            return layout
    found = layout_of(path)
    if nbytes not in (None, found.nbytes):
        raise ValueError(
            f"{shown(path)} holds {found.nbytes} bytes, not {nbytes}: name another file"
        )
    return found
