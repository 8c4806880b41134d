"""`pagemove doctor`: what this kernel and this process may do, and what to do about the rest."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from pagemove import stdout
from pagemove.checkup import deadly_probes, try_moving, try_paging
from pagemove.cli.output import Output
from pagemove.kernel import DEFECTS, UNUSED_FEATURES, KernelFeatures, Problem
from pagemove.paging.available import LEAST, SHARE, available
from pagemove.paging.sizes import text_of
from pagemove.probing import features, look


def doctor(
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print JSON, for programs, and nothing else; --json FILE writes a file."
        ),
    ] = False,
    file: Annotated[Path | None, typer.Argument(hidden=True)] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also list what is missing but not needed.")
    ] = False,
) -> None:
    """Check whether pages can be moved here, and say what to do about what is missing.

    The exit status is 0 where remap_anon_pages and paged memory work, else 1.
    """
    if file and not as_json:
        raise typer.BadParameter(f"unexpected argument {str(file)!r}: --json {file} writes to it")
    killed = deadly_probes()
    found = look(killed) if killed else features(refresh=True)
    if not killed:
        found = _tried(found)
    pages = bool(found.paging) and not killed and not _failures(found)
    if as_json:
        text = json.dumps(found.as_dict(), indent=2)
        stdout.write(text + "\n", file or stdout.STANDARD_OUTPUT)
    else:
        _print(found, Output(), pages=pages, everything=everything)
    raise typer.Exit(0 if found.remap_anon_pages and pages else 1)


def _tried(found: KernelFeatures) -> KernelFeatures:
    """Add what is in the way when it is really done: the limits of the process."""
    tries = (
        try_moving(found) if found.remap_anon_pages else None,
        try_paging(found) if found.paging else None,
    )
    return replace(found, problems=(*(problem for problem in tries if problem), *found.problems))


def _failures(found: KernelFeatures) -> list[Problem]:
    return [problem for problem in found.problems if problem.name == "paged_memory"]


def _print(found: KernelFeatures, console: Output, *, pages: bool, everything: bool) -> None:
    if found.remap_anon_pages:
        console.print(Text("remap_anon_pages works here.", "bold green"))
    else:
        console.print(Text("remap_anon_pages cannot work here.", "bold red"))
    if pages:
        console.print(Text("Paged memory works here.", "bold green"))
    else:
        console.print(Text("Paged memory cannot work here.", "bold red"))
    needed = [problem for problem in found.problems if problem.needed] + _failures(found)
    optional = [
        problem
        for problem in found.problems
        if problem not in needed and problem.name not in UNUSED_FEATURES
    ]
    for problem in needed:
        _print_problem("needed", problem, console)
    console.print(_table(found))
    for name in found.defects:
        console.print(Text.assemble((f"defect {name}: ", "yellow"), DEFECTS[name]))
    if everything:
        for problem in optional:
            _print_problem("optional", problem, console)
    elif optional:
        names = ", ".join(problem.name for problem in optional)
        console.print(Text(f"Missing and not needed: {names} (pagemove doctor --all)."))


def _print_problem(kind: str, problem: Problem, console: Output) -> None:
    style = "bold red" if kind == "needed" else "cyan"
    console.print(Text.assemble((f"{kind} {problem.name}: ", style), problem.missing))
    # A wrapped command cannot be copied: leave breaking the line to the terminal.
    console.print(Text(f"    {problem.remedy}"), soft_wrap=True)


def _table(found: KernelFeatures) -> Table:
    table = Table("what", "here", title=f"Linux {found.release}", title_justify="left")
    for name, value in _rows(found).items():
        if isinstance(value, bool):
            table.add_row(name, Text("yes", "green") if value else Text("no", "red"))
        else:
            table.add_row(name, Text(value))
    return table


def _automatic() -> str:
    memory = available()
    if memory is None:
        return "none: the memory available is unknown"
    return (
        f"{text_of(max(memory // SHARE, LEAST))}, half of the memory available; less under pressure"
    )


def _compression(found: KernelFeatures) -> str:
    if found.compression:
        return f"by {found.compression}, in the process"
    if importlib.util.find_spec("zstandard") is not None:
        return "by a helper process: neither liblz4.so.1 nor libzstd.so.1 is there"
    return "no: install liblz4 or libzstd of the system, or zstandard"


def _rows(found: KernelFeatures) -> dict[str, bool | str]:
    sysctl = found.unprivileged_userfaultfd
    return {
        "userfaultfd(2), user mode only": found.userfaultfd_user_mode,
        "userfaultfd(2), kernel faults too": found.userfaultfd_syscall,
        "/dev/userfaultfd": found.userfaultfd_device,
        "vm.unprivileged_userfaultfd": "unknown" if sysctl is None else str(sysctl),
        "seccomp filter": ("none", "strict", "filtered")[found.seccomp],
        "UFFDIO_MOVE": "MOVE" in found.uffd_features,
        "paged memory": {"move": "by UFFDIO_MOVE", "mremap": "by mremap", "": "no"}[found.paging],
        "compressed memory": _compression(found),
        "userfaultfd features": ", ".join(found.uffd_features) or "unknown",
        "PAGEMAP_SCAN": found.pagemap_scan,
        "PROCMAP_QUERY": found.procmap_query,
        "guard regions": found.guard_regions,
        "names of anonymous mappings": found.vma_names,
        "files are read by": "io_uring" if found.io_uring else "threads",
        "resident_limit='auto'": _automatic(),
        "page size": f"{found.page_size} B",
        "huge page size": f"{found.huge_page_size} B",
        "transparent huge pages": found.thp or "none",
        "swap": f"{found.swap} B",
        "KSM": found.ksm or "none",
        "mappings": f"{found.vma_count} of at most {found.max_map_count}"
        if found.max_map_count
        else "unknown",
    }
