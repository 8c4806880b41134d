"""What the pager did, and when: ``PAGEMOVE_TRACE=FILE``, for Perfetto and chrome://tracing."""

from __future__ import annotations

import atexit
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pagemove._native import pager
from pagemove._native.mapping import generation
from pagemove.paging.exits import tell

# The layout is that of _native/pager/mechanisms/trace.c.
_HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("events", "u4"),
        ("threads", "u4"),
        ("regions", "u4"),
        ("process", "u4"),
        ("monotonic", "u8"),
        ("realtime", "u8"),
        ("next_event", "u8"),
        ("next_thread", "u8"),
        ("next_region", "u8"),
        ("unused", "V64"),
    ]
)
_THREAD = np.dtype([("process", "u4"), ("thread", "u4"), ("name", "S16")])
_REGION = np.dtype(
    [("base", "u8"), ("length", "u8"), ("process", "u4"), ("block_size", "u4"), ("label", "S96")]
)
_EVENT = np.dtype(
    [
        ("sequence", "u8"),
        ("began", "u8"),
        ("ended", "u8"),
        ("region", "u8"),
        ("offset", "u8"),
        ("bytes", "u8"),
        ("process", "u4"),
        ("thread", "u4"),
        ("error", "i4"),
        ("kind", "u2"),
        ("unused", "u2"),
    ]
)
_KINDS = {
    1: "fault",
    2: "read",
    3: "write",
    4: "sync",
    5: "evict",
    6: "retry",
    7: "failed",
    8: "flush",
}
_MOMENTS = frozenset([5, 6, 7])


def begin(path: str) -> None:
    """Trace into a file from here on. Errors are said, and nothing else."""
    target = Path(path.replace("%p", str(os.getpid()))).absolute()
    try:
        target, ring = _claim(target)
    except OSError as error:
        tell(f"PAGEMOVE_TRACE={path}: cannot trace into {target}: {error.strerror}")
        return
    atexit.register(_finish, ring, target, generation())


def _claim(target: Path) -> tuple[Path, Path]:
    """Make the file of events beside the target; beside another one, if a process has that."""
    for path in (target, target.with_name(f"{target.name}.{os.getpid()}")):
        ring = path.with_name(path.name + ".ring")
        if _owner(ring) or not _put_aside(ring):
            continue
        try:
            fd = os.open(ring, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            continue
        try:
            # All of it now: a thread of the pager that finds the disk full would get SIGBUS.
            os.posix_fallocate(fd, 0, pager.trace_bytes())
            failed = pager.trace_into(fd)
            if failed:
                raise OSError(failed, os.strerror(failed))
        except OSError:
            ring.unlink()
            raise
        finally:
            os.close(fd)
        return path, ring
    raise FileExistsError(errno.EEXIST, "another process traces into it")


def _put_aside(ring: Path) -> bool:
    """Keep the events of a process that was killed under its number. False: it is another file."""
    try:
        header = np.fromfile(ring, _HEADER, 1)
    except FileNotFoundError:
        return True
    if not len(header) or header["magic"][0] != b"pmtrace1":
        return False
    ring.rename(ring.with_suffix(f".{header['process'][0]}.ring"))
    return True


def _owner(ring: Path) -> int:
    """Return the process that still writes a file of events, or 0."""
    try:
        header = np.fromfile(ring, _HEADER, 1)
        process = int(header["process"][0]) if len(header) else 0
        if process:
            os.kill(process, 0)
    except PermissionError:
        return process
    except OSError:
        return 0
    return process


def _finish(ring: Path, target: Path, born: int) -> None:
    if generation() != born:
        return  # in a forked child
    try:
        convert(ring, target)
        ring.unlink()
    except (OSError, ValueError) as error:
        tell(f"the trace stays in {ring}, since {target} cannot be written: {error}")


def convert(ring: str | os.PathLike[str], target: str | os.PathLike[str]) -> int:
    """Make a trace for Perfetto of a file of events, also of a process that runs or was killed.

    Parameters
    ----------
    ring : path-like
        The file that ``PAGEMOVE_TRACE=FILE`` made: FILE with ``.ring`` at its end.
    target : path-like
        What is written, in the Trace Event Format (JSON).

    Returns
    -------
    int
        How many events there are. The newest 131,072 are kept.

    Raises
    ------
    ValueError
        `ring` is no file of events.
    OSError
        It cannot be read, or `target` not be written.
    """
    header, threads, regions, events = _load(Path(ring))
    with open(target, "w") as file:
        file.write('{"displayTimeUnit":"ns","traceEvents":[\n')
        separator = ""
        for one in _trace_events(header, threads, regions, events):
            file.write(separator + json.dumps(one, separators=(",", ":")))
            separator = ",\n"
        file.write("\n]}\n")
    return len(events)


def _load(path: Path) -> tuple[Any, Any, Any, Any]:
    data = np.fromfile(path, np.uint8)
    if len(data) < _HEADER.itemsize or data[:8].tobytes() != b"pmtrace1":
        raise ValueError(f"{os.fspath(path)!r} is no file of events of PAGEMOVE_TRACE")
    header = data[: _HEADER.itemsize].view(_HEADER)[0]
    parts, at = [], _HEADER.itemsize
    for dtype, count in (
        (_THREAD, int(header["threads"])),
        (_REGION, int(header["regions"])),
        (_EVENT, int(header["events"])),
    ):
        end = at + count * dtype.itemsize
        if not count or end > len(data):
            raise ValueError(f"{os.fspath(path)!r} is truncated: {len(data)} bytes")
        parts.append(data[at:end].view(dtype))
        at = end
    threads, regions, events = parts
    threads = threads[: int(header["next_thread"])]
    regions = regions[: int(header["next_region"])]
    # One that is being written has no number, or that of an earlier one.
    events = events[events["sequence"] > 0]
    return header, threads, regions, events[np.argsort(events["sequence"])]


def _trace_events(header: Any, threads: Any, regions: Any, events: Any) -> Iterator[dict[str, Any]]:
    labels = {}
    for region in regions:
        labels[int(region["process"]), int(region["base"])] = region["label"].decode(
            errors="replace"
        )
    for thread in threads:
        yield {
            "ph": "M",
            "name": "thread_name",
            "pid": int(thread["process"]),
            "tid": int(thread["thread"]),
            "args": {"name": thread["name"].decode(errors="replace")},
        }
    began = int(header["monotonic"])
    for event in events:
        kind, process, base = int(event["kind"]), int(event["process"]), int(event["region"])
        common = {
            "name": _KINDS.get(kind, str(kind)),
            "cat": "pagemove",
            "pid": process,
            "tid": int(event["thread"]),
        }
        args = {
            "region": labels.get((process, base), "") or hex(base),
            "offset": int(event["offset"]),
            "bytes": int(event["bytes"]),
        }
        if event["error"]:
            args["error"] = name_of(-int(event["error"]))
        start, end = ((int(event[name]) - began) / 1000 for name in ("began", "ended"))
        if kind in _MOMENTS:
            yield {**common, "ph": "i", "s": "t", "ts": end, "args": args}
        elif kind == 1:
            # Of threads of the program; several wait at the same time.
            same = {**common, "id": int(event["sequence"])}
            yield {**same, "ph": "b", "ts": start, "args": args}
            yield {**same, "ph": "e", "ts": end}
        else:
            yield {**common, "ph": "X", "ts": start, "dur": end - start, "args": args}


def name_of(code: int) -> str:
    """Return the name of an errno, or of what the pager says to itself."""
    named = errno.errorcode.get(code) or pager.CODES.get(code)
    return named or str(code)
