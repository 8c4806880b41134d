"""Arrow IPC files, which Feather of version 2 is: columns without nulls, uncompressed.

pyarrow reads the schema. Where the buffers of a batch are is in its metadata; pyarrow would read
the batch to say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from pagemove.containers.flat import Table
from pagemove.containers.layout import Known, Layout, Span, check_apart, check_shape, refused
from pagemove.containers.reading import Reading, ReadingFile
from pagemove.stores.extras import needed

_MAGIC = b"ARROW1"
_BLOCK = "<qi4xq"  # offset, bytes of metadata, bytes of the body
_PAIR = "<qq"
_RECORD_BATCH = 3
_BIG_ENDIAN = 1


class _Batch(NamedTuple):
    """A record batch: where its body begins, and of what it consists."""

    rows: int
    body: int
    nodes: list[tuple[int, ...]]
    buffers: list[tuple[int, ...]]
    compressed: bool


class _Column(NamedTuple):
    """A column of one batch: numbers of its node and its buffer with the values."""

    name: str
    node: int
    values: int
    validity: int
    dtype: np.dtype[Any] | None
    row: tuple[int, ...]
    kind: Any
    after: str = ""  # the column before it that it cannot be found behind


def read(reading: Reading) -> Known:
    """Read footer and metadata; ValueError where they cannot be."""
    arrow = needed("pyarrow", "arrow")
    ipc = needed("pyarrow.ipc", "arrow")
    what = reading.what
    try:
        with ipc.open_file(ReadingFile(reading)) as file:
            schema = file.schema
        footer = _footer(reading)
        # pyarrow says nothing of that: it turns the bytes around as it reads them.
        described = footer.table(1)
        turned = described is not None and described.number(0, "h") == _BIG_ENDIAN
        batches = list(_batches(reading, footer))
        columns = list(_columns(arrow, schema, ">" if turned else "<"))
    # pyarrow's own exceptions derive from these, and so does that for names that are no text.
    except (ValueError, OSError, KeyError, TypeError, NotImplementedError, OverflowError) as error:
        raise ValueError(
            f"{what} begins like an Arrow file, but its metadata cannot be read: "
            f"{str(error)[:300]}; it was cut short or damaged, write it again"
        ) from None
    found: dict[str, Callable[[], Layout]] = {}
    spans, places = [], []
    for number, batch in enumerate(batches):
        for column in columns:
            name = column.name if len(batches) == 1 else f"{column.name}/{number}"
            if name in found:
                raise ValueError(f"{what} has two columns {name!r}: give them different names")
            try:
                layout = _layout(arrow, reading, batch, column, f"{what}: column {name!r}")
            except (TypeError, ValueError) as error:
                found[name] = refused(type(error), str(error))
                continue
            found[name] = lambda known=layout: known  # type: ignore[misc]
            spans.append(Span(layout.offset, layout.nbytes, layout.dtype.alignment))
            places.append((layout.offset, layout.offset + layout.nbytes, name))
    check_apart(what, places)
    return Known("arrow", what, found, spans)


def _footer(reading: Reading) -> Table:
    end = reading.nbytes
    tail = reading.read(max(end - 10, 0), min(10, end), "the end of the file")
    length = int.from_bytes(tail[:4], "little", signed=True)
    if tail[4:] != _MAGIC or not 0 < length <= end - 10:
        raise ValueError("there is no footer at its end")
    return Table.root(reading.read(end - 10 - length, length, "the footer"))


def _batches(reading: Reading, footer: Table) -> Iterator[_Batch]:
    for offset, metadata, _ in footer.structs(3, _BLOCK):
        if offset < 0 or metadata < 8:
            raise ValueError("a record batch cannot be where it is said to be")
        text = reading.read(offset, metadata, "the metadata of a record batch")
        # Four bytes that say that the length follows; older files have the length alone.
        message = Table.root(text[8:] if text[:4] == b"\xff\xff\xff\xff" else text[4:])
        header = message.table(2)
        if message.number(1, "B") != _RECORD_BATCH or header is None:
            raise ValueError("what is said to be a record batch is none")
        yield _Batch(
            header.number(0, "q"),
            offset + metadata,
            header.structs(1, _PAIR),
            header.structs(2, _PAIR),
            header.table(3) is not None,
        )


def _columns(arrow: Any, schema: Any, order: Literal["<", ">"]) -> Iterator[_Column]:
    """List the columns, with the numbers that their nodes and buffers have in every batch."""
    node = buffer = 0
    after = ""
    for field in schema:
        nodes, buffers = _extent(arrow, field.type)
        dtype, row, inner = _dtype(arrow, field.type)
        if dtype is not None:
            dtype = dtype.newbyteorder(order)
        kind = field.type
        yield _Column(field.name, node, buffer + inner + 1, buffer, dtype, row, kind, after)
        if buffers < 0:
            after = after or f"{field.name!r} of type {str(kind)[:200]}"
        node, buffer = node + nodes, buffer + buffers


def _extent(arrow: Any, kind: Any) -> tuple[int, int]:
    """Count the nodes and buffers of a type; buffers are negative where that varies."""
    types = arrow.types
    if isinstance(kind, arrow.BaseExtensionType):
        return _extent(arrow, kind.storage_type)
    own = 2
    if types.is_null(kind):
        own = 0
    elif types.is_struct(kind) or types.is_fixed_size_list(kind):
        own = 1
    elif (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
    ):
        own = 3
    elif types.is_nested(kind) and not (types.is_list(kind) or types.is_large_list(kind)):
        own = 2 if types.is_map(kind) else -1
    elif str(kind).endswith("_view"):
        own = -1
    if own < 0:
        return 1, -1
    nodes, buffers = 1, own
    for child in range(kind.num_fields):
        more = _extent(arrow, kind.field(child).type)
        if more[1] < 0:
            return 1, -1
        nodes, buffers = nodes + more[0], buffers + more[1]
    return nodes, buffers


def _dtype(arrow: Any, kind: Any) -> tuple[np.dtype[Any] | None, tuple[int, ...], int]:
    """Return the dtype of values, the shape of a row, and how many buffers are before them."""
    types = arrow.types
    if isinstance(kind, arrow.BaseExtensionType):
        return _dtype(arrow, kind.storage_type)
    if types.is_fixed_size_list(kind):
        dtype, row, before = _dtype(arrow, kind.value_type)
        return dtype, (kind.list_size, *row), before + 1
    if types.is_integer(kind) or types.is_floating(kind):
        return np.dtype(kind.to_pandas_dtype()), (), 0
    if types.is_timestamp(kind):
        return np.dtype(f"M8[{kind.unit}]"), (), 0
    if types.is_date64(kind):
        return np.dtype("M8[ms]"), (), 0
    # Of a time of day NumPy knows how long it is since midnight.
    if types.is_duration(kind) or types.is_time64(kind):
        return np.dtype(f"m8[{kind.unit}]"), (), 0
    if types.is_fixed_size_binary(kind) and not types.is_decimal(kind):
        return np.dtype(f"V{kind.byte_width}"), (), 0
    return None, (), 0


def _remedy(arrow: Any, kind: Any) -> str:
    """Say how what is in a column that is not one item after another can be had."""
    types = arrow.types
    if types.is_date32(kind):
        return (
            "days in four bytes, and NumPy's have eight: cast it to timestamp('s') or date64, or "
            "to int32, and write it again"
        )
    if types.is_time32(kind):
        return (
            "times in four bytes, and NumPy's have eight: cast it to time64('us'), or to int32, "
            "and write it again"
        )
    if types.is_boolean(kind):
        return "eight of them in a byte: cast it to uint8 and write it again"
    if types.is_dictionary(kind):
        return "numbers of the items of a dictionary: write them as a column of their own (indices)"
    return (
        "which is not one item after another in the file: read it with pyarrow, or write it as "
        "numbers"
    )


def _layout(arrow: Any, reading: Reading, batch: _Batch, column: _Column, what: str) -> Layout:
    if column.dtype is None:
        raise TypeError(
            f"{what} is of type {str(column.kind)[:200]}, {_remedy(arrow, column.kind)}"
        )
    if column.after:
        raise ValueError(
            f"{what} stands behind {column.after}, which has as many buffers as it likes: write it "
            "before that one"
        )
    if batch.compressed:
        raise ValueError(
            f"{what} is compressed, so its bytes are not in the file to be paged: write it with "
            "pyarrow.feather.write_feather(..., compression='uncompressed')"
        )
    # A list of one length has a node of its own, and one for its items.
    inner = column.node + column.values - column.validity - 1
    if inner >= len(batch.nodes) or column.values >= len(batch.buffers):
        raise ValueError(f"{what} is not in its record batch: the file is damaged")
    nodes = batch.nodes[column.node : inner + 1]
    if any(nulls for _, nulls in nodes):
        raise ValueError(
            f"{what} has nulls, which an array cannot have: fill them (pyarrow.compute.fill_null) "
            "and write it again"
        )
    count = batch.rows
    for items, (length, _) in zip((1, *column.row), nodes, strict=True):
        count *= items
        if length != count:
            raise ValueError(
                f"{what} has {length} items where its record batch says {count}: the file is "
                "damaged; write it again"
            )
    shape = (batch.rows, *column.row)
    nbytes = check_shape(what, shape, column.dtype.itemsize)
    offset, length = batch.buffers[column.values]
    if offset < 0 or length < nbytes or batch.body + offset + nbytes > reading.nbytes:
        raise ValueError(
            f"{what} has {length} bytes from byte {batch.body + offset} on, and needs {nbytes}: it "
            "was cut short or damaged; write it again"
        )
    return Layout(column.dtype, shape, fortran=False, offset=batch.body + offset)
