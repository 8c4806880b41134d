"""Control groups: the groups that this process is in, for one controller, and what they say.

Both hierarchies: version 2, and version 1 where that has the controller. In a container the group
of /proc/self/cgroup may be a path of the host; what is mounted decides.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple


class Group(NamedTuple):
    """One control group.

    Attributes
    ----------
    path : str
        Its directory.
    version : int
        1 or 2, of the hierarchy.
    """

    path: str
    version: int

    def number(self, name: str) -> int | None:
        """Read a file with one number; None where there is none, or it says that there is none."""
        text = read(os.path.join(self.path, name))
        return int(text) if text.isdecimal() else None

    def numbers(self, name: str) -> dict[str, int]:
        """Read a file with a name and a number in each line; those that can be read."""
        pairs = (line.split() for line in read(os.path.join(self.path, name)).splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


class _Mount(NamedTuple):
    root: str
    point: str
    kind: str
    options: frozenset[str]


def groups(controller: str, root: str | os.PathLike[str] = "/") -> Iterator[Group]:
    """Return the group of this process for a controller, and those that it is in, innermost first.

    Parameters
    ----------
    controller : str
        ``"memory"`` or ``"pids"``.
    root : path-like
        The root of the file system: another in tests.
    """
    mounts = list(_mounts(root))
    for line in read(os.path.join(root, "proc/self/cgroup")).splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            found = next((each for each in mounts if each.kind == "cgroup2"), None)
        elif controller in names.split(","):
            found = next(
                (each for each in mounts if each.kind == "cgroup" and controller in each.options),
                None,
            )
        else:
            continue
        if found is not None:
            version = 2 if found.kind == "cgroup2" else 1
            yield from (Group(each, version) for each in _upwards(found, path))


def _upwards(mount: _Mount, path: str) -> Iterator[str]:
    """List the directories of a group and of those around it, as far as they can be seen."""
    root = mount.root.rstrip("/")
    inside = path.removeprefix(root) if f"{path}/".startswith(f"{root}/") else path
    parts = [part for part in inside.split("/") if part not in ("", "..")]
    for count in range(len(parts), -1, -1):
        directory = os.path.join(mount.point, *parts[:count])
        # Of a container that has a part of the hierarchy: the path is the host's.
        if os.path.isdir(directory):
            yield directory


def _mounts(root: str | os.PathLike[str]) -> Iterator[_Mount]:
    # proc_pid_mountinfo(5): ID, parent, device, root, mount point, options, any tags, "-", type,
    # source, super options.
    for line in read(os.path.join(root, "proc/self/mountinfo")).splitlines():
        fields, _, tail = line.partition(" - ")
        place, about = fields.split(), tail.split()
        if len(place) >= 5 and len(about) >= 3 and about[0] in ("cgroup", "cgroup2"):
            point = os.path.join(root, place[4].lstrip("/"))
            yield _Mount(place[3], point, about[0], frozenset(about[2].split(",")))


def read(path: str | os.PathLike[str]) -> str:
    """Read a small file; empty where it cannot be read."""
    try:
        with open(path) as file:
            return file.read().strip()
    except (OSError, ValueError):
        return ""
