"""How figures look: colours, titles, axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#222222"
FAINT = "#666666"

# Colours that people with any colour vision can tell apart, after Okabe and Ito.
GREEN, BLUE, SKY, RED, ORANGE, PINK = (
    "#009E73",
    "#0072B2",
    "#56B4E9",
    "#D55E00",
    "#E69F00",
    "#CC79A7",
)


def tidy(axes: Axes, title: str) -> None:
    """Give axes their title, and take away what is not needed."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
