"""Draw docs/_static/{move,fault,eviction}.svg: what becomes of pages, in 360 units of width.

Run: python docs/figures/diagrams.py [FOLDER]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "_static"
WIDTH = 360
INK, FAINT, GREEN, EMPTY = "#1F2A33", "#5B6873", "#007A55", "#F1F4F6"


def text(x: float, y: float, words: str, *, colour: str = INK, bold: bool = False) -> str:
    """Write words, centred at x."""
    weight = ' font-weight="bold"' if bold else ""
    place = f'x="{x}" y="{y}" text-anchor="middle"'
    return f'<text {place} fill="{colour}"{weight}>{words}</text>'


def cells(x: float, y: float, contents: str) -> str:
    """Draw pages in a row: a letter is one that is there, a dot is a hole."""
    drawn = []
    for number, letter in enumerate(contents):
        left = x + 30 * number
        fill, dash = (GREEN, "") if letter != "." else (EMPTY, ' stroke-dasharray="3 3"')
        drawn.append(
            f'<rect x="{left}" y="{y}" width="30" height="30" fill="{fill}" '
            f'stroke="{FAINT}"{dash}/>'
        )
        if letter != ".":
            drawn.append(text(left + 15, y + 20, letter, colour="white", bold=True))
    return "".join(drawn)


def box(x: float, y: float, width: float, words: str) -> str:
    """Draw a box with words in it."""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="34" rx="5" fill="white" stroke="{INK}"/>'
        + text(x + width / 2, y + 22, words)
    )


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """Draw an arrow."""
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{INK}" stroke-width="2" '
        'marker-end="url(#head)"/>'
    )


def picture(title: str, height: int, *parts: str) -> str:
    """Put parts into a picture."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'role="img" font-family="sans-serif" font-size="13"><title>{title}</title>'
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" '
        f'markerHeight="6" orient="auto"><path d="M0 0 8 4 0 8z" fill="{INK}"/></marker></defs>'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>{"".join(parts)}</svg>\n'
    )


def move() -> str:
    """Draw a move: the page changes its mapping, and nothing is copied."""
    return picture(
        "A page moves from one mapping to another",
        250,
        text(90, 22, "before", bold=True),
        text(270, 22, "after", bold=True),
        text(90, 50, "source", colour=FAINT),
        cells(30, 58, "ABCD"),
        text(90, 174, "destination", colour=FAINT),
        cells(30, 126, "...."),
        arrow(105, 90, 105, 124),
        arrow(162, 110, 198, 110),
        text(270, 50, "source", colour=FAINT),
        cells(210, 58, "AB.D"),
        text(270, 174, "destination", colour=FAINT),
        cells(210, 126, "..C."),
        text(180, 200, "The page table entry changes; the bytes stay"),
        text(180, 218, "where they are. The source is left with a hole."),
        text(180, 236, "A page at the destination is an error: EEXIST."),
    )


def fault() -> str:
    """Draw a fault: a touch of a block that is absent, until the thread goes on."""
    return picture(
        "A thread touches a block that is not resident",
        300,
        text(75, 20, "region", colour=FAINT),
        cells(15, 28, "A.CD"),
        box(205, 26, 140, "pager (in C)"),
        arrow(137, 36, 202, 36),
        text(170, 22, "1 fault"),
        box(205, 126, 140, "slot"),
        box(205, 216, 140, "store"),
        arrow(275, 214, 275, 163),
        text(312, 195, "3 read"),
        arrow(275, 62, 275, 123),
        text(320, 98, "2 choose"),
        arrow(203, 143, 62, 62),
        text(80, 138, "4 move the block in"),
        text(80, 190, "The thread waits"),
        text(80, 208, "from 1 to 4. It sees"),
        text(80, 226, "the whole block,"),
        text(80, 244, "or raises SIGBUS."),
        text(180, 284, "The lock is not held during 3.", colour=FAINT),
    )


def eviction() -> str:
    """Draw an eviction: a block leaves by a move, so that no store is lost."""
    return picture(
        "A block leaves when the limit is reached",
        300,
        text(75, 20, "region", colour=FAINT),
        cells(15, 28, "A.CD"),
        box(205, 26, 140, "outgoing slot"),
        arrow(137, 43, 202, 43),
        text(170, 24, "1 move"),
        box(205, 126, 140, "store"),
        arrow(275, 62, 275, 123),
        text(306, 88, "2 write"),
        text(312, 106, "if dirty"),
        box(205, 216, 140, "free frame"),
        arrow(275, 162, 275, 213),
        text(313, 192, "3 reuse"),
        text(95, 118, "A store of any thread"),
        text(95, 136, "comes before the move,"),
        text(95, 154, "and is in the block, or"),
        text(95, 172, "after it, and faults."),
        text(95, 205, "A touch before 3"),
        text(95, 223, "gets the block back"),
        text(95, 241, "without a read."),
        text(180, 284, "Copying out cannot promise that.", colour=FAINT),
    )


def main(arguments: Sequence[str]) -> int:
    """Write the three pictures."""
    folder = Path(arguments[0]) if arguments else FOLDER
    for drawn in (move, fault, eviction):
        (folder / f"{drawn.__name__}.svg").write_text(drawn())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
