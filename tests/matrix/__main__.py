"""Boots kernels and runs the tests in them: python -m matrix [--help]."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

from . import image, machine, plan
from .archive import Archive, Kernel, Missing
from .results import Results

_HERE = Path(__file__).parent
#: The exit status where no kernel could be tried, which says nothing about the library.
_NOTHING_TESTED = 3

#: What a guest is told of the environment here.
_PASSED_ON = ("PAGEMOVE_TEST_WITHOUT_GUARDS", "PAGEMOVE_TEST_WITHOUT_MOVE")

_BUILD = image.ROOT / "build" / "kernels"
_IMAGE = _BUILD / "image.cpio"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="matrix", description=__doc__)
    parser.add_argument("kernels", nargs="*", help="series (6.12), releases (6.12.107) or 'newest'")
    parser.add_argument("--plan", choices=plan.PLANS, default="full")
    parser.add_argument("--list", action="store_true", help="list what the archive's indexes have")
    parser.add_argument("--select", default="", help="pytest's -k")
    parser.add_argument("--tests", nargs="*", help="instead of the plan's")
    parser.add_argument("--observe", action="store_true", help="also where the plan does not")
    parser.add_argument("--variants", type=int, help="instead of the plan's")
    parser.add_argument("--minutes", type=float, default=60, help="for each kernel, at most")
    parser.add_argument("--results", type=Path, default=_BUILD / "results")
    return parser.parse_args()


def _orders(chosen: plan.Plan, given: argparse.Namespace, slowness: int) -> dict[str, object]:
    python = sys.executable
    tests = given.tests or chosen.tests
    pytest = [python, "-m", "pytest", "-q", *["-p", "matrix.observer", "-p", "no:cacheprovider"]]
    pytest += [f"--timeout={300 * slowness}", "--color=no", "--tb=short", *tests]
    if given.select:
        pytest += ["-k", given.select]
    observe = [python, "-m", "matrix.observe"]
    commands = {"observe": observe, "tests": pytest, "risk": [*observe, "--risky"]}
    if not (chosen.observed or given.observe):
        commands = {"tests": pytest}
    elif not tests:
        del commands["tests"]
    return {
        "python": python,
        "root": str(image.ROOT),
        "environment": {
            "PATH": f"{Path(python).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(_HERE.parent),
            "PAGEMOVE_MATRIX_VARIANTS": str(given.variants or chosen.variants),
            "PYTHONUNBUFFERED": "1",
            "PAGEMOVE_TEST_NATIVE": str(_BUILD / "native"),
            "PAGEMOVE_TEST_SLOWNESS": str(slowness),
            "PAGEMOVE_HYPOTHESIS_EXAMPLES": str(chosen.examples),
            "COLUMNS": "160",
            "CI": "true",
            **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        },
        "commands": commands,
    }


def _build_image(given: argparse.Namespace, accelerator: str) -> int:
    guest = f"#!{sys.executable}\n{(_HERE / 'guest.py').read_text()}"
    orders = json.dumps(_orders(plan.PLANS[given.plan], given, plan.SLOWNESS[accelerator]))
    extra = {"init": guest.encode(), "orders.json": orders.encode()}
    return image.build(_IMAGE, extra)


def _try(kernel: Kernel, path: Path, given: argparse.Namespace, accelerator: str) -> Results:
    """Boot one kernel and give what was seen on it."""
    chosen = plan.PLANS[given.plan]
    results = Results(kernel.version, accelerator, given.plan, given.variants or chosen.variants)
    began = time.monotonic()
    console = _BUILD / f"console-{kernel.version}.log"
    with machine.Machine(accelerator, path, _IMAGE, console) as guest:
        try:
            for message in guest.messages(chosen.silence, began + 60 * given.minutes):
                results.take(message)
                if message["kind"] == "test" and message["outcome"] == "failed":
                    print(f"  FAILED {message['test']}", flush=True)
                elif message["kind"] in ("booted", "ran", "noise"):
                    print(f"  {message}", flush=True)
        except machine.Hung as error:
            results.broken = f"{error}; running {results.running}; the console: {console}"
    last = "tests" if given.tests or chosen.tests else "observe"
    if not results.ended and last in results.ran:
        # What is risky comes last: that it was the end is an observation, not a failure.
        results.ended, results.broken = True, ""
    elif not results.ended and not results.broken:
        results.broken = f"it went off while running {results.running}; the console: {console}"
    results.ran["total"] = round(time.monotonic() - began, 1)
    return results


def main() -> int:
    given = _arguments()
    archive = Archive(_BUILD)
    reason = machine.missing()
    try:
        if reason:
            raise Missing(reason)
        _BUILD.mkdir(parents=True, exist_ok=True)
        archive.update()
        known = archive.kernels()
    except Missing as error:
        print(f"NO KERNEL WAS TESTED: {error}")
        return _NOTHING_TESTED
    if given.list:
        print("\n".join(f"{kernel.version:12} {kernel.package}" for kernel in known))
        return 0
    default = plan.SHORT_KERNELS if given.plan == "short" else plan.KERNELS
    failed, booted, lines, accelerator, size = 0, 0, [], "", 0
    for name in given.kernels or default:
        try:
            kernel = known[-1] if name == "newest" else archive.find(name)
            path, disk = archive.fetch(kernel)
        except Missing as error:
            print(f"{name}: MISSING: {error}", flush=True)
            lines.append(f"{name}: missing: {error}")
            continue
        if not accelerator:
            accelerator = machine.find_accelerator(path, _BUILD / "console-trial.log")
            size = _build_image(given, accelerator)
            print(f"an image of {size >> 20} MiB, {accelerator}")
        image.extend(_IMAGE, size, {"brd.ko": disk.read_bytes()} if disk else {})
        print(f"{kernel.version}: {path.name}{', with swap' if disk else ''}", flush=True)
        results = _try(kernel, path, given, accelerator)
        results.write(given.results)
        # One that did not boot says something of this machine, not of the library.
        booted += bool(results.release)
        failed += bool(results.release) and not results.good
        lines.append(results.summary())
        for test, text in results.failed.items():
            print(f"--- {test}\n{text}")
        print(f"  {lines[-1]}, {results.ran}", flush=True)
        print("  slowest: " + ", ".join(f"{s} s {n}" for s, n in results.slowest[:6]), flush=True)
    for folder in ("packages", "unpacked"):
        shutil.rmtree(_BUILD / folder, ignore_errors=True)
    print("\n".join(["", *lines]))
    if not booted:
        print("NO KERNEL WAS TESTED: none of them is to be had, or boots")
        return _NOTHING_TESTED
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
