"""How much the taker of an array asks for ahead of what has come."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import native

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "src/pagemove/_native"
UNIT = 65536
MS = 1_000_000

pytestmark = pytest.mark.skipif(not NATIVE.is_dir(), reason="the sources of the pager are not here")


class Pace:
    """The C code by itself: it is told what took how long, and says what may be asked for."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.ahead, self.round_trip = self.say("unit", UNIT)

    def say(self, *words: object) -> tuple[int, int]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(*words, file=self._process.stdin, flush=True)
        ahead, round_trip = map(int, self._process.stdout.readline().split())
        self.ahead, self.round_trip = ahead, round_trip
        return ahead, round_trip


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("pace") / "pace_alone"
    flags = ("-std=gnu11", "-g", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}")
    source = ROOT / "tests/support/pace_alone.c"
    subprocess.run([native.compiler(), *flags, "-o", str(built), str(source)], check=True)
    return built


@pytest.fixture
def pace(program: Path) -> Iterator[Pace]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([str(program)], **pipes, text=True) as process:
        yield Pace(process)


def test_at_first_little_is_asked_for(pace: Pace) -> None:
    assert pace.ahead == 4 * UNIT


@pytest.mark.parametrize("round_trip", [MS // 10, 10 * MS, 100 * MS])
@pytest.mark.parametrize("rate", [5e6, 100e6, 20e6])
def test_it_grows_to_what_the_connection_carries(pace: Pace, round_trip: int, rate: float) -> None:
    """And no more waits in the connection than comes in some milliseconds, or four units."""
    pace.say("heard", round_trip)
    for _ in range(200):
        # As much as is under way comes within a round trip, or as fast as it can.
        pace.say("came", pace.ahead, max(round_trip, int(pace.ahead / rate * 1e9)))
    carried = rate * round_trip / 1e9
    most = max(1.25 * carried + 0.006 * rate, 4 * UNIT)
    assert min(carried, 4 << 20) * 0.9 <= pace.ahead <= most


def test_no_more_than_some_mebibytes(pace: Pace) -> None:
    pace.say("heard", 1000 * MS)
    assert pace.say("came", 1 << 30, 0)[0] == 4 << 20
    pace.say("unit", 2 << 20)
    assert pace.ahead == 8 << 20


def test_the_shortest_round_trip_counts(pace: Pace) -> None:
    for each in (300, 100, 200):
        pace.say("heard", each * MS)
    assert pace.round_trip == 100 * MS
