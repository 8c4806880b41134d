"""What one operation costs, for each method, size, state of the caches, and kind of company."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from pagemove import UnsupportedError, lowlevel
from pagemove.compare import methods as all_methods
from pagemove.compare.methods import Method, RemapAnonPages, Size
from pagemove.compare.plan import Bench
from pagemove.measuring.endings import Stopped, Unmeasurable
from pagemove.measuring.machine import Area, Chill, Intrusions, running_sibling
from pagemove.measuring.timing import Crossover, Spread, Task, crossovers, interleave, spread

COLD = "cold"
WARM = "warm"

# Starting and ending siblings takes the measuring thread some of its own time.
_UNDISTURBED = 0.8

#: What the crossover points are computed against, for remap_anon_pages.
RIVALS = (
    all_methods.Mremap.name,
    all_methods.MremapKeepSource.name,
    all_methods.Memcpy.name,
    all_methods.MemcpyFresh.name,
    all_methods.UffdioCopy.name,
)


@dataclass(frozen=True, slots=True)
class Cost:
    """One measured cost.

    Attributes
    ----------
    method : str
        Its name.
    size : str
        Label of what one operation brings over.
    pages : int
        The same in pages.
    huge : bool
        Whether it is a huge page.
    caches : str
        `COLD`: since it was last touched, twice the largest cache was read; `WARM`: it was just
        brought over and read.
    sibling : bool
        Whether another thread of the process was running on another CPU.
    ns : Spread
        Nanoseconds for one operation.
    """

    method: str
    size: str
    pages: int
    huge: bool
    caches: str
    sibling: bool
    ns: Spread


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where remap_anon_pages and a rival change places.

    Attributes
    ----------
    rival : str
        The other method.
    caches, sibling
        As in `Cost`.
    points : tuple of Crossover
        In pages; empty if one of them is cheaper at every size.
    cheaper_below : str
        The cheaper one at the smallest size.
    """

    rival: str
    caches: str
    sibling: bool
    points: tuple[Crossover, ...]
    cheaper_below: str


@dataclass(frozen=True, slots=True)
class Costs:
    """All of them.

    Attributes
    ----------
    costs : tuple of Cost
        One for each combination that could be measured.
    crossings : tuple of Crossing
        Computed from them; huge pages take no part.
    empty_calls : dict of str to Spread
        Nanoseconds of the calls themselves. Contained in `costs`, nowhere subtracted.
    chilled_by : int
        Bytes that were read to make the caches cold.
    left_out : tuple of str
        What could not be measured, and why.
    cpu_share, sibling_share : float
        How much of the time the measuring thread, and the running sibling, had a CPU: less than
        nearly 1 says that other processes were busy. 0 for a sibling that there was not.
    """

    costs: tuple[Cost, ...]
    crossings: tuple[Crossing, ...]
    empty_calls: dict[str, Spread]
    chilled_by: int
    left_out: tuple[str, ...]
    cpu_share: float
    sibling_share: float

    @property
    def disturbed(self) -> bool:
        """Whether other processes took so much time that the figures deserve little trust."""
        return self.cpu_share < _UNDISTURBED or 0 < self.sibling_share < _UNDISTURBED

    def find(self, method: str, size: str, *, caches: str, sibling: bool) -> Spread | None:
        """Return one cost, or None if it was not measured."""
        for cost in self.costs:
            if (cost.method, cost.size, cost.caches, cost.sibling) == (
                method,
                size,
                caches,
                sibling,
            ):
                return cost.ns
        return None

    def curve(self, method: str, *, caches: str, sibling: bool) -> list[Cost]:
        """Return the costs of one method by the number of pages, without the huge page."""
        chosen = [
            cost
            for cost in self.costs
            if (cost.method, cost.caches, cost.sibling) == (method, caches, sibling)
            and not cost.huge
        ]
        return sorted(chosen, key=lambda cost: cost.pages)

    def labels(self) -> list[str]:
        """List the sizes there are, in the order of measuring."""
        return list(dict.fromkeys(cost.size for cost in self.costs))

    def companies(self) -> list[bool]:
        """List the kinds of company there were: without and with a running sibling."""
        return sorted({cost.sibling for cost in self.costs})


def find_crossings(costs: Costs) -> tuple[Crossing, ...]:
    """Compare remap_anon_pages with each rival, in each state of the caches and company."""
    found = []
    own = RemapAnonPages.name
    for sibling in costs.companies():
        for caches in (COLD, WARM):
            ours = costs.curve(own, caches=caches, sibling=sibling)
            for rival in RIVALS:
                theirs = costs.curve(rival, caches=caches, sibling=sibling)
                if not ours or [cost.pages for cost in ours] != [cost.pages for cost in theirs]:
                    continue
                one = [cost.ns.median for cost in ours]
                other = [cost.ns.median for cost in theirs]
                points = crossovers([cost.pages for cost in ours], one, other, (own, rival))
                below = own if one[0] < other[0] else rival
                found.append(Crossing(rival, caches, sibling, tuple(points), below))
    return tuple(found)


def _empty_calls(rounds: int) -> dict[str, Spread]:
    calls = 256
    here = [(n, n) for n in range(calls)]
    with Area(1) as area:
        nothing = area.view(area.address, 0)
        views = [(nothing, nothing)] * calls

        def loop() -> None:
            for _destination, _source in here:
                pass

        def copy_nothing() -> None:
            for destination, source in views:
                destination[:] = source

        def ask_nothing() -> None:
            call, address = lowlevel.mincore, area.address
            for _destination, _source in here:
                call(address, 0)

        times = interleave(
            [
                Task("the loop around the calls", loop, calls),
                Task("copying nothing", copy_nothing, calls),
                Task("a system call that does nothing (mincore)", ask_nothing, calls),
            ],
            rounds,
        )
    return {what: spread(samples) for what, samples in times.items()}


@contextmanager
def _prepared(size: Size, kinds: Sequence[type[Method]]) -> Iterator[list[Method]]:
    with ExitStack() as stack:
        ready = []
        for kind in kinds:
            one = kind(size)
            stack.callback(one.close)
            # The first run registers memory and fills caches of the library.
            one.warm()
            ready.append(one)
        yield ready


def _conditions(sibling_cpu: int | None) -> list[tuple[bool, str]]:
    companies = (False,) if sibling_cpu is None else (False, True)
    return [(sibling, caches) for sibling in companies for caches in (COLD, WARM)]


@dataclass(slots=True)
class _Samples:
    """Everything timed so far, by size, condition and method; and how long siblings really ran."""

    times: dict[tuple[Size, bool, str, str], list[float]] = field(default_factory=dict)
    shares: list[float] = field(default_factory=list)

    def add(self, size: Size, bench: Bench, chill: Chill, kinds: Sequence[type[Method]]) -> None:
        """Measure one size in each condition, with memory allocated in the order of `kinds`."""
        with _prepared(size, kinds) as ready:
            for sibling, caches in _conditions(bench.sibling_cpu):
                cold = caches == COLD
                tasks = [
                    Task(
                        one.name,
                        one.run,
                        size.slots,
                        prepare=_nothing if cold else one.warm,
                        restore=one.restore,
                    )
                    for one in ready
                ]
                before_group = chill if cold else _nothing
                with running_sibling(bench.sibling_cpu if sibling else None) as company:
                    found = interleave(
                        tasks,
                        bench.plan.rounds,
                        before_group=before_group,
                        watch=Intrusions(company),
                    )
                    if company:
                        self.shares.append(company.share())
                for name, times in found.items():
                    self.times.setdefault((size, sibling, caches, name), []).extend(times)

    def costs(self, size: Size) -> Iterator[Cost]:
        """Summarise what was timed for one size."""
        for (of, sibling, caches, name), times in self.times.items():
            if of == size:
                yield Cost(name, size.label, size.pages, size.huge, caches, sibling, spread(times))


def _nothing() -> None:
    pass


def measure(bench: Bench) -> Costs:
    """Measure everything that the plan asks for, or, when time is up, each size once at least."""
    started, worked = time.monotonic(), time.thread_time()
    chill = Chill()
    stopped = False
    samples = _Samples()
    kinds = all_methods.ALL
    sizes = bench.plan.sizes()
    left_out: dict[str, list[Size]] = {}
    turns = [(sitting, size) for sitting in range(bench.plan.sittings) for size in sizes]
    try:
        for number, (sitting, size) in enumerate(turns):
            if sitting and time.monotonic() > bench.deadline:
                break
            if any(size in those for those in left_out.values()):
                continue
            bench.tick(f"timing {size}", number / len(turns))
            first = sitting * len(kinds) // bench.plan.sittings
            try:
                samples.add(size, bench, chill, [*kinds[first:], *kinds[:first]])
            except UnsupportedError:
                raise
            except OSError as error:
                left_out.setdefault(str(error), []).append(size)
    except KeyboardInterrupt:
        if not samples.times:
            raise
        stopped = True
    reasons = [f"{', '.join(map(str, those))}: {why}" for why, those in left_out.items()]
    if bench.sibling_cpu is None:
        reasons.append("beside a running thread: only one CPU may be used")
    if not any(size.huge for size in sizes):
        reasons.append("one huge page: this kernel has no transparent huge pages")
    if stopped:
        reasons.append("what was not yet measured when it was interrupted")
    if not samples.times:
        raise Unmeasurable("; ".join(reasons))
    costs = Costs(
        costs=tuple(cost for size in sizes for cost in samples.costs(size)),
        crossings=(),
        empty_calls=_empty_calls(bench.plan.sittings * bench.plan.rounds),
        chilled_by=chill.nbytes,
        left_out=tuple(reasons),
        cpu_share=(time.thread_time() - worked) / (time.monotonic() - started),
        sibling_share=spread(samples.shares).median if samples.shares else 0.0,
    )
    costs = replace(costs, crossings=find_crossings(costs))
    if stopped:
        raise Stopped(costs)
    return costs
