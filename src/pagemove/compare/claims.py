"""What the measured costs say of three claims: cheap units, detection, and copying."""

from __future__ import annotations

from collections.abc import Iterator

from pagemove.compare import methods
from pagemove.compare.costs import COLD, WARM, Costs
from pagemove.compare.verdicts import Finding, Verdict
from pagemove.measuring.endings import Unmeasurable
from pagemove.measuring.timing import Spread, below

_OWN = methods.RemapAnonPages.name
_HUGE = "one huge page"
_COMPANY = {False: "alone", True: "beside a running thread"}


def microseconds(ns: float) -> str:
    """Write nanoseconds as microseconds with three digits that count."""
    us = ns / 1000
    return f"{us:,.0f}" if us >= 100 else f"{us:.3g}"


def one_unit(costs: Costs) -> Finding:
    """Ask whether moving one page, or one huge page, is cheaper than mremap of it."""
    cheaper = []
    parts = []
    for label, what in (("1", "one page"), (_HUGE, _HUGE)):
        for sibling in costs.companies():
            ours = costs.find(_OWN, label, caches=COLD, sibling=sibling)
            theirs = costs.find(methods.Mremap.name, label, caches=COLD, sibling=sibling)
            if ours is None or theirs is None:
                continue
            cheaper.append(below(ours, theirs))
            figures = f"{microseconds(ours.median)} against {microseconds(theirs.median)} us"
            parts.append(f"{what} {_COMPANY[sibling]}: {figures}")
    if not cheaper:
        raise Unmeasurable("neither one page nor one huge page could be timed")
    above = [
        f"{crossing.points[-1].size:.0f} pages ({_COMPANY[crossing.sibling]})"
        for crossing in costs.crossings
        if crossing.rival == methods.Mremap.name
        and crossing.caches == COLD
        and crossing.points
        and crossing.points[-1].cheaper == methods.Mremap.name
    ]
    why = f"remap_anon_pages against mremap: {'; '.join(parts)}."
    if above:
        why += f" mremap is the cheaper one from about {' and '.join(above)} on."
    return Finding.of(cheaper, why)


def _slower(costs: Costs, detecting: str, plain: str) -> list[bool | None]:
    """Return for each size that was measured whether detecting is slower."""
    answers = []
    for label in costs.labels():
        with_it = costs.find(detecting, label, caches=COLD, sibling=False)
        without = costs.find(plain, label, caches=COLD, sibling=False)
        if with_it and without:
            answers.append(below(without, with_it))
    return answers


def _added(costs: Costs, detecting: str, plain: str) -> str:
    with_it = costs.find(detecting, "1", caches=COLD, sibling=False)
    without = costs.find(plain, "1", caches=COLD, sibling=False)
    if not with_it or not without:
        return "not measured"
    return f"{microseconds(without.median)} us become {microseconds(with_it.median)}"


def detection(costs: Costs) -> Finding:
    """Ask whether detecting costs something both where it fails and where it succeeds."""
    cases = (
        ("Where it cannot", methods.DetectingMremapFailing.name, methods.MremapOccupied.name),
        ("Where it can", methods.DetectingMremap.name, _OWN),
    )
    slower: list[bool | None] = []
    parts = []
    for where, detecting, plain in cases:
        answers = _slower(costs, detecting, plain)
        slower += answers
        parts.append(
            f"{where}, detecting is clearly slower than {plain} at {answers.count(True)} of "
            f"{len(answers)} sizes; one page: {_added(costs, detecting, plain)}."
        )
    if not slower:
        raise Unmeasurable("no size could be timed")
    return Finding.of(slower, " ".join(parts))


def _duels(costs: Costs, rival: str) -> Iterator[tuple[bool, str, str, Spread, Spread]]:
    for sibling in costs.companies():
        for caches in (COLD, WARM):
            for label in costs.labels():
                ours = costs.find(_OWN, label, caches=caches, sibling=sibling)
                theirs = costs.find(rival, label, caches=caches, sibling=sibling)
                if ours and theirs:
                    yield sibling, caches, label, ours, theirs


def _range_of_copying(costs: Costs, sibling: bool, caches: str) -> str:
    for crossing in costs.crossings:
        key = (crossing.rival, crossing.sibling, crossing.caches)
        if key == (methods.Memcpy.name, sibling, caches):
            if crossing.points:
                pages = " and ".join(f"{point.size:.1f}" for point in crossing.points)
                return f"they change places at {pages} pages"
            return f"{crossing.cheaper_below} is cheaper at every size"
    return "not measured"


def copying(costs: Costs) -> Finding:
    """Ask whether moving ever beats copying into memory that is there already."""
    wins = losses = 0
    for _sibling, _caches, _label, ours, theirs in _duels(costs, methods.Memcpy.name):
        wins += below(ours, theirs) is True
        losses += below(theirs, ours) is True
    if not wins and not losses:
        raise Unmeasurable("no difference beyond the noise at any size")
    parts = [
        f"{caches} caches, {_COMPANY[sibling]}: {_range_of_copying(costs, sibling, caches)}"
        for sibling in costs.companies()
        for caches in (COLD, WARM)
    ]
    fresh = list(_duels(costs, methods.MemcpyFresh.name))
    beaten = sum(below(ours, theirs) is True for *_, ours, theirs in fresh)
    why = (
        f"Against memcpy into memory that is there: {'; '.join(parts)}. Against memcpy into fresh "
        f"memory and discarding the source, moving is clearly cheaper in {beaten} of {len(fresh)} "
        "cases."
    )
    huge = costs.find(_OWN, _HUGE, caches=COLD, sibling=False)
    copied = costs.find(methods.Memcpy.name, _HUGE, caches=COLD, sibling=False)
    if huge and copied:
        why += (
            f" One huge page: {microseconds(huge.median)} against {microseconds(copied.median)} us."
        )
    if not wins:
        return Finding(Verdict.HOLDS, why)
    return Finding(Verdict.IN_PART if losses else Verdict.FAILS, why)
