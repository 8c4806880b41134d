"""Draws the measured argument: one figure that speaks for itself."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pagemove.compare import methods
from pagemove.compare.costs import COLD, WARM, Costs
from pagemove.compare.growth import MREMAP, MREMAP_KEPT, REMAP_ANON_PAGES, Mappings
from pagemove.compare.scenarios import Argument
from pagemove.compare.verdicts import Verdict
from pagemove.measuring.drawing import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    PINK,
    RED,
    SKY,
    spread_apart,
    tidy,
)
from pagemove.measuring.timing import crossovers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OWN = methods.RemapAnonPages.name
_VERDICTS = {
    Verdict.HOLDS: "#007A55",
    Verdict.IN_PART: "#B07000",
    Verdict.FAILS: "#B22222",
    Verdict.UNMEASURED: FAINT,
}


class _Curve(NamedTuple):
    method: str
    caches: str
    label: str
    colour: str
    width: float
    style: str


_CURVES = (
    _Curve(
        methods.MemcpyFresh.name,
        COLD,
        "copy into fresh memory,\ndiscard the source",
        PINK,
        1.6,
        "-",
    ),
    _Curve(methods.UffdioCopy.name, COLD, "UFFDIO_COPY", ORANGE, 1.6, "-"),
    _Curve(methods.Memcpy.name, COLD, "copy (memory there)", RED, 2.4, "-"),
    _Curve(methods.Memcpy.name, WARM, "copy, caches warm", RED, 1.4, ":"),
    _Curve(methods.Mremap.name, COLD, "mremap:\nmove the mapping", BLUE, 2.4, "-"),
    _Curve(_OWN, COLD, "remap_anon_pages:\nmove the pages", GREEN, 3.6, "-"),
)
# The two sides of the argument and copying: the strip below the curves compares these.
_STRIP = {
    methods.Memcpy.name: "copying is cheapest",
    _OWN: "moving pages",
    methods.Mremap.name: "moving mappings",
}
_STRIP_HEIGHT = 0.07
_GROWTH = {REMAP_ANON_PAGES: GREEN, MREMAP_KEPT: SKY, MREMAP: BLUE}
_BARS = (
    (_OWN, "move the page", GREEN),
    (methods.Mremap.name, "move the mapping", BLUE),
    (methods.Memcpy.name, "copy", RED),
    (methods.MemcpyFresh.name, "copy into fresh\nmemory, discard", PINK),
    (methods.UffdioCopy.name, "UFFDIO_COPY", ORANGE),
)


def _nothing_there(axes: Axes, why: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, textwrap.fill(why, 40), ha="center", va="center", color=FAINT)


def _per_page(costs: Costs, curve: _Curve, *, sibling: bool) -> tuple[list[int], list[float]]:
    found = costs.curve(curve.method, caches=curve.caches, sibling=sibling)
    return [c.pages for c in found], [c.ns.median / 1000 / c.pages for c in found]


def _quartiles(costs: Costs, curve: _Curve, *, sibling: bool) -> tuple[list[float], list[float]]:
    found = costs.curve(curve.method, caches=curve.caches, sibling=sibling)
    return (
        [c.ns.lower / 1000 / c.pages for c in found],
        [c.ns.upper / 1000 / c.pages for c in found],
    )


def _costs(axes: Axes, costs: Costs, *, sibling: bool) -> None:
    title = "beside a running thread of the same process" if sibling else "alone"
    tidy(axes, f"Microseconds per page, {title}")
    if sibling not in costs.companies():
        _nothing_there(axes, "beside a running thread: needs a second CPU")
        return
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    labelled: list[tuple[_Curve, int, float]] = []
    for curve in _CURVES:
        pages, us = _per_page(costs, curve, sibling=sibling)
        if not pages:
            continue
        axes.plot(pages, us, curve.style, color=curve.colour, linewidth=curve.width)
        axes.fill_between(
            pages,
            *_quartiles(costs, curve, sibling=sibling),
            color=curve.colour,
            alpha=0.13,
            linewidth=0,
        )
        labelled.append((curve, pages[-1], us[-1]))
    if not labelled:
        _nothing_there(axes, "could not be measured")
        return
    pages_first = min(_per_page(costs, curve, sibling=sibling)[0][0] for curve, _, _ in labelled)
    ends = [math.log10(end) for _, _, end in labelled]
    lines = [curve.label.count("\n") + 1 for curve, _, _ in labelled]
    bottom, top = (math.log10(y) for y in axes.get_ylim())
    levels = spread_apart(ends, (top - bottom) * 0.062, lines)
    for (curve, last, _), level in zip(labelled, levels, strict=True):
        axes.annotate(
            curve.label,
            (last, 10**level),
            xytext=(8, 0),
            textcoords="offset points",
            color=curve.colour,
            fontsize=9,
            va="center",
            annotation_clip=False,
        )
    # Room for the strip below all curves.
    axes.set_ylim(10 ** (bottom - (top - bottom) * 0.15), 10**top)
    axes.set_xlim(pages_first / 1.3, labelled[0][1] * 1.3)
    _strip(axes, costs, sibling=sibling)
    ticks = [pages for pages in (1, 4, 16, 64, 256, 1024, 4096, 16384) if pages <= labelled[0][1]]
    axes.set_xticks(ticks, [f"{pages:,}" for pages in ticks])
    axes.set_xlabel("pages brought over by one operation", fontsize=9, color=INK)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(visible=True, which="major", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)


def _cheapest(costs: Costs, *, sibling: bool) -> list[tuple[float, _Curve]]:
    """Return where each of the three methods in the argument begins to be the cheapest."""
    sizes: list[int] = []
    rivals: dict[str, tuple[_Curve, list[float]]] = {}
    for curve in reversed(_CURVES):  # ours, with whose sizes the others are compared, is the last
        pages, us = _per_page(costs, curve, sibling=sibling)
        sizes = sizes or pages
        if pages and pages == sizes and curve.caches == COLD and curve.method in _STRIP:
            rivals[curve.method] = (curve, us)
    if not rivals:
        return []
    start, best = float(sizes[0]), min(rivals, key=lambda name: rivals[name][1][0])
    changes = [(start, rivals[best][0])]
    while later := [
        (point.size, other)
        for other in rivals.keys() - {best}
        for point in crossovers(sizes, rivals[best][1], rivals[other][1], (best, other))
        if point.size > start and point.cheaper == other
    ]:
        start, best = min(later)
        changes.append((start, rivals[best][0]))
    return changes


def _strip(axes: Axes, costs: Costs, *, sibling: bool) -> None:
    """Say along the bottom which method is the cheapest, and from how many pages on."""
    changes = _cheapest(costs, sibling=sibling)
    if not changes:
        return
    low, high = axes.get_xlim()
    across = axes.get_xaxis_transform()
    starts = [low, *(start for start, _ in changes[1:])]
    for start, end, (_, curve) in zip(starts, [*starts[1:], high], changes, strict=True):
        axes.axvspan(start, end, 0, _STRIP_HEIGHT, color=curve.colour, linewidth=0, zorder=3)
        if math.log(end / start) > 0.2 * math.log(high / low):
            axes.text(
                math.sqrt(start * end),
                _STRIP_HEIGHT / 2,
                _STRIP[curve.method],
                transform=across,
                ha="center",
                va="center",
                fontsize=9,
                fontweight="bold",
                color="white",
                zorder=4,
            )
    for number, (start, _) in enumerate(changes[1:]):
        axes.axvline(start, color=FAINT, linewidth=0.8, linestyle=":", zorder=2)
        # The first number stands left of its line and the others right, so that two lines close
        # together keep theirs apart.
        axes.annotate(
            f"{start:,.0f} pages",
            (start, _STRIP_HEIGHT),
            xycoords=across,
            xytext=(4 if number else -4, 5),
            textcoords="offset points",
            ha="left" if number else "right",
            fontsize=9,
            color=INK,
            zorder=6,
        )


def _growth(axes: Axes, data: Mappings) -> None:
    tidy(axes, "Mappings added by moving scattered pages")
    longest = max(growth.moves for growth in data.growths)
    axes.axhline(data.limit, color=FAINT, linewidth=1, linestyle="--")
    axes.text(
        longest,
        data.limit * 1.02,
        f"the kernel's limit: {data.limit:,}",
        ha="right",
        va="bottom",
        fontsize=9,
        color=FAINT,
    )
    steepest_first = sorted(data.growths, key=lambda growth: -growth.per_move)
    for number, growth in enumerate(steepest_first):
        colour = _GROWTH[growth.method]
        moves, added = zip((0, 0), *growth.points, strict=True)
        axes.plot(moves, added, color=colour, linewidth=2.6, clip_on=False)
        if growth.ended_by:
            axes.plot(
                moves[-1], added[-1], "X", color=colour, markersize=10, clip_on=False, zorder=5
            )
            text = f"{growth.method}: {growth.ended_by} after {growth.moves:,} moves"
        else:
            text = f"{growth.method}: {added[-1]:,} mappings after {growth.moves:,} moves"
        axes.text(
            0.99,
            0.24 - 0.095 * number,
            text,
            ha="right",
            fontsize=9,
            color=colour,
            transform=axes.transAxes,
        )
    axes.set_xlim(0, longest)
    axes.set_ylim(0, max(data.limit, *(g.points[-1][1] for g in data.growths)) * 1.12)
    axes.set_xlabel("moves made", fontsize=9, color=INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.locator_params(axis="x", nbins=4)


def _huge_page(axes: Axes, costs: Costs) -> None:
    found = [
        (label, colour, ns.median / 1000)
        for name, label, colour in _BARS
        if (ns := costs.find(name, "one huge page", caches=COLD, sibling=False))
    ]
    if not found:
        _nothing_there(axes, "one huge page: could not be measured")
        return
    tidy(axes, "One huge page, in microseconds")
    labels, colours, times = zip(*reversed(found), strict=True)
    axes.barh(labels, times, color=colours, height=0.62)
    for row, us in enumerate(times):
        axes.text(
            us * 1.08, row, f"{us:,.0f}" if us >= 10 else f"{us:.1f}", va="center", fontsize=9
        )
    axes.set_xscale("log")
    axes.set_xlim(min(times) / 2, max(times) * 3)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _claims(axes: Axes, argument: Argument) -> None:
    axes.set_axis_off()
    axes.set_title("The claims, judged", loc="left", fontsize=11, fontweight="bold", color=INK)
    level = 0.97
    for scenario, finding in argument.findings:
        lines = textwrap.wrap(scenario.claim, 58)
        axes.text(0, level, "\n".join(lines), va="top", fontsize=8.2, color=INK, linespacing=1.1)
        level -= 0.047 * len(lines)
        verdict = f"{scenario.who}: {finding.verdict.value}"
        axes.text(
            0,
            level,
            verdict,
            va="top",
            fontsize=8.2,
            fontweight="bold",
            color=_VERDICTS[finding.verdict],
        )
        level -= 0.068


def draw(argument: Argument, path: Path) -> None:
    """Draw the figure into a file whose name says its format; see `outputs.check_figure`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 10), dpi=120, facecolor="white")
    grid = figure.add_gridspec(
        2,
        12,
        height_ratios=(1.25, 1),
        hspace=0.3,
        wspace=0.4,
        left=0.05,
        right=0.89,
        top=0.88,
        bottom=0.085,
    )
    # The middle panel has long labels at its left; the claims may use the margin of the curves.
    lower = figure.add_gridspec(
        1,
        3,
        width_ratios=(1.1, 0.75, 1.15),
        wspace=0.42,
        left=0.05,
        right=0.985,
        top=0.4,
        bottom=0.085,
    )
    here = argument.machine
    figure.suptitle(
        "Moving pages, moving mappings, copying: which is cheaper?",
        x=0.05,
        y=0.965,
        ha="left",
        fontsize=17,
        fontweight="bold",
        color=INK,
    )
    figure.text(
        0.05,
        0.918,
        f"Linux {here.kernel} on {here.architecture}, pages of {here.page_size // 1024} KiB. "
        "Medians, with the middle half shaded; caches cold unless it says warm. Lower is better. "
        "Measured by pagemove compare.",
        fontsize=10,
        color=FAINT,
    )
    costs = argument.measured.get("costs")
    if costs and costs.disturbed:
        figure.text(
            0.05,
            0.015,
            "Other processes disturbed this measurement: its thread had a CPU for only "
            f"{costs.cpu_share:.0%} of the time. Repeat it on a quiet machine.",
            fontsize=10,
            color=_VERDICTS[Verdict.FAILS],
        )
    mappings = argument.measured.get("mappings")
    left = figure.add_subplot(grid[0, :5])
    right = figure.add_subplot(grid[0, 7:])
    for axes, sibling in ((left, False), (right, True)):
        if costs:
            _costs(axes, costs, sibling=sibling)
        else:
            _nothing_there(axes, "costs could not be measured")
    if costs and len(costs.companies()) == 2:
        limits = [*left.get_ylim(), *right.get_ylim()]
        for axes in (left, right):
            axes.set_ylim(min(limits), max(limits))
    growing = figure.add_subplot(lower[0])
    if mappings:
        _growth(growing, mappings)
    else:
        _nothing_there(growing, "mappings could not be counted")
    huge = figure.add_subplot(lower[1])
    if costs:
        _huge_page(huge, costs)
    else:
        _nothing_there(huge, "costs could not be measured")
    _claims(figure.add_subplot(lower[2]), argument)
    figure.savefig(path)
