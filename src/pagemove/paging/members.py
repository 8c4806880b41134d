"""Arrays in files that hold several: one of them as a region of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pagemove.containers.formats import contents_of, format_of
from pagemove.containers.layout import ChunkedError, Contents, Layout, Packed, missing
from pagemove.containers.reading import Reading
from pagemove.containers.safetensors import shards
from pagemove.paging.array import Origin, PagedArray
from pagemove.paging.region import PagedMemory
from pagemove.stores.base import Store
from pagemove.stores.file import FileStore
from pagemove.stores.parts import Part, whole_of

if TYPE_CHECKING:
    from pagemove.paging.options import PagingOptions
    from pagemove.paging.sources import Source

Deflated = Literal["refuse", "compress"]

_INDEX = (".index.json",)
# A block is copied a quarter faster where it lies in cache lines in memory as it does in the file.
# Items stay aligned.
_LINE, _WORD = 64, 8


def kind_of(store: Store) -> str | None:
    """Return the format of a file that holds arrays by name, or what else has them; else None."""
    return "safetensors index" if is_index(store) else format_of(Reading(store))


def is_index(store: Store) -> bool:
    """Whether it is an index of several files."""
    return label_ends(store).endswith(_INDEX)


def label_ends(store: Store) -> str:
    """Return the name of a store in small letters, without quotes around it."""
    whole, _ = whole_of(store)
    if isinstance(whole, FileStore):
        return str(whole.path).lower()
    return str(getattr(whole, "url", "")).partition("?")[0].lower()


def index_of(store: Store) -> dict[str, str]:
    """Return the files that an index has for each array."""
    return shards(Reading(store))


@contextlib.contextmanager
def opened(
    source: Source, name: str, store: Store, *, writable: bool, lock: bool
) -> Iterator[Store]:
    """Return the store that has an array: itself, or one that it is an index of, opened."""
    if not is_index(store):
        yield store
        return
    files = index_of(store)
    if name not in files:
        raise ValueError(missing(repr(store), name, files))
    with source.beside(files[name]).open_whole(writable=writable, lock=lock) as shard:
        yield shard


def member_array(
    store: Store, name: str, deflated: Deflated, paging: PagingOptions
) -> PagedArray | Store:
    """Open one array; or return the store that it was unpacked into, as a .npy file."""
    contents = contents_of(Reading(store))
    check_writable(store, contents, writes=paging.get("mode") == "r+")
    found = _found(contents, name)
    if isinstance(found, Packed):
        return unpacked(store, name, found, deflated)
    return _alone(store, found, paging)


def part_of(source: Source, name: str, *, writable: bool, lock: bool) -> Store:
    """Open the bytes of an array as a store, decoded where they are in chunks.

    ValueError where they are compressed otherwise, or none.
    """
    with contextlib.ExitStack() as stack:
        store: Store = stack.enter_context(source.open_whole(writable=writable, lock=lock))
        shard = stack.enter_context(opened(source, name, store, writable=writable, lock=lock))
        contents = contents_of(Reading(shard))
        check_writable(shard, contents, writes=writable)
        try:
            found = _found(contents, name)
        except ChunkedError:
            stack.close()
            from pagemove.paging.decoded import decoded_store

            return decoded_store(source, name, writable=writable)
        if isinstance(found, Packed):
            raise ValueError(f"{shard!r}: array {name!r} is compressed; open_array can unpack it")
        if not found.nbytes:
            raise ValueError(f"{shard!r}: array {name!r} has no items: there is nothing to page")
        part = Part(shard, found.offset, found.nbytes)
        stack.pop_all()
        if shard is not store:
            store.close()
        return part


def check_writable(store: Store, contents: Contents, *, writes: bool) -> None:
    """Refuse to write into what would be damaged."""
    if writes and contents.sealed:
        raise ValueError(
            f"{store!r} is a {contents.kind} file, not to be written in place: {contents.sealed}; "
            "use mode 'c', which keeps changes private, and write a new file"
        )


def unpacked(store: Store, name: str, packed: Packed, deflated: Deflated) -> Store:
    """Decompress an array, once, into compressed blocks that can be paged in any order."""
    if deflated not in ("refuse", "compress"):
        raise ValueError(f"deflated must be 'refuse' or 'compress', not {deflated!r}")
    if deflated == "refuse":
        raise ValueError(
            f"{store!r}: array {name!r} is compressed, so its bytes are not in the file to be "
            "paged: write it with numpy.savez, or pass deflated='compress', which decompresses it "
            "once and keeps it in compressed memory"
        )
    from pagemove.stores.compressed import CompressedStore  # needs zstandard

    kept = CompressedStore(packed.nbytes)
    at = 0
    for piece in packed.read():
        kept.write(at, piece)
        at += len(piece)
    return kept


def array_in(region: PagedMemory, first: int, layout: Layout) -> PagedArray:
    """View the bytes of an array in a region that begins at byte `first` of the file."""
    shape = layout.shape[::-1] if layout.fortran else layout.shape
    array = region.asarray(layout.dtype, shape, max(layout.offset - first, 0)).view(PagedArray)
    return array.T if layout.fortran else array


def origin_of(store: Store, offset: int, region: PagedMemory) -> Origin | None:
    """Say what was opened, if it is a file."""
    return Origin(store.path, offset, region.mode) if isinstance(store, FileStore) else None


def _alone(store: Store, layout: Layout, paging: PagingOptions) -> PagedArray:
    # Of an array without items there is nothing to page, and a region has something.
    first, nbytes = (layout.offset, layout.nbytes) if layout.nbytes else (0, store.nbytes)
    before = first % _LINE
    # What is before it is not to be written.
    if paging.get("mode") != "r+" and before % max(layout.dtype.alignment, _WORD) == 0:
        first, nbytes = first - before, nbytes + before
    region = PagedMemory(Part(store, first, nbytes), **paging)
    region._forgettable = True
    region._origin = origin_of(store, layout.offset, region)
    if not layout.nbytes:
        layout = layout._replace(offset=0)
    return array_in(region, first, layout)


def _found(contents: Contents, name: str) -> Layout | Packed:
    try:
        return contents.find(name)
    except KeyError as error:
        raise ValueError(str(error.args[0])) from None
