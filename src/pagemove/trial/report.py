"""Prints how a trial goes, while it does, and what came of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pagemove.paging.sizes import text_of
from pagemove.paging.stats import PagingStats
from pagemove.trial.trying import Outcome, Plan, Rates, Sample

_BAR_WIDTH = 40
# The live rates are those of so many seconds: of less they are hard to read.
_RECENT_SECONDS = 1.0


def title(plan: Plan, nbytes: int) -> str:
    """Say in a line what is tried."""
    verb = "reads and rewrites" if plan.write else "reads"
    return (
        f"{plan.pattern} {verb} of {plan.source.name} ({text_of(nbytes)}), blocks of "
        f"{text_of(plan.block_size)}, at most {text_of(plan.limit)} resident"
    )


def duration_of(nanoseconds: float) -> str:
    """Write a time for people: ``12.5 us``, ``3.2 ms``."""
    for limit, unit in ((1e3, "ns"), (1e6, "us"), (1e9, "ms")):
        if nanoseconds < limit:
            return f"{nanoseconds * 1e3 / limit:.3g} {unit}"
    return f"{nanoseconds / 1e9:.3g} s"


@contextmanager
def live(plan: Plan, nbytes: int, console: Console) -> Iterator[Callable[[Sample], None]]:
    """Show samples as they come, on a terminal; return the function that takes them.

    Nothing is drawn but by that function: a thread that draws meanwhile would be measured.
    """
    if not console.is_terminal:
        yield lambda sample: None
        return
    recent: list[Sample] = []
    with Live(console=console, auto_refresh=False, transient=True) as display:

        def show(sample: Sample) -> None:
            recent.append(sample)
            while len(recent) > 2 and sample.seconds - recent[1].seconds >= _RECENT_SECONDS:
                del recent[0]
            rates = Rates.between(recent[0], sample)
            display.update(_now(plan, nbytes, sample, rates), refresh=True)

        yield show


def _now(plan: Plan, nbytes: int, sample: Sample, rates: Rates) -> Table:
    resident = sample.stats.resident_nbytes
    table = Table(title=title(plan, nbytes), title_justify="left", show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(justify="right", width=20)
    table.add_column(width=_BAR_WIDTH)
    table.add_row("faults/s", f"{rates.faults:,.0f}", "")
    table.add_row("GB/s", f"{rates.gigabytes:.2f}", "")
    table.add_row("hit rate", f"{rates.hit_rate:.1%}", _bar(rates.hit_rate, 1))
    table.add_row("resident", text_of(resident), _bar(resident, plan.limit))
    if plan.write:
        dirty = sample.stats.dirty_nbytes
        table.add_row("not yet written", text_of(dirty), _bar(dirty, plan.limit))
    table.add_row(
        "elapsed",
        f"{sample.seconds:.1f} of {plan.seconds:g} s",
        _bar(sample.seconds, plan.seconds),
    )
    return table


def _bar(part: float, whole: float) -> ProgressBar:
    return ProgressBar(total=whole, completed=min(part, whole), width=_BAR_WIDTH)


def show(outcome: Outcome, console: Console) -> None:
    """Print the totals, and how long faults took."""
    console.print(Text(title(outcome.plan, outcome.nbytes), "bold"), soft_wrap=True)
    console.print(_totals(outcome))
    for note in _notes(outcome):
        console.print(note, style="dim", highlight=False)
    if outcome.stats.histogram:
        console.print(_latencies(outcome.stats))


def _totals(outcome: Outcome) -> Table:
    stats, rates, last = outcome.stats, outcome.rates, outcome.samples[-1]
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column()

    def row(what: str, value: str, remark: str = "") -> None:
        table.add_row(what, value, Text(remark, "dim"))

    row("time", f"{last.seconds:.2f} s", "stopped early" if outcome.interrupted else "")
    row("touched", f"{last.touches:,} blocks", f"{text_of(last.nbytes)}, every byte of them")
    row("GB/s", f"{rates.gigabytes:.2f}")
    row("faults", f"{stats.faults:,}", f"{rates.faults:,.0f} a second")
    row("hit rate", f"{rates.hit_rate:.2%}", "touches that found their block in place")
    row("served without I/O", f"{stats.soft_faults:,}", "faults on blocks that were still at hand")
    row("read ahead", f"{stats.prefetched:,} blocks")
    row("evicted", f"{stats.evicted:,} blocks")
    row(
        "resident at most",
        text_of(outcome.most_resident),
        f"of {text_of(outcome.plan.limit)} allowed",
    )
    row("read", text_of(stats.bytes_read))
    if outcome.plan.write:
        row("write faults", f"{stats.write_faults:,}", "first writes to blocks read before")
        row("written", text_of(stats.bytes_written), f"{stats.written_back:,} blocks")
        row("flush", f"{outcome.flush_seconds:.2f} s", "at the end, until all of it was durable")
    if stats.retries or stats.errors:
        row("retries, errors", f"{stats.retries:,}, {stats.errors:,}")
    if stats.faults:
        row("fault latency", f"{duration_of(stats.p50_ns)}", "half of all faults, at most")
        row("", f"{duration_of(stats.p99_ns)}", "99 of 100 faults, at most")
    return table


def _notes(outcome: Outcome) -> Iterator[str]:
    if outcome.nbytes <= outcome.plan.limit:
        yield "All of it fits below the limit: nothing has to leave. Try a smaller --limit."
    if outcome.samples[-1].nbytes < outcome.nbytes:
        yield "There was no time for all of it. Try more --seconds."


def _latencies(stats: PagingStats) -> Table:
    """Show the histogram, with a row for each power of two."""
    powers = by_power(stats)
    most = max(powers.values())
    table = Table(title="How long faults took", title_justify="left", box=None, padding=(0, 1))
    table.add_column("less than", justify="right")
    table.add_column("faults", justify="right")
    table.add_column("", width=_BAR_WIDTH)
    for power in range(min(powers), max(powers) + 1):
        count = powers[power]
        filled = math.ceil(count / most * _BAR_WIDTH)
        table.add_row(duration_of(2**power), f"{count:,}", Text("█" * filled, "cyan"))
    return table


def by_power(stats: PagingStats) -> Counter[int]:
    """Count faults by the power of two, in nanoseconds, that they took less than."""
    powers: Counter[int] = Counter()
    for bound, count in stats.histogram:
        powers[max(bound - 1, 1).bit_length()] += count
    return powers
