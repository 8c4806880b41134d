"""`pagemove run`: a program under a limit for its arrays. Needs no package that others do."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from pagemove.errors import KernelFaultsWarning, UnsupportedError
from pagemove.paging.allocations import PagedAllocations
from pagemove.paging.available import allowed
from pagemove.paging.exits import tell
from pagemove.paging.sizes import text_of
from pagemove.program import bounced
from pagemove.program.running import NotFoundError, execute

if TYPE_CHECKING:
    import argparse

_DESCRIPTION = "Run a Python program with NumPy's large arrays in paged memory, under one limit."
_FAILED, _MISUSED = 1, 2


def run(arguments: list[str]) -> None:
    """Run a Python program with NumPy's large arrays in paged memory, under one limit.

    pagemove run [--limit 2GiB|50%|auto] [--store-limit SIZE] [--spill DIR] [--min-size SIZE]
                 [--report]
    SCRIPT | - | -m MODULE | -c CODE [ARGUMENTS]

    --limit: the most bytes of arrays in memory: a size; a share of the memory available; auto (the
    default): half of it. What does not fit is kept in memory, compressed, in at most --store-limit
    bytes (with --spill a quarter of the limit by default). --spill: a directory for what does not
    shrink, or has no room there. --min-size: smaller arrays are left to NumPy (1MiB).
    --report: print what it took on standard error at the end, and on SIGUSR1.
    """
    main(arguments)


# Options of the interpreter that change how a program runs, of which people expect them here.
_INTERPRETERS = ("-X", "-W", "-u", "-O", "-B", "-I", "-E", "-s", "-S", "-P", "-v", "-q", "-i")

_WITH_VALUES = ("--limit", "--store-limit", "--spill", "--min-size")
_DEFAULTS: dict[str, Any] = {
    "limit": "auto",
    "store_limit": None,
    "spill": None,
    "min_size": "1MiB",
    "report": False,
}

#: The options by name; "script", "module" or "code"; which; and what follows.
_Parsed: TypeAlias = tuple[dict[str, Any], str, str, list[str]]


def _simple(arguments: list[str]) -> _Parsed | None:
    """Parse what is as the help has it; None for all else, help and mistakes.

    To import argparse and to describe the options to it would take longer than all that happens
    until the program begins.
    """
    options, words = dict(_DEFAULTS), iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if word == "--report":
            options["report"] = True
        elif name in _WITH_VALUES:
            value = value if equals else next(words, "-")
            if value.startswith("-"):
                return None
            options[name[2:].replace("-", "_")] = value
        elif word in ("-m", "-c"):
            target = next(words, "--")
            kind = "module" if word == "-m" else "code"
            return None if target == "--" else (options, kind, target, [*words])
        else:
            return None if word.startswith("-") else (options, "script", word, [*words])
    return None


def _parsed(arguments: list[str]) -> _Parsed:
    import argparse

    parser = argparse.ArgumentParser(
        prog="pagemove run",
        description=_DESCRIPTION,
        usage="pagemove run [options] (SCRIPT | - | -m MODULE | -c CODE) [ARGUMENT ...]",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--limit",
        metavar="SIZE",
        help="the most bytes of arrays that are in memory: 2GiB; 50%% of the memory available; "
        "auto, the default: half of it, and less while others need memory",
    )
    parser.add_argument(
        "--store-limit",
        metavar="SIZE",
        help="the most bytes of memory that what is kept compressed takes, beyond the limit; "
        "with --spill a quarter of the limit by default",
    )
    parser.add_argument(
        "--spill",
        metavar="DIR",
        help="a directory for what does not shrink, or has no room in the store's limit",
    )
    parser.add_argument(
        "--min-size", metavar="SIZE", help="smaller arrays are left to NumPy (1MiB)"
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="print what it took on standard error at the end, and on SIGUSR1",
    )
    rest = argparse.REMAINDER
    parser.add_argument("-m", dest="module", nargs=rest, metavar="MODULE", help="as python -m")
    parser.add_argument("-c", dest="code", nargs=rest, metavar="CODE", help="as python -c")
    parser.add_argument(
        "script", nargs=rest, metavar="SCRIPT", help="as python SCRIPT; - is standard input"
    )
    unknown = _first_of_others(arguments)
    if unknown.startswith(_INTERPRETERS):
        _refuse(
            parser,
            f"{unknown} is an option of the interpreter: python {unknown} ... -m pagemove run ...",
        )
    parser.set_defaults(**_DEFAULTS)
    options = parser.parse_args(arguments)
    for kind in ("module", "code", "script"):
        given = getattr(options, kind)
        if given is not None and (given or kind != "script"):
            if not given:
                _refuse(parser, f"argument -{kind[0]}: expected one argument")
            # What follows -mMODULE is taken for the script.
            more = [] if kind == "script" else options.script
            # As after the interpreter's own options.
            if kind == "script" and given[0] == "--":
                given = given[1:]
                if not given:
                    break
            named = {name: getattr(options, name) for name in _DEFAULTS}
            return named, kind, given[0], given[1:] + more
    return _refuse(parser, "a program is needed: SCRIPT, - (standard input), -m MODULE or -c CODE")


def _first_of_others(arguments: list[str]) -> str:
    """Return the first argument that is neither an option of this command nor its value."""
    words = iter(arguments)
    for word in words:
        if word in _WITH_VALUES:
            next(words, None)
        elif word != "--report" and word.partition("=")[0] not in _WITH_VALUES:
            return word
    return ""


def _refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    parser.error(message)


def main(arguments: list[str]) -> None:
    """Run the program; its exit status, signals and tracebacks are its own."""
    options, kind, target, rest = _simple(arguments) or _parsed(arguments)
    arena = _arena(options, bounced.has_reexecuted())
    _compare_with_memory(arena._limit)
    if options["report"]:
        from pagemove.program import report  # and what it needs to know of modules and lines

        report.begin(arena)

    def note(error: Any) -> None:
        # NumPy says what it was for; one that says nothing may be of anything.
        if isinstance(error, MemoryError) and error.args:
            arena._explain(error, {})

    try:
        execute(kind, target, rest, note)
    except NotFoundError as error:
        tell(str(error))
        sys.exit(error.status)


def _arena(options: dict[str, Any], again: bool) -> PagedAllocations:
    try:
        arena = PagedAllocations(
            options["limit"],
            min_size=options["min_size"],
            spill=options["spill"],
            store_limit=options["store_limit"],
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", KernelFaultsWarning)
            served = arena.kernel_faults
    except ImportError as error:
        sys.exit(f"pagemove: {error}, or pass --spill DIR")
    except (ValueError, OSError, UnsupportedError) as error:
        tell(str(error))
        sys.exit(_MISUSED if isinstance(error, ValueError | NotADirectoryError) else _FAILED)
    if not served:
        region = arena._arena()[1]
        bounces = bounced.install(region.address, region.nbytes)
        if not bounces and not again:
            bounced.reexecute()
        what = "other calls than reads and writes of files and sockets" if bounces else "they"
        tell(
            "this process may not serve faults of system calls: on large arrays "
            f"{what} need pagemove.pinned(array), or fail with EFAULT; pagemove doctor says what "
            "to allow"
        )
    arena._everywhere()
    return arena


def _compare_with_memory(limit: Any) -> None:
    most = allowed()
    if most is not None and limit > most:
        tell(
            f"the limit, {text_of(limit)}, is more than the {text_of(most)} of memory "
            "that this machine or the process's control group has: nothing keeps the arrays within "
            "that; pass --limit auto, or a smaller one"
        )
