"""Roots of file systems as a process may find them: /proc, and the control groups it is in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_MOUNTS = {
    1: "31 23 0:27 / {point} rw,relatime shared:9 - cgroup cgroup rw,{controller}\n",
    2: "30 23 0:26 / {point} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n",
}


def make_tree(
    root: Path,
    texts: Mapping[str, str],
    *,
    version: int = 0,
    controller: str = "",
    group: str = "",
    files: Mapping[str, str] | None = None,
) -> Path:
    """Write files below a root, and those of a control group that the process is in.

    `version` 0: no group. Gives the group's directory.
    """
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if not version:
        return root
    point = "/sys/fs/cgroup" if version == 2 else f"/sys/fs/cgroup/{controller}"
    line = f"0::/{group}\n" if version == 2 else f"4:{controller}:/{group}\n"
    mount = _MOUNTS[version].format(point=point, controller=controller)
    directory = root / point.lstrip("/") / group
    directory.mkdir(parents=True, exist_ok=True)
    make_tree(root, {"proc/self/cgroup": line, "proc/self/mountinfo": mount})
    make_tree(directory, files or {})
    return directory
