"""Makes docs/reference/kernels.md of the results that are kept: python -m matrix.table."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "kernels.md"

Result = dict[str, Any]

_HEAD = """\
# Kernels it was tried on

<!-- Made by tests/matrix/table.py from tests/matrix/results/. Do not edit it. -->

`make test-kernels` boots kernels of Debian in QEMU and runs the tests in them: what the kernel
does, what the call and paged memory promise, the models against the kernel; of each test one set
of parameters or a few. The full selection has all of these, the short one (that of continuous
integration) a part. What follows was made from what these runs have written down. The machine is
emulated in software: counts of what happens in a race are those of a slow machine, and seconds
those of one that had other work too. Swap space needs a module, which the archive has not of 6.19
to 7.1. Kernels are of amd64 unless another flavour is named.
"""

_OBSERVED = {
    "zero_page": "the page of zeros",
    "huge_zero_page": "the huge page of zeros, by a raw call",
    "huge_page_whole": "a huge page, both sides aligned",
    "huge_page_in_a_pipe": "part of a huge page of which a pipe holds another part",
    "write_protection": "write protection by userfaultfd of a page that moves",
    "soft_dirty": "soft-dirty bit of a page that was clean",
    "shared_page": "a page shared with a child; after it has ended; after a write",
    "pinned_page": "a page pinned by io_uring",
    "occupied_destination": "destination occupied, source without a page table",
    "guard_page": "a guard page in PAGEMAP_SCAN",
    "flushes_of_a_run": "TLB shootdowns for a run of 512 pages",
    "moves_beside_mprotect": "moves for each mprotect(2) of 64 MiB beside them (about 1 where "
    "all mappings have one lock)",
    "eagain": "calls answered with EAGAIN, beside madvise(MADV_COLD)",
    "stale_eagain": "pages moved and denied, beside madvise(MADV_COLD)",
}
_DOCTOR: dict[str, Callable[[Result], str]] = {
    "UFFDIO_MOVE": lambda d: _yes("MOVE" in d["uffd_features"]),
    "UFFDIO_POISON": lambda d: _yes("POISON" in d["uffd_features"]),
    "asynchronous write protection": lambda d: _yes("WP_ASYNC" in d["uffd_features"]),
    "read-write protection (RWP), which pagemove does not use": lambda d: _yes(
        "RWP" in d["uffd_features"]
    ),
    "features of userfaultfd that pagemove has no name for": lambda d: (
        ", ".join(name for name in d["uffd_features"] if name.startswith("BIT_")) or "none"
    ),
    "PAGEMAP_SCAN": lambda d: _yes(d["pagemap_scan"]),
    "PROCMAP_QUERY": lambda d: _yes(d["procmap_query"]),
    "guard pages": lambda d: _yes(d["guard_regions"]),
    "names of anonymous mappings": lambda d: _yes(d["vma_names"]),
}


def _yes(value: object) -> str:
    return "yes" if value else "no"


def _name(result: Result) -> str:
    """The release, with the flavour where it is not the usual one."""
    flavour = result.get("flavour", "amd64")
    return result["version"] + ("" if flavour == "amd64" else f" {flavour}")


def results(folder: Path = RESULTS) -> list[Result]:
    """Read all that are kept, oldest kernel first."""
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]

    def key(each: Result) -> tuple[str, list[int]]:
        return each.get("flavour", "amd64"), [int(part) for part in each["version"].split(".")]

    return sorted(found, key=key)


def _rows(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def _works(result: Result) -> tuple[str, str]:
    doctor = result["doctor"]
    paging = {"move": "by UFFDIO_MOVE", "mremap": "by mremap and copy", "": "no"}
    return "works" if doctor["remap_anon_pages"] else "refused", paging[doctor["paging"]]


def _counts(result: Result) -> str:
    failed = len(result["failed"])
    text = f"{sum(result['passed'].values())} passed, {failed} failed, "
    text += f"{sum(result['skipped'].values())} skipped"
    return text + (f"; {result['broken'].strip().splitlines()[-1]}" if result["broken"] else "")


def _reason(text: str) -> str:
    """A reason for skipping, without what differs from run to run."""
    return re.sub(r": b'.*", "", text).replace("|", "\\|")


def _refused(result: Result) -> Iterator[list[str]]:
    for problem in result["doctor"]["problems"]:
        if problem["needed"] or problem["name"] == "paging_by_move":
            yield [_name(result), problem["name"], problem["missing"]]
    for defect in result["doctor"]["defects"]:
        yield [_name(result), defect["name"], defect["consequence"]]


def page(found: list[Result]) -> str:
    """Return the text of the page."""
    versions = [_name(result) for result in found]
    parts = [_HEAD, "## What works\n"]
    parts.append(
        _rows(
            ["Linux", "Debian's", "the call", "paged memory", "selection", "tests", "seconds"],
            [
                [
                    _name(result),
                    result["release"],
                    *_works(result),
                    result.get("plan", "full"),
                    _counts(result),
                    round(result["seconds"].get("tests", 0)),
                ]
                for result in found
            ],
        )
    )
    parts.append("## What is refused, or kept clear of, and why\n")
    refused = [row for result in found for row in _refused(result)]
    parts.append(_rows(["Linux", "what", "why, and what pagemove does"], refused))
    parts.append("## What each kernel does by itself\n\nTried with raw calls (`lowlevel`).\n")
    parts.append(
        _rows(
            ["", *versions],
            [
                [text, *(result["observed"].get(name, "not tried") for result in found)]
                for name, text in _OBSERVED.items()
            ],
        )
    )
    parts.append("## What each kernel has\n")
    parts.append(
        _rows(
            ["", *versions],
            [[text, *(get(result["doctor"]) for result in found)] for text, get in _DOCTOR.items()],
        )
    )
    parts.append("## Why tests were skipped\n")
    reasons: dict[str, list[str]] = {}
    for result in found:
        for text, count in result["skipped"].items():
            reasons.setdefault(_reason(text), []).append(f"{_name(result)} ({count})")
    parts.append(
        _rows(["reason", "on"], [[text, ", ".join(on)] for text, on in sorted(reasons.items())])
    )
    failed = [(_name(r), name) for r in found for name in r["failed"]]
    if failed:
        parts.append("## What failed\n")
        parts.append(_rows(["Linux", "test"], [[v, f"`{name}`"] for v, name in failed]))
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(results()))
