"""Boots kernels and runs the tests in them: python -m matrix [--help]."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from . import cpio, foreign, image, machine, plan
from .archive import Archive, Kernel, Missing
from .flavours import FLAVOURS, Flavour
from .results import Results

_HERE = Path(__file__).parent
#: The exit status where no kernel could be tried, which says nothing about the library.
_NOTHING_TESTED = 3

#: What a guest is told of the environment here.
_PASSED_ON = ("PAGEMOVE_TEST_WITHOUT_GUARDS", "PAGEMOVE_TEST_WITHOUT_MOVE")

_BUILD = image.ROOT / "build" / "kernels"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="matrix", description=__doc__)
    parser.add_argument("kernels", nargs="*", help="series (6.12), releases (6.12.107) or 'newest'")
    parser.add_argument("--flavour", choices=FLAVOURS, default="amd64", help="of the kernels")
    parser.add_argument("--plan", choices=plan.PLANS, default="full")
    parser.add_argument("--list", action="store_true", help="list what the archive's indexes have")
    parser.add_argument("--select", default="", help="pytest's -k")
    parser.add_argument("--tests", nargs="*", help="instead of the plan's")
    parser.add_argument("--observe", action="store_true", help="also where the plan does not")
    parser.add_argument("--variants", type=int, help="instead of the plan's")
    parser.add_argument("--minutes", type=float, default=60, help="for each kernel, at most")
    parser.add_argument("--results", type=Path, default=_BUILD / "results")
    return parser.parse_args()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where things are, on this machine and in the guest, for one flavour.

    `folder` is shared by the kernels of an architecture.
    """

    flavour: Flavour
    accelerator: str

    @property
    def folder(self) -> Path:
        return _BUILD / self.flavour.debian

    @property
    def image(self) -> Path:
        return self.folder / "image.cpio"

    @property
    def python(self) -> str:
        return sys.executable if self.flavour.native else foreign.PYTHON

    @property
    def slowness(self) -> int:
        return plan.SLOWNESS_KVM if self.accelerator == "kvm" else self.flavour.slowness


def _orders(chosen: plan.Plan, given: argparse.Namespace, place: _Place) -> dict[str, object]:
    tests = given.tests or chosen.tests
    pytest = [place.python, "-m", "pytest", "-q"]
    pytest += ["-p", "matrix.observer", "-p", "no:cacheprovider"]
    pytest += [f"--timeout={300 * place.slowness}", "--color=no", "--tb=short", *tests]
    if given.select:
        pytest += ["-k", given.select]
    observe = [place.python, "-m", "matrix.observe"]
    commands = {"observe": observe, "tests": pytest, "risk": [*observe, "--risky"]}
    if not (chosen.observed or given.observe):
        commands = {"tests": pytest}
    elif not tests:
        del commands["tests"]
    return {
        "python": place.python,
        "root": str(image.ROOT),
        "environment": {
            "PATH": f"{Path(place.python).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(_HERE.parent),
            "PAGEMOVE_MATRIX_PORT": place.flavour.port,
            "PAGEMOVE_MATRIX_VARIANTS": str(given.variants or chosen.variants),
            "PYTHONUNBUFFERED": "1",
            "PAGEMOVE_TEST_NATIVE": str(place.folder / "native"),
            "PAGEMOVE_TEST_SLOWNESS": str(place.slowness),
            "PAGEMOVE_HYPOTHESIS_EXAMPLES": str(chosen.examples),
            "COLUMNS": "160",
            "CI": "true",
            **({} if place.flavour.native else foreign.ENVIRONMENT),
            **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        },
        "commands": commands,
    }


def _build_image(given: argparse.Namespace, place: _Place, archive: Archive) -> int:
    guest = f"#!{place.python}\n{(_HERE / 'guest.py').read_text()}"
    orders = json.dumps(_orders(plan.PLANS[given.plan], given, place))
    extra = {"init": guest.encode(), "orders.json": orders.encode()}
    if place.flavour.native:
        files = image.files(place.folder / "native")
    else:
        files = foreign.files(archive, place.folder)
    return cpio.write(place.image, files, extra)


def _try(kernel: Kernel, path: Path, given: argparse.Namespace, place: _Place) -> Results:
    """Boot one kernel and give what was seen on it."""
    chosen = plan.PLANS[given.plan]
    results = Results(
        kernel.version,
        place.flavour.name,
        place.accelerator,
        given.plan,
        given.variants or chosen.variants,
    )
    began, silent = time.monotonic(), "it went off"
    console = _BUILD / f"console-{results.name}.log"
    with machine.Machine(place.flavour, place.accelerator, path, place.image, console) as guest:
        try:
            for message in guest.messages(chosen.silence, began + 60 * given.minutes):
                results.take(message)
                if message["kind"] == "test" and message["outcome"] == "failed":
                    print(f"  FAILED {message['test']}", flush=True)
                elif message["kind"] in ("booted", "ran", "noise"):
                    print(f"  {message}", flush=True)
        except machine.Hung as error:
            silent = str(error)
    last = "tests" if given.tests or chosen.tests else "observe"
    if not results.ended and last in results.ran:
        # What is risky comes last: that it was the end is an observation, not a failure.
        results.ended = True
    elif not results.ended and not results.broken:
        results.broken = f"{silent} while running {results.running}; the console: {console}"
    results.ran["total"] = round(time.monotonic() - began, 1)
    return results


def main() -> int:
    given = _arguments()
    flavour = FLAVOURS[given.flavour]
    archive = Archive(_BUILD / flavour.debian, flavour)
    reason = machine.missing(flavour) or ("" if flavour.native else foreign.missing(flavour))
    try:
        if reason:
            raise Missing(reason)
        archive.update()
        known = archive.kernels()
    except Missing as error:
        print(f"NO KERNEL WAS TESTED: {error}")
        return _NOTHING_TESTED
    if given.list:
        print("\n".join(f"{kernel.version:12} {kernel.package}" for kernel in known))
        return 0
    default = plan.SHORT_KERNELS if given.plan == "short" else plan.KERNELS
    failed, booted, size = 0, 0, 0
    lines: list[str] = []
    place = None
    for name in given.kernels or default:
        try:
            kernel = known[-1] if name == "newest" else archive.find(name)
            path, disk = archive.fetch(kernel)
        except Missing as error:
            print(f"{name}: MISSING: {error}", flush=True)
            lines.append(f"{name}: missing: {error}")
            continue
        if not place:
            trial = _BUILD / "console-trial.log"
            place = _Place(flavour, machine.find_accelerator(flavour, path, trial))
            size = _build_image(given, place, archive)
            print(f"an image of {size >> 20} MiB, {place.accelerator}")
        cpio.extend(place.image, size, {"brd.ko": disk.read_bytes()} if disk else {})
        print(f"{kernel.version}: {path.name}{', with swap' if disk else ''}", flush=True)
        results = _try(kernel, path, given, place)
        # One that did not boot says something of this machine, not of the library.
        if results.release:
            results.write(given.results)
        booted += bool(results.release)
        failed += bool(results.release) and not results.good
        lines.append(results.summary())
        for test, text in results.failed.items():
            print(f"--- {test}\n{text}")
        print(f"  {lines[-1]}, {results.ran}", flush=True)
        print("  slowest: " + ", ".join(f"{s} s {n}" for s, n in results.slowest[:6]), flush=True)
    for folder in ("packages", "unpacked"):
        shutil.rmtree(_BUILD / flavour.debian / folder, ignore_errors=True)
    print("\n".join(["", *lines]))
    if not booted:
        print("NO KERNEL WAS TESTED: none of them is to be had, or boots")
        return _NOTHING_TESTED
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
