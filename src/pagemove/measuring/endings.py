"""How a measurement ends that has not all of its figures."""

from __future__ import annotations


class Unmeasurable(Exception):  # noqa: N818 (it is a finding, not an error)
    """Something that this machine cannot show, with the reason."""


class Stopped(KeyboardInterrupt):
    """The user pressed Ctrl-C, and what was measured until then is worth showing.

    Attributes
    ----------
    measured : object
        What the measurement would have returned, from fewer rounds.
    """

    def __init__(self, measured: object) -> None:
        super().__init__()
        self.measured = measured
