"""Draws a trial: what happened over time, and how long faults took."""

from __future__ import annotations

import itertools
import math
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from pagemove.measuring.drawing import BLUE, FAINT, GREEN, INK, ORANGE, RED, spread_apart, tidy
from pagemove.paging.sizes import text_of
from pagemove.trial.report import by_power, duration_of, title
from pagemove.trial.trying import Outcome, Rates

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What a curve over time is drawn from has to last this part of the run, or it is all spikes.
_STEPS = 80


def _steps(outcome: Outcome) -> tuple[list[float], list[Rates]]:
    """Return the ends of intervals of about equal length, and what happened in each."""
    apart = outcome.samples[-1].seconds / _STEPS
    chosen = [outcome.samples[0]]
    for sample in outcome.samples[1:]:
        if sample.seconds - chosen[-1].seconds >= apart or sample is outcome.samples[-1]:
            chosen.append(sample)
    rates = [Rates.between(*pair) for pair in itertools.pairwise(chosen)]
    return [sample.seconds for sample in chosen], rates


def _staircase(
    axes: Axes, edges: list[float], levels: list[float], colour: str, mean: float, unit: str
) -> None:
    axes.stairs(levels, edges, color=colour, linewidth=2)
    axes.stairs(levels, edges, color=colour, alpha=0.15, fill=True)
    axes.axhline(mean, color=FAINT, linewidth=1, linestyle=":")
    _beside(axes, f"{unit.format(mean)}\nover all", mean, INK)


def _beside(axes: Axes, text: str, level: float, colour: str) -> None:
    """Label a curve where it ends, right of the axes."""
    axes.annotate(
        text,
        (1, level),
        xycoords=("axes fraction", "data"),
        xytext=(6, 0),
        textcoords="offset points",
        fontsize=9,
        color=colour,
        va="center",
        annotation_clip=False,
    )


def _throughput(axes: Axes, outcome: Outcome, edges: list[float], rates: list[Rates]) -> None:
    verb = "Read and rewritten" if outcome.plan.write else "Read"
    tidy(axes, f"{verb}, GB/s")
    levels = [each.gigabytes for each in rates]
    _staircase(axes, edges, levels, BLUE, outcome.rates.gigabytes, "{:.2f} GB/s")
    axes.set_ylim(0, max(levels) * 1.1 or 1)


def _hits(axes: Axes, outcome: Outcome, edges: list[float], rates: list[Rates]) -> None:
    tidy(axes, "Touches that found their block in place, %")
    levels = [each.hit_rate * 100 for each in rates]
    _staircase(axes, edges, levels, GREEN, outcome.rates.hit_rate * 100, "{:.1f} %")
    axes.set_ylim(0, 105)


def _memory(axes: Axes, outcome: Outcome) -> None:
    unit, name = (1 << 20, "MiB") if outcome.plan.limit >= 1 << 20 else (1 << 10, "KiB")
    tidy(axes, f"In memory, {name}")
    seconds = [sample.seconds for sample in outcome.samples]
    resident = [sample.stats.resident_nbytes / unit for sample in outcome.samples]
    limit = outcome.plan.limit / unit
    axes.fill_between(seconds, resident, color=ORANGE, alpha=0.25, linewidth=0)
    axes.plot(seconds, resident, color=ORANGE, linewidth=2)
    labels = [("resident", resident[-1], "#9A6A00")]
    if outcome.plan.write:
        dirty = [sample.stats.dirty_nbytes / unit for sample in outcome.samples]
        axes.plot(seconds, dirty, color=RED, linewidth=1.6)
        labels.append(("not yet written", dirty[-1], RED))
    axes.axhline(limit, color=INK, linewidth=1, linestyle="--")
    text = f"the limit: {text_of(outcome.plan.limit)}"
    axes.text(seconds[-1], limit * 1.03, text, ha="right", va="bottom", fontsize=9, color=INK)
    top = max(limit, *resident) * 1.25
    axes.set_ylim(0, top)
    levels = spread_apart([level for _, level, _ in labels], top * 0.13)
    for (label, _, colour), level in zip(labels, levels, strict=True):
        _beside(axes, label, level, colour)
    axes.set_xlabel("seconds", fontsize=9, color=INK)


def _latencies(axes: Axes, outcome: Outcome) -> None:
    stats = outcome.stats
    tidy(axes, "How long a touching thread waited for a fault")
    powers = by_power(stats)
    if not powers:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "there were no faults", ha="center", va="center", color=FAINT)
        return
    lefts = [2.0 ** (power - 1) for power in powers]
    axes.bar(lefts, list(powers.values()), width=lefts, align="edge", color=BLUE, edgecolor="white")
    axes.set_xscale("log", base=2)
    most = max(powers.values())
    # The further left one is higher, so that no line crosses a text.
    for percent, level in ((50, 1.26), (99, 1.14)):
        bound = stats.percentile(percent)
        axes.plot([bound, bound], [0, most * level], color=INK, linewidth=1, linestyle="--")
        label = f" {percent} % below {duration_of(bound)}"
        axes.text(bound, most * level, label, fontsize=9, color=INK, va="top")
    low = min(powers) - 1.5
    # Room for the text right of the last line, which is a third as wide as the axes.
    high = max(max(powers) + 0.5, low + 8, low + (math.log2(stats.p99_ns) - low) / 0.64)
    axes.set_xlim(2.0**low, 2.0**high)
    ticks = [10.0**exponent for exponent in range(1, 13)]
    shown = [tick for tick in ticks if 2.0**low <= tick <= 2.0**high]
    axes.set_xticks(shown, [duration_of(tick) for tick in shown])
    axes.minorticks_off()
    axes.set_ylim(0, most * 1.32)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_ylabel("faults", fontsize=9, color=INK)


def _totals(axes: Axes, outcome: Outcome) -> None:
    stats, last = outcome.stats, outcome.samples[-1]
    rows = [
        ("touched", f"{last.touches:,} blocks, {text_of(last.nbytes)}"),
        ("faults", f"{stats.faults:,}; {outcome.rates.faults:,.0f} a second"),
        ("without I/O", f"{stats.soft_faults:,} of the faults"),
        ("slowest fault", f"below {duration_of(stats.percentile(100))}"),
        ("read ahead", f"{stats.prefetched:,} blocks"),
        ("evicted", f"{stats.evicted:,} blocks"),
        ("read", text_of(stats.bytes_read)),
        ("resident at most", text_of(outcome.most_resident)),
    ]
    if outcome.plan.write:
        rows.insert(2, ("write faults", f"{stats.write_faults:,}"))
        rows.insert(-1, ("written", text_of(stats.bytes_written)))
    if stats.errors:
        rows.append(("errors", f"{stats.errors:,}"))
    axes.set_axis_off()
    for number, (what, value) in enumerate(rows):
        level = 1 - number / len(rows)
        axes.text(0.0, level, what, fontsize=9.5, color=FAINT, va="top")
        axes.text(0.4, level, value, fontsize=9.5, color=INK, va="top")


def draw(outcome: Outcome, path: Path) -> None:
    """Draw the figure into a file whose name says its format; see `outputs.check_figure`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7.5), dpi=120, facecolor="white")
    figure.suptitle(
        "Paging under a limit",
        x=0.05,
        y=0.965,
        ha="left",
        fontsize=17,
        fontweight="bold",
        color=INK,
    )
    text = title(outcome.plan, outcome.nbytes)
    here = f"Linux {platform.release()} on {platform.machine()}. Measured by pagemove page."
    figure.text(0.05, 0.905, f"{text[0].upper()}{text[1:]}. {here}", fontsize=10, color=FAINT)
    grid = figure.add_gridspec(3, 1, hspace=0.45, left=0.05, right=0.5, top=0.84, bottom=0.075)
    edges, rates = _steps(outcome)
    throughput = figure.add_subplot(grid[0])
    _throughput(throughput, outcome, edges, rates)
    hits = figure.add_subplot(grid[1], sharex=throughput)
    _hits(hits, outcome, edges, rates)
    memory = figure.add_subplot(grid[2], sharex=throughput)
    _memory(memory, outcome)
    throughput.set_xlim(0, max(outcome.samples[-1].seconds, 1e-3))
    right = figure.add_gridspec(
        2, 1, height_ratios=(1.7, 1), hspace=0.25, left=0.64, right=0.97, top=0.84, bottom=0.075
    )
    _latencies(figure.add_subplot(right[0]), outcome)
    _totals(figure.add_subplot(right[1]), outcome)
    figure.savefig(path)
