"""Write docs/contributing/map.md: each source file, with the first sentence it says of itself.

Run: python tools/file_tree.py [--check]
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "contributing" / "map.md"
KINDS = (".py", ".pyx", ".pxi", ".pxd", ".c", ".h")
#: Whose files each have a line; of the others the folder alone.
FOLDERS = {
    "tests/unit": "one file a module; the documents (test_docs.py)",
    "tests/contract": "every row of what the calls promise, and paged memory",
    "tests/kernel": "what the kernel does: the facts that the library is built on",
    "tests/model": "a model of mappings and page tables in Python, and its tests",
    "tests/property": "the model against the kernel, by Hypothesis",
    "tests/stress": "many threads, bounded",
    "tests/sanitize": "C drivers for the move loops and the pager, built with sanitizers",
    "tests/matrix": "the tests in other kernels: fetched, booted, judged",
    "tests/support": "what tests share; needs.py says what a test may need",
    "benchmarks": "one question a file",
    "examples": "each a real job, run by the tests",
    "tools": "what the Makefile and the documents call",
    "docs": "tutorial, how-to, explanation, reference, contributing",
}
HEAD = """# Where things live

`python tools/file_tree.py` writes this page from the first sentence of each file.
A public name leads to its code in two steps: `pagemove.X`, the line in
`src/pagemove/__init__.py`, its file.

"""


def said_of(path: Path) -> str:
    """Return the first sentence of a file's docstring or of its first comment."""
    header = path.with_suffix(".h")
    if path.suffix == ".c" and header.exists():
        path = header
    text = path.read_text()
    opening = re.search(r'^(?:r?"""|/\*)\s*(.*?)(?:"""|\*/|\n\s*\*?\s*\n)', text, re.DOTALL)
    if not opening:
        return ""
    words = re.sub(r"\s*\n\s*(?:\* ?)?", " ", opening[1]).strip()
    sentence = re.split(r"(?<=[a-z0-9)`])[.;:](?:\s|$)", words, maxsplit=1)[0]
    return sentence if len(sentence) <= 90 else sentence[:87].rsplit(" ", 1)[0] + " ..."


def lines_of(folder: Path, depth: int) -> Iterator[str]:
    """Yield the lines of a folder of the package: its files, then its folders."""
    inside = sorted(p for p in folder.iterdir() if p.name != "__pycache__")
    indent = "  " * depth
    for path in inside:
        if path.suffix in KINDS:
            yield f"{indent}{path.name:<{24 - len(indent)}}  {said_of(path)}".rstrip()
    for path in inside:
        if path.is_dir():
            yield f"{indent}{path.name}/"
            yield from lines_of(path, depth + 1)


def page() -> str:
    """Return the page as it should be."""
    tree = ["src/pagemove/", *lines_of(ROOT / "src" / "pagemove", 1)]
    tree += [
        f"{name + '/':<24}  {what}" for name, what in FOLDERS.items() if (ROOT / name).is_dir()
    ]
    return HEAD + "```text\n" + "\n".join(tree) + "\n```\n"


def main(arguments: Sequence[str]) -> int:
    """Write the page, or say whether it is up to date."""
    if "--check" not in arguments:
        PAGE.write_text(page())
    elif PAGE.read_text() != page():
        print(f"{PAGE} is out of date: run python tools/file_tree.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
