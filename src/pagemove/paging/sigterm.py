"""SIGTERM: what was changed is saved before it ends a program that leaves it its default action.

The native handler does that (`_native/pager/ending.c`), also when the main thread does not come to
the interpreter. What stands for it in Python is a `Standin`: programs that set a handler of their
own for a while, as servers do, keep what `signal.signal` returned and put that back.
"""

from __future__ import annotations

import math
import numbers
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import TypeAlias

from pagemove import children
from pagemove._native import pager
from pagemove._native.mapping import generation

Handler: TypeAlias = Callable[[int, FrameType | None], object]

_VARIABLE = "PAGEMOVE_SIGTERM_GRACE"
_GRACE = 5.0
_MOST_SECONDS = 86400.0

_chosen: int | None = None  # nanoseconds, once the program has said


def save_on_sigterm(grace: float | None = _GRACE) -> None:
    """Choose how long SIGTERM may take to save what was changed, or that it is not to.

    Without this call it has five seconds, or as many as PAGEMOVE_SIGTERM_GRACE says in the
    environment, from when the first region is opened in mode ``"r+"`` over a store that outlives
    the process. The process is then ended as by the default action: same status, nothing cleaned
    up. A program with a handler of its own keeps it, and whatever that does.

    After this call a handler that the program has set before is called when all is saved.

    Parameters
    ----------
    grace : float or None
        Seconds, a day at most. What the stores have not taken by then is lost, and a message says
        so. None or 0: SIGTERM does what it would do without this library.

    Raises
    ------
    TypeError
        `grace` is not a number.
    ValueError
        It is negative, not finite, or more than a day. Or the program is to get its own handler
        back, and this is not the main thread.

    Notes
    -----
    What the default action does, `signal.getsignal` shows as a callable that equals
    `signal.SIG_DFL`; put back after another handler, it works again. Called by a handler that has
    replaced it, it saves and returns. Children made by fork have the default action.

    Examples
    --------
    >>> import pagemove
    >>> pagemove.save_on_sigterm(grace=20)  # Docker kills after 10 seconds, Kubernetes after 30
    >>> pagemove.save_on_sigterm(None)
    """
    global _chosen
    _chosen = _nanoseconds("grace", grace)
    if _chosen:
        _arm(first=True)
        return
    handler = _current()
    if isinstance(handler, Standin):
        signal.signal(signal.SIGTERM, handler.previous)
    pager.leave_sigterm()


def arm() -> None:
    """Have SIGTERM save: there is something that it would lose."""
    _arm(first=False)


def _nanoseconds(name: str, seconds: float | None) -> int:
    if seconds is None:
        return 0
    if isinstance(seconds, bool) or not isinstance(seconds, numbers.Real):
        raise TypeError(f"{name} must be a number of seconds, or None not to save, not {seconds!r}")
    if not 0 <= seconds <= _MOST_SECONDS:
        raise ValueError(
            f"{name} must be seconds from 0 (not to save) to {_MOST_SECONDS:.0f} (a day), not "
            f"{seconds}"
        )
    return math.ceil(seconds * 1e9)


def _grace() -> int:
    if _chosen is not None:
        return _chosen
    text = os.environ.get(_VARIABLE, "")
    try:
        return _nanoseconds(_VARIABLE, float(text) if text else _GRACE)
    except ValueError:
        raise ValueError(
            f"{_VARIABLE} must be seconds from 0 (not to save) to {_MOST_SECONDS:.0f} (a day), not "
            f"{text!r}: correct it, or unset it for {_GRACE:.0f} seconds"
        ) from None


class Standin:
    """Stands for a handler of SIGTERM, equal to it, and notices when it is replaced.

    Attributes
    ----------
    previous : handler
        What it stands for: SIG_DFL, or a handler that the program has set.
    """

    def __init__(self, previous: Handler | signal.Handlers, *, first: bool) -> None:
        self.previous = previous
        self.first = first  # whether it saves before it calls that
        self.installed_in = 0  # the generation of the process

    def __call__(self, number: int, frame: FrameType | None) -> object:
        """Do what it stands for, after saving where nothing else would."""
        default, grace = isinstance(self.previous, signal.Handlers), _grace()
        if grace and (default or self.first):
            pager.save_all(grace)
        if not isinstance(self.previous, signal.Handlers):
            if _current() is self:
                # This one is in use until it returns, and would not notice that the handler
                # replaces it by the default action and sends the signal again.
                _install(self.previous, self.first)
            return self.previous(number, frame)
        # Else a handler that has replaced it has called it, and decides what comes.
        if _current() is self:
            signal.signal(number, self.previous)
            # The first process of a container is not ended by that.
            os.kill(os.getpid(), number)
        return None

    def __eq__(self, other: object) -> bool:
        return self.previous == (other.previous if isinstance(other, Standin) else other)

    def __hash__(self) -> int:
        # Not that of what it equals: by that `signal` would take it for its own SIG_DFL, and what a
        # program puts back would be the default action and nothing else.
        return id(self)

    def __repr__(self) -> str:
        return f"<pagemove.save_on_sigterm before {self.previous!r}>"

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # Whoever has replaced it by the default action, as a server does that puts back what it
        # found, means the default action of a program that uses this library.
        if (
            not is_finalizing()
            and self.installed_in == generation()
            and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        ):
            arm()


def _install(handler: Handler | signal.Handlers, first: bool) -> Standin:
    standin = Standin(handler, first=first)
    signal.signal(signal.SIGTERM, standin)
    standin.installed_in = generation()
    return standin


def _arm(*, first: bool) -> None:
    grace = _grace()
    if not grace:
        return
    try:
        _arm_here(grace, first)
    except ValueError:
        # Not the main thread, which alone may set a handler in Python; a native one any may.
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            pager.save_on_sigterm(grace, replace=False)
        pager.call_in_main_thread(lambda: _arm_here(grace, first))


def _current() -> Handler | signal.Handlers | int | None:
    return signal.getsignal(signal.SIGTERM)


def _arm_here(grace: int, first: bool) -> None:
    handler = _current()
    if isinstance(handler, Standin):
        handler.first |= first
    elif callable(handler):
        _install(handler, first)
    elif handler is signal.SIG_DFL and not pager.save_on_sigterm(grace, replace=False):
        _install(signal.SIG_DFL, first)
        # That was by way of the interpreter's handler, which is known from here on.
        pager.save_on_sigterm(grace, replace=True)
    else:
        return  # it is ignored, or code in C handles it
    if handler == signal.SIG_DFL:
        pager.save_on_sigterm(grace, replace=False)


def _in_child() -> None:
    handler = _current()
    if isinstance(handler, Standin):
        signal.signal(signal.SIGTERM, handler.previous)


children.first_do(_in_child)
