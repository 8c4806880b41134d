"""`pagemove doctor`: what this kernel and this process may do, and what to do about the rest."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pagemove.features import KernelFeatures, features
from pagemove.remedies import DEFECTS, UNUSED_FEATURES, Problem


def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, for programs, and nothing else.")
    ] = False,
) -> None:
    """Tell whether pages can be moved here, and the remedy for each thing that is missing.

    The exit status is 0 where remap_anon_pages works, else 1.
    """
    found = features(refresh=True)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        _print(found, Console())
    raise typer.Exit(0 if found.remap_anon_pages else 1)


def _print(found: KernelFeatures, console: Console) -> None:
    console.print(_table(found))
    for name in found.defects:
        console.print(Text.assemble((f"defect {name}: ", "yellow"), DEFECTS[name]))
    for problem in found.problems:
        if problem.name not in UNUSED_FEATURES:
            _print_problem(problem, console)
    if found.remap_anon_pages:
        console.print(Text("remap_anon_pages works here.", "bold green"))
    else:
        console.print(Text("remap_anon_pages cannot work here.", "bold red"))


def _print_problem(problem: Problem, console: Console) -> None:
    kind, style = ("needed", "bold red") if problem.needed else ("optional", "cyan")
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
        "userfaultfd features": ", ".join(found.uffd_features) or "unknown",
        "PAGEMAP_SCAN": found.pagemap_scan,
        "PROCMAP_QUERY": found.procmap_query,
        "guard regions": found.guard_regions,
        "names of anonymous mappings": found.vma_names,
        "page size": f"{found.page_size} B",
        "huge page size": f"{found.huge_page_size} B",
        "transparent huge pages": found.thp or "none",
        "swap": f"{found.swap} B",
        "KSM": found.ksm or "none",
        "mappings": f"{found.vma_count} of at most {found.max_map_count}",
    }
