"""How figures look: colours, titles, axes, labels that do not lie on one another."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#222222"
FAINT = "#666666"

# Colours that people with any colour vision can distinguish, after Okabe and Ito.
GREEN, BLUE, SKY, RED, ORANGE, PINK = (
    "#009E73",
    "#0072B2",
    "#56B4E9",
    "#D55E00",
    "#E69F00",
    "#CC79A7",
)


def tidy(axes: Axes, title: str) -> None:
    """Set the title of axes, and remove what is not needed."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)


def spread_apart(levels: list[float], gap: float, lines: list[int] | None = None) -> list[float]:
    """Move labels apart until neighbours differ by `gap`; their order stays.

    With `lines`, how many each label has, a gap is between labels of one line: it grows with them.
    """
    placed = list(levels)
    heights = lines or [1] * len(levels)
    order = sorted(range(len(levels)), key=lambda number: levels[number])
    for _ in range(200):
        lacking = False
        for low, high in itertools.pairwise(order):
            wanted = gap * (heights[low] + heights[high]) / 2
            lack = wanted - (placed[high] - placed[low])
            if lack > gap / 1000:
                placed[low] -= lack / 2
                placed[high] += lack / 2
                lacking = True
        if not lacking:
            break
    return placed
