"""What `pagemove compare` makes of made-up figures: every verdict, in both directions."""

from __future__ import annotations

import dataclasses

import pytest

from pagemove.compare import (
    claims,
    contention,
    costs,
    growth,
    methods,
    outcomes,
)
from pagemove.compare.costs import COLD, WARM, Cost, Costs
from pagemove.compare.verdicts import Finding, Verdict
from pagemove.measuring.endings import Unmeasurable
from pagemove.measuring.timing import (
    Spread,
)

OWN = methods.RemapAnonPages.name


def exactly(value: float) -> Spread:
    return Spread(value, value * 0.99, value * 1.01, 9)


class TestFinding:
    @pytest.mark.parametrize(
        ("answers", "expected"),
        [
            ([True, True], Verdict.HOLDS),
            ([True, None], Verdict.HOLDS),
            ([True, False], Verdict.IN_PART),
            ([False, None], Verdict.FAILS),
            ([None, None], Verdict.UNMEASURED),
            ([], Verdict.UNMEASURED),
        ],
    )
    def test_of(self, answers, expected):
        assert Finding.of(answers, "figures").verdict is expected


def grown(method: str, added: int, moves: int, ended_by: str | None) -> growth.Growth:
    return growth.Growth(method, ((1, added // moves), (moves, added)), moves, ended_by)


class TestGrowthJudged:
    def judged(self, *growths):
        return growth.judge(growth.Mappings(65_530, growths))

    def test_holds(self):
        finding = self.judged(
            grown(growth.REMAP_ANON_PAGES, 1, 40_000, None),
            grown(growth.MREMAP, 65_400, 21_800, "ENOMEM"),
            grown(growth.MREMAP_KEPT, 80_000, 40_000, None),
        )
        assert finding.verdict is Verdict.HOLDS
        assert "3 mappings a move and ends with ENOMEM after 21,800" in finding.why
        assert "extrapolated: after about 32,765" in finding.why

    def test_fails_where_mremap_adds_none_and_moving_does(self):
        finding = self.judged(
            grown(growth.REMAP_ANON_PAGES, 80_000, 40_000, None),
            grown(growth.MREMAP, 0, 40_000, None),
            grown(growth.MREMAP_KEPT, 0, 40_000, None),
        )
        assert finding.verdict is Verdict.FAILS
        assert "extrapolated" in finding.why

    def test_in_part_where_neither_adds_any(self):
        names = (growth.REMAP_ANON_PAGES, growth.MREMAP, growth.MREMAP_KEPT)
        assert self.judged(*(grown(n, 0, 9, None) for n in names)).verdict is Verdict.IN_PART


class TestOutcomesJudged:
    def judged(self, *codes):
        places = [
            (outcomes.DESTINATION_OCCUPIED, outcomes.MREMAP),
            (outcomes.DESTINATION_OCCUPIED, outcomes.REMAP_ANON_PAGES),
            (outcomes.SOURCE_AFTERWARDS, outcomes.MREMAP),
            (outcomes.SOURCE_AFTERWARDS, outcomes.REMAP_ANON_PAGES),
        ]
        cells = (outcomes.Outcome(*p, c, c) for p, c in zip(places, codes, strict=True))
        return outcomes.judge(outcomes.Outcomes(tuple(cells))).verdict

    def test_holds(self):
        assert self.judged("replaced", "EEXIST", "unmapped", "hole") is Verdict.HOLDS

    def test_in_part(self):
        assert self.judged("EEXIST", "EEXIST", "unmapped", "hole") is Verdict.IN_PART

    def test_fails(self):
        assert self.judged("EEXIST", "replaced", "hole", "unmapped") is Verdict.FAILS


SIZES = (("1", 1), ("16", 16), ("512", 512))


def made_up(sibling=(False, True), huge=True, **by_method) -> Costs:
    """Costs as functions of (pages, caches, sibling), by the class name of the method."""
    found = []
    sizes = [(label, pages, False) for label, pages in SIZES]
    if huge:
        sizes.append(("one huge page", 512, True))
    for kind in methods.ALL:
        cost = by_method.get(kind.__name__, lambda pages, caches, sibling: 1000.0 * pages)
        for label, pages, is_huge in sizes:
            for beside in sibling:
                for caches in (COLD, WARM):
                    ns = cost(1 if is_huge else pages, caches, beside)
                    ns = ns if isinstance(ns, Spread) else exactly(ns)
                    found.append(Cost(kind.name, label, pages, is_huge, caches, beside, ns))
    measured = Costs(tuple(found), (), {"nothing": exactly(60)}, 1 << 26, (), 0.99, 0.98)
    return dataclasses.replace(measured, crossings=costs.find_crossings(measured))


class TestOneUnitJudged:
    def test_holds_with_the_size_from_which_mremap_is_cheaper(self):
        finding = claims.one_unit(
            made_up(
                RemapAnonPages=lambda pages, *_: 1000 * pages,
                Mremap=lambda pages, *_: 64_000,
            )
        )
        assert finding.verdict is Verdict.HOLDS
        assert "one page alone: 1 against 64 us" in finding.why
        assert "from about 64 pages (alone) and 64 pages (beside a running thread)" in finding.why

    def test_fails(self):
        finding = claims.one_unit(made_up(RemapAnonPages=lambda *_: 9000, Mremap=lambda *_: 3000))
        assert finding.verdict is Verdict.FAILS

    def test_in_part_where_a_running_thread_changes_it(self):
        data = made_up(
            RemapAnonPages=lambda pages, caches, sibling: 9000 if sibling else 1000,
            Mremap=lambda *_: 3000,
        )
        assert claims.one_unit(data).verdict is Verdict.IN_PART

    def test_noise_is_no_answer(self):
        noisy = Spread(9000, 100, 20_000, 9)
        data = made_up(RemapAnonPages=lambda *_: noisy, Mremap=lambda *_: noisy)
        finding = claims.one_unit(data)
        assert finding.verdict is Verdict.UNMEASURED
        assert "noise" in finding.why

    def test_nothing_measured(self):
        nothing = dataclasses.replace(made_up(), costs=(), crossings=())
        for judge in (claims.one_unit, claims.detection, claims.copying):
            with pytest.raises(Unmeasurable):
                judge(nothing)


class TestDetectionJudged:
    def judged(self, can, cannot):
        return claims.detection(
            made_up(
                RemapAnonPages=lambda *_: 1000,
                MremapOccupied=lambda *_: 8000,
                DetectingMremap=lambda *_: can,
                DetectingMremapFailing=lambda *_: cannot,
            )
        )

    def test_holds(self):
        finding = self.judged(4000, 12_000)
        assert finding.verdict is Verdict.HOLDS
        assert "at 4 of 4 sizes; one page: 8 us become 12" in finding.why

    def test_in_part(self):
        assert self.judged(4000, 8000).verdict is Verdict.IN_PART

    def test_fails(self):
        assert self.judged(1000, 8000).verdict is Verdict.FAILS


class TestCopyingJudged:
    def test_in_part(self):
        finding = claims.copying(
            made_up(
                RemapAnonPages=lambda pages, *_: 4000,
                Memcpy=lambda pages, caches, _: pages * (1000 if caches == COLD else 250),
            )
        )
        assert finding.verdict is Verdict.IN_PART
        assert "cold caches, alone: they change places at 4.0 pages" in finding.why
        assert "warm caches, alone: they change places at 16" in finding.why

    def test_holds(self):
        data = made_up(RemapAnonPages=lambda *_: 10**7, Memcpy=lambda pages, *_: 100 * pages)
        finding = claims.copying(data)
        assert finding.verdict is Verdict.HOLDS
        assert f"{methods.Memcpy.name} is cheaper at every size" in finding.why

    def test_fails(self):
        data = made_up(RemapAnonPages=lambda *_: 10, Memcpy=lambda pages, *_: 100 * pages)
        assert claims.copying(data).verdict is Verdict.FAILS


class TestContentionJudged:
    def judged(self, ours, theirs):
        lost = {OWN: ours, methods.Mremap.name: theirs, methods.MemcpyFresh.name: exactly(7000)}
        data = contention.Contention(
            exactly(1000),
            tuple(
                contention.Disturbance(name, pages, exactly(2000), lost[name], exactly(50))
                for pages in (1, 512)
                for name in lost
            ),
        )
        return contention.judge(data)

    def test_holds(self):
        finding = self.judged(exactly(2000), exactly(9000))
        assert finding.verdict is Verdict.HOLDS
        assert "2.0 us for remap_anon_pages, 9.0 us for mremap" in finding.why

    def test_fails(self):
        assert self.judged(exactly(8000), exactly(8000)).verdict is Verdict.FAILS

    def test_noise(self):
        noisy = Spread(8000, 0, 20_000, 5)
        assert self.judged(noisy, noisy).verdict is Verdict.UNMEASURED
