"""What was seen on one kernel, as JSON that is kept: counts, reasons, failures, observations."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any


class Results:
    """Collects what a guest says (`guest.py`, `observer.py`)."""

    def __init__(
        self, version: str, flavour: str, accelerator: str, plan: str, variants: int
    ) -> None:
        self.version = version
        self.flavour = flavour
        self.plan = plan
        self.variants = variants
        self.accelerator = accelerator
        self.release = ""
        self.doctor: dict[str, Any] = {}
        self.observed: dict[str, Any] = {}
        self.passed: collections.Counter[str] = collections.Counter()
        self.skipped: collections.Counter[str] = collections.Counter()
        self.failed: dict[str, str] = {}
        self.ran: dict[str, float] = {}
        self.slowest: list[tuple[float, str]] = []
        self.booted_after = 0.0
        self.running = ""
        self.broken = ""
        self.ended = False

    def take(self, message: dict[str, Any]) -> None:
        """Take one message in."""
        match message["kind"]:
            case "booted":
                self.release, self.booted_after = message["release"], message["seconds"]
            case "doctor":
                self.doctor = message["doctor"]
            case "observed":
                self.observed[message["name"]] = message["value"]
            case "start":
                self.running = message["test"]
            case "test":
                self._take_test(message)
            case "ran":
                self.ran[message["name"]] = message["seconds"]
                # 1: tests failed. Anything else is not a result.
                if message["name"] == "tests" and message["status"] not in (0, 1):
                    self.broken = f"{message['name']} ended with status {message['status']}"
            case "broken":
                self.broken = message["text"]
            case "end":
                self.ended = True

    def _take_test(self, message: dict[str, Any]) -> None:
        name, seconds = message["test"], message["seconds"]
        if message["outcome"] == "failed":
            self.failed[name] = message["reason"]
        elif message["outcome"] == "skipped":
            self.skipped[message["reason"]] += 1
        elif message["when"] == "call":
            self.passed[name.partition("::")[0]] += 1
            self.slowest = sorted([*self.slowest, (seconds, name)], reverse=True)[:20]

    @property
    def name(self) -> str:
        """The release, and the flavour where it is not the usual one."""
        return self.version + (f"-{self.flavour}" if self.flavour != "amd64" else "")

    @property
    def good(self) -> bool:
        """Whether it ran to its end and nothing failed."""
        return self.ended and not self.broken and not self.failed

    def summary(self) -> str:
        """Return one line."""
        counts = (
            f"{self.passed.total()} passed, {len(self.failed)} failed, "
            f"{self.skipped.total()} skipped"
        )
        broken = f"; {self.broken.strip().splitlines()[-1]}" if self.broken else ""
        return f"{self.name} ({self.release or 'did not boot'}): {counts}{broken}"

    def write(self, folder: Path) -> None:
        """Write it to a file of its own; observations alone go into what is there of the tests."""
        path = folder / f"{self.name}.json"
        folder.mkdir(parents=True, exist_ok=True)
        seen = {"observed": self.observed, "doctor": self.doctor}
        whole = {
            "version": self.version,
            "flavour": self.flavour,
            "release": self.release,
            "accelerator": self.accelerator,
            "plan": self.plan,
            "variants": self.variants,
            "seconds": {"boot": self.booted_after, **self.ran},
            "broken": self.broken,
            "passed": dict(sorted(self.passed.items())),
            "skipped": dict(sorted(self.skipped.items())),
            "failed": dict(sorted(self.failed.items())),
        }
        if "tests" not in self.ran and path.exists():
            whole = json.loads(path.read_text())
        path.write_text(json.dumps({**whole, **seen}, indent=1) + "\n")
