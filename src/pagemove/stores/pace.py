"""How much the taker of an array asks for ahead of what has come.

As much as comes within a round trip and a few milliseconds: less leaves the connection idle, and
more has a touch wait behind it. What a connection can carry is not known, and changes: the rate of
the last answers stands for it. Where the rate is as low as it is because little was asked for, what
this allows grows with each answer.
"""

from __future__ import annotations

_QUEUE_SECONDS = 0.005
# More than a round trip, so that it grows where the connection is far.
_GAIN = 1.25
_MOST = 4 << 20
#: Bytes that are asked for at once, where a unit is no larger.
LARGEST_PIECE = 1 << 20
# Of an answer to a touch that is asked for already, before it is asked for again.
_LATE_SECONDS = 0.05
_WEIGHT = 0.25


class Pace:
    """How fast one connection is.

    Parameters
    ----------
    unit : int
        Bytes that arrive as one.

    Attributes
    ----------
    round_trip : float
        Seconds: the shortest that was seen.
    """

    def __init__(self, unit: int) -> None:
        self._unit = unit
        self._rate = 0.0
        self.round_trip = 0.0

    @property
    def ahead(self) -> int:
        """Bytes that may be asked for and not have come."""
        comes = int(self._rate * (_GAIN * self.round_trip + _QUEUE_SECONDS))
        return max(min(comes, _MOST), 4 * self._unit)

    @property
    def piece(self) -> int:
        """Units to ask for at once."""
        return max(min(self.ahead // 4, LARGEST_PIECE) // self._unit, 1)

    @property
    def late(self) -> float:
        """Seconds after which what was asked for is overdue."""
        return _LATE_SECONDS + 2 * self.round_trip

    def heard(self, seconds: float) -> None:
        """Take the time of an answer that has no bytes to speak of."""
        self.round_trip = min(seconds, self.round_trip or seconds)

    def came(self, nbytes: int, seconds: float) -> None:
        """Take the time from one answer to the next."""
        rate = nbytes / max(seconds, 1e-6)
        self._rate += (rate - self._rate) * (_WEIGHT if self._rate else 1.0)
