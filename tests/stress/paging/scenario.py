"""What one seed of the stress over stores in trouble stands for."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from support.paging import KIB, MIB

from . import chaos
from .backings import KINDS

BLOCKS = (4 * KIB, 8 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 2 * MIB)
#: By what a store may be in trouble; calls that are slow are in all of them.
TROUBLES = (
    (),
    ("late",),
    ("before", "torn", "after"),
    ("late", "doubled", "late after"),
    ("late", "doubled", "before", "after", "torn", "late after"),
    ("before", "lost", "after"),
    ("killed", "torn", "before"),
    ("killed", "late", "doubled"),
)


@dataclass(frozen=True)
class Scenario:
    """What one seed stands for."""

    seed: int
    kind: str
    mode: str
    block: int
    limit: int  # blocks
    blocks: int
    threads: int
    wild: int
    troubles: tuple[str, ...]
    chaos: tuple[str, ...]
    timeout: float
    seconds: float
    ahead: bool
    interval: float | None  # of writing in the background

    @classmethod
    def drawn(
        cls, seed: int, *, kind: str = "", seconds: float = 3.0, merging: bool = False
    ) -> Scenario:
        """Draw one; `merging`: with equal pages that the kernel merges (it must be at it)."""
        chance, other = random.Random(f"scenario {seed}"), random.Random(f"more of {seed}")
        more = [name for name in chaos.OFTEN if other.random() < 0.5]
        drawn = chance.choice(["disk", *KINDS])
        kind = kind or drawn
        block = chance.choice(BLOCKS)
        most = max(4, 8 * MIB // block)
        limit = chance.choice([number for number in (4, 5, 8, 20, 60, 200) if number <= most])
        troubles = chance.choice(TROUBLES)
        lasting = kind not in ("compressed", "file")
        if "killed" in troubles and not lasting:
            troubles = ("late", "before", "after")
        scenario = cls(
            seed=seed,
            kind=kind,
            mode=chance.choice([m for m in ("r", "r+", "r+", "r+", "c") if m in KINDS[kind].modes]),
            block=block,
            limit=limit,
            blocks=limit * 2 + chance.randrange(9),
            threads=chance.choice([1, 2, 3]),
            wild=chance.choice([5, 30, 100]) if troubles else 0,
            troubles=(*troubles, "slow") if troubles else (),
            chaos=(
                *chance.sample(chaos.DRAWN, chance.randrange(4)),
                *(["merged"] * merging),
                *more,
            ),
            timeout=chance.choice([0.3, 1.0]),
            seconds=seconds,
            ahead=chance.random() < 0.7,
            interval=other.choice([None, 0.005, 0.02, 0.1]),
        )
        if chance.random() < 0.05:
            return replace(scenario, chaos=(*scenario.chaos, "closed"))
        return scenario

    @property
    def strict(self) -> bool:
        """Whether nothing may fail: the store is sound, and no time is lost that counts."""
        return not self.troubles and not {"stopped", "frozen", "closed"} & {*self.chaos}

    @property
    def lossy(self) -> bool:
        """Whether what was never durable may be lost for good, if every flush says so."""
        return "lost" in self.troubles

    @property
    def patience(self) -> float:
        """How long the region waits for the store: long enough, where that has to suffice."""
        if not self.strict:
            return self.timeout
        return 2.0 if "paused" in self.chaos else 20.0
