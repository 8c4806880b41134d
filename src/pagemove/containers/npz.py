"""Archives of .npy files: .npz, as `numpy.savez` writes it, or any zip."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator

from pagemove.containers.layout import Layout, Packed, Span, check_apart, check_shape, missing
from pagemove.containers.npy import read_header
from pagemove.containers.reading import Reading, ReadingFile
from pagemove.stores.base import Store

_LOCAL = struct.Struct("<4s2xH18xHH")
_ENCRYPTED = 1
_MOST_RATIO = 1032  # of deflate
_PIECE = 1 << 20
# Of the types that NumPy writes none needs more.
_ALIGNMENT = 16


class Archive:
    """What is in an archive."""

    kind = "npz"
    has_chunks = False
    sealed = "its members have checksums, which would be wrong then"

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._infos: dict[str, zipfile.ZipInfo] = {}
        self._layouts: dict[str, Layout] = {}
        what = reading.what
        try:
            with zipfile.ZipFile(ReadingFile(reading)) as archive:
                infos = archive.infolist()
        # Its own exceptions, and those of struct and of text, for what is malformed.
        except (zipfile.BadZipFile, struct.error, OSError, EOFError, ValueError, OverflowError,
                NotImplementedError) as error:  # fmt: skip
            if isinstance(error, OSError) and error.errno:
                raise
            raise ValueError(
                f"{what} begins like a zip archive, but its directory cannot be read: "
                f"{str(error)[:200]}; it was truncated or damaged, write it again"
            ) from None
        for info in infos:
            if info.filename.endswith("/"):  # not is_dir, which an empty name makes raise
                continue
            name = info.filename.removesuffix(".npy")
            if name in self._infos:
                raise ValueError(f"{what} has two members that are {name!r}: write it again")
            self._infos[name] = info
        check_apart(
            what,
            [
                (info.header_offset, info.header_offset + _LOCAL.size + info.compress_size, name)
                for name, info in self._infos.items()
            ],
        )

    def names(self) -> list[str]:
        """List the arrays, without ``.npy``."""
        return list(self._infos)

    def find(self, name: str) -> Layout | Packed:
        """Say where an array is."""
        known = self._layouts.get(name)
        if known is not None:
            return known
        info = self._infos.get(name)
        if info is None:
            raise KeyError(missing(self._reading.what, name, self._infos))
        start, member = self._start(info), self._named(info)
        if info.compress_type != zipfile.ZIP_STORED:
            return self._packed(info, member)
        if info.file_size != info.compress_size:
            raise ValueError(f"{member} is stored, and has two lengths: write it again")
        if not info.file_size:
            raise ValueError(f"{member} is empty, and no array")
        layout = read_header(_Member(self._reading, start, info.file_size, member))
        if layout is None:
            raise ValueError(f"{member} has no .npy header: it is not an array")
        check_shape(member, layout.shape, layout.dtype.itemsize)
        if layout.offset + layout.nbytes > info.file_size:
            raise ValueError(
                f"{member} has {info.file_size} bytes, and shape {layout.shape} of {layout.dtype} "
                f"needs {layout.offset + layout.nbytes}: it was truncated; write it again"
            )
        found = layout._replace(offset=start + layout.offset)
        self._layouts[name] = found
        return found

    def spans(self) -> Iterator[Span]:
        """List where members are; their headers in the archive are read for that, if it is near."""
        if not self._reading.is_near:
            return
        for info in self._infos.values():
            if info.compress_type == zipfile.ZIP_STORED:
                try:
                    yield Span(self._start(info), info.file_size, _ALIGNMENT)
                except ValueError:  # said when the array is opened
                    continue

    def _named(self, info: zipfile.ZipInfo) -> str:
        return f"{self._reading.what}: member {info.filename!r}"

    def _start(self, info: zipfile.ZipInfo) -> int:
        """Return where the bytes of a member begin, after what stands before them."""
        member = self._named(info)
        header = self._reading.read(info.header_offset, _LOCAL.size, f"member {info.filename!r}")
        magic, flags, name, extra = _LOCAL.unpack(header)
        raw = self._reading.read(info.header_offset + _LOCAL.size, name, "the name of a member")
        if (flags | info.flag_bits) & _ENCRYPTED:
            raise ValueError(f"{member} is encrypted: decrypt the archive, and open that")
        written = info.orig_filename.encode("utf-8" if flags & 0x800 else "cp437", "replace")
        if magic != b"PK\3\4" or raw != written:
            raise ValueError(f"{member} is not where the directory has it: write the archive again")
        start = int(info.header_offset + _LOCAL.size + name + extra)
        if start + info.compress_size > self._reading.nbytes:
            raise ValueError(
                f"{member} ends at byte {start + info.compress_size}, and the file has "
                f"{self._reading.nbytes}: it was truncated; write or copy it again"
            )
        return start

    def _packed(self, info: zipfile.ZipInfo, member: str) -> Packed:
        if info.compress_type == zipfile.ZIP_DEFLATED and (
            info.file_size > info.compress_size * _MOST_RATIO + _PIECE
        ):
            raise ValueError(
                f"{member} is said to have {info.file_size} bytes, and {info.compress_size} "
                "deflated ones cannot be that many: it is damaged or malicious"
            )

        def pieces() -> Iterator[bytes]:
            done = 0
            try:
                with (
                    zipfile.ZipFile(ReadingFile(self._reading)) as archive,
                    archive.open(info) as file,
                ):
                    while piece := file.read(_PIECE):
                        done += len(piece)
                        if done > info.file_size:
                            raise ValueError("there is more than its length says")
                        yield piece
                if done < info.file_size:
                    raise ValueError("there is less than its length says")
            except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError,
                    RuntimeError) as error:  # fmt: skip
                raise ValueError(f"{member} cannot be decompressed: {error}") from None

        return Packed(info.file_size, pieces)


def read(reading: Reading) -> Archive:
    """Read the directory of an archive."""
    return Archive(reading)


class _Member(Store):
    """The bytes of a member, for who reads its header."""

    def __init__(self, reading: Reading, start: int, nbytes: int, shown: str) -> None:
        self._reading, self._start, self._nbytes, self._shown = reading, start, nbytes, shown

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def read_into(self, offset: int, buffer: memoryview | bytearray) -> None:
        buffer[:] = self._reading.read(self._start + offset, len(buffer))

    def __repr__(self) -> str:
        return self._shown
