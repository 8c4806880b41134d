"""Filesystems of fsspec that wrap others: how a chain of them is opened, and what is behind it.

A wrapper promises what its ``open`` returns. Its other methods may be those of what it wraps, so
ranges are looked for behind it: a member that is stored uncompressed in an archive, a
referenced part of a file, a file in a folder are each a range of something else.
"""

from __future__ import annotations

import inspect
import re
import struct
import tarfile
import zipfile
from typing import Any, NamedTuple

from pagemove.stores import caches
from pagemove.stores.http import Guard

_MOST_LEVELS = 16
_WEB = ("http", "https")
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class Proof(NamedTuple):
    """What has to be at an offset if a place is right: the header of a member, as a rule."""

    offset: int
    data: bytes


class Place(NamedTuple):
    """Where bytes are.

    Attributes
    ----------
    filesystem : fsspec.AbstractFileSystem
        That wraps no other, as far as is known.
    path : str
        In it.
    offset : int
        First byte in what is there.
    nbytes : int or None
        How many; None: up to its end.
    proofs : tuple of Proof
        What to look at before it is believed.
    data : bytes or None
        The bytes themselves, of one that is nowhere else.
    """

    filesystem: Any
    path: str
    offset: int = 0
    nbytes: int | None = None
    proofs: tuple[Proof, ...] = ()
    data: bytes | None = None


def protocols(url: str) -> list[str]:
    """List the protocols of a URL, of a chain the outermost first."""
    return re.findall(r"(?:^|::)([A-Za-z0-9+.-]+)(?=://)", url)


def opened(url: str, options: dict[str, Any], guard: Guard) -> tuple[Any, str]:
    """Open the filesystem of a URL, shared with no other user of fsspec; return it and the path.

    Raises
    ------
    ValueError
        A protocol is not known; what follows a ``::`` is not for what is before it.
    ImportError
        What it needs is not installed.
    """
    import fsspec  # type: ignore[import-untyped]

    parts, options = caches.replaced(url.split("::"), options)
    first, *others = parts
    kind = fsspec.get_filesystem_class(_protocol(first))
    if others and not _wraps(kind):
        # Then it is a part of the name.
        others = []
    if not others:
        options = guard.options(options, url) if _protocol(first) in _WEB else options
        options = {**kind._get_kwargs_from_urls(url), **options, "skip_instance_cache": True}
        return kind(**options), kind._strip_protocol(url)
    for number, part in enumerate(others[:-1], 1):
        if not _wraps(fsspec.get_filesystem_class(_protocol(part))):
            raise ValueError(
                f"'::' after part {number + 1} of the URL: in a chain it cannot be a part of a name"
            )
    chained = {**options, "skip_instance_cache": True}
    for name, part in {_protocol(part): part for part in others}.items():
        own = {**chained.get(name, {}), "skip_instance_cache": True}
        chained[name] = guard.options(own, part) if name in _WEB else own
    filesystem, path = fsspec.core.url_to_fs("::".join(parts), **chained)
    return filesystem, path


def _protocol(part: str) -> str:
    from fsspec.core import split_protocol  # type: ignore[import-untyped]
    from fsspec.registry import available_protocols  # type: ignore[import-untyped]

    found = split_protocol(part)[0]
    if found:
        return str(found)
    return part if part in available_protocols() else "file"


def _wraps(kind: type) -> bool:
    """Return whether filesystems of a kind are opened over another, as fsspec has it."""
    from fsspec.implementations.chained import (  # type: ignore[import-untyped]
        ChainedFileSystem,
    )

    if issubclass(kind, ChainedFileSystem):
        return True
    names = inspect.signature(kind.__init__).parameters.keys()  # type: ignore[misc]
    return bool({"fo", "target_protocol"} & names)


def located(filesystem: Any, path: str) -> Place:
    """Look behind filesystems whose contents are ranges of others."""
    place = Place(filesystem, path)
    for _ in range(_MOST_LEVELS):
        inner = _inside(place)
        if inner is None:
            return place
        place = inner
    return Place(filesystem, path)


def _inside(place: Place) -> Place | None:
    """Return what a place is a range of; None: of nothing that is known."""
    from fsspec.implementations import (  # type: ignore[import-untyped]
        asyn_wrapper,
        dirfs,
        reference,
        tar,
        zip,
    )

    filesystem, path = place.filesystem, place.path
    # Not isinstance: filesystems with a cache pretend to be others.
    kind = type(filesystem)
    if kind is asyn_wrapper.AsyncFileSystemWrapper:
        return place._replace(filesystem=filesystem.sync_fs)
    if kind is dirfs.DirFileSystem:
        return place._replace(filesystem=filesystem.fs, path=filesystem._join(path))
    if kind is reference.ReferenceFileSystem:
        return _referenced(place)
    if kind is zip.ZipFileSystem:
        return _within(place, filesystem, _in_zip(filesystem, path))
    if kind is tar.TarFileSystem:
        return _within(place, filesystem, _in_tar(filesystem, path))
    return None


def _referenced(place: Place) -> Place | None:
    from fsspec.core import split_protocol

    filesystem = place.filesystem
    part, first, last = filesystem._cat_common(place.path)
    if isinstance(part, bytes):
        end = None if place.nbytes is None else place.offset + place.nbytes
        return Place(None, place.path, data=part[place.offset : end])
    inner = filesystem.fss[split_protocol(part)[0]]
    path = inner._strip_protocol(part)
    if first is None:
        return place._replace(filesystem=inner, path=path)
    length = last - first
    return _shifted(place, inner, path, Place(inner, path, first, length))


def _within(place: Place, archive: Any, member: Place | None) -> Place | None:
    """Return the place of a member in the file that the archive is."""
    from fsspec.core import OpenFile

    outer: Any = getattr(archive, "of", None)
    if member is None or type(outer) is not OpenFile or outer.compression is not None:
        return None
    return _shifted(place, outer.fs, outer.path, member)


def _shifted(place: Place, filesystem: Any, path: str, member: Place) -> Place | None:
    nbytes = member.nbytes or 0
    length = nbytes - place.offset if place.nbytes is None else place.nbytes
    if place.offset + length > nbytes:
        return None
    proofs = [Proof(each.offset + member.offset, each.data) for each in place.proofs]
    return Place(filesystem, path, place.offset + member.offset, length, (*proofs, *member.proofs))


def _in_zip(archive: Any, path: str) -> Place | None:
    """Find a member that is stored as it is."""
    info = archive.zip.getinfo(path)
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.is_dir():
        return None
    archive.fo.seek(info.header_offset)
    header = archive.fo.read(_LOCAL_HEADER.size)
    magic, name, extra = _LOCAL_HEADER.unpack(header)
    if magic != b"PK\3\4" or info.compress_size != info.file_size:
        return None
    start = info.header_offset + _LOCAL_HEADER.size + name + extra
    return Place(None, path, start, info.file_size, (Proof(info.header_offset, header),))


def _in_tar(archive: Any, path: str) -> Place | None:
    """Find a member, or what it links to. Of a compressed archive the proof fails."""
    details = archive.index.get(re.sub("/+", "/", path))
    if details is None:
        return None
    member = archive.tar.getmember(details[2])
    for _ in range(_MOST_LEVELS):
        if member.isreg():
            break
        member = archive.tar._find_link_target(member)
    if not member.isreg() or member.issparse():
        return None
    header = member.offset_data - tarfile.BLOCKSIZE
    archive.fo.seek(header)
    proof = Proof(header, archive.fo.read(tarfile.BLOCKSIZE))
    return Place(None, path, member.offset_data, member.size, (proof,))
