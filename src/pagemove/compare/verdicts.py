"""What a measurement can say of a claim."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Verdict(enum.Enum):
    """The four possible answers."""

    HOLDS = "holds"
    IN_PART = "holds in part"
    FAILS = "does not hold on this kernel"
    UNMEASURED = "could not be measured"


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict and the figures it rests on, in one or two sentences."""

    verdict: Verdict
    why: str

    @classmethod
    def of(cls, answers: Sequence[bool | None], why: str) -> Finding:
        """Judge by what several measured conditions say: yes, no, or too much noise to tell."""
        clear = [answer for answer in answers if answer is not None]
        if not clear:
            return cls(Verdict.UNMEASURED, f"the differences drown in the noise. {why}")
        if all(clear):
            return cls(Verdict.HOLDS, why)
        return cls(Verdict.IN_PART if any(clear) else Verdict.FAILS, why)
