"""Which blocks the pager keeps, without kernel, threads or store: blocks read, against LRU."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from support import native, traces

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "src/pagemove/_native"
MACHINE = ROOT / "tests/support/pager_alone.c"
BLOCKS, FRAMES, LENGTH = 2048, 512, 150_000
_BLOCK = 65536

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not NATIVE.is_dir(), reason="the sources of the pager are not here"),
]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the pager with a kernel that does nothing."""
    built = tmp_path_factory.mktemp("machine") / "pager_alone"
    sources = [path for path in (NATIVE / "pager").rglob("*.c") if path.name != "faults.c"]
    subprocess.run(
        [
            *(native.compiler(), "-std=gnu11", "-O1", "-pthread", f"-I{NATIVE}"),
            # What is in the machine comes first.
            *("-Wl,--allow-multiple-definition", "-o", str(built), str(MACHINE)),
            *map(str, [*sources, NATIVE / "descriptors.c", MACHINE.with_name("core_alone.c")]),
        ],
        check=True,
    )
    return built


def run(machine: Path, trace: traces.Trace, frames: int, ahead: bool) -> tuple[int, int]:
    """Return blocks read, and blocks that a touch found on standby."""
    done = subprocess.run(
        [str(machine), str(int(trace.max()) + 1), str(frames), str(_BLOCK), str(int(ahead))],
        input=trace.astype(np.uint32).tobytes(),
        stdout=subprocess.PIPE,
        check=True,
    )
    read, faults, rescued, total = map(int, done.stdout.split())
    assert total <= frames, "more frames than the limit allows"
    assert read >= len(np.unique(trace))
    assert faults <= len(trace)
    return read, rescued


@pytest.mark.parametrize("ahead", [False, True], ids=["faults", "read ahead"])
@pytest.mark.parametrize(
    ("trace", "most"),
    [
        (traces.zipf(BLOCKS, LENGTH), 1.0),
        (traces.zipf(BLOCKS, LENGTH, 0.7), 1.0),
        (traces.binary_search(BLOCKS, LENGTH // 10), 1.0),
        (traces.hot_and_scan(BLOCKS, FRAMES, LENGTH), 1.0),
        (traces.hot_and_others(BLOCKS, FRAMES, LENGTH), 1.1),
        (traces.drifting(BLOCKS, FRAMES, LENGTH), 1.2),
        (np.random.default_rng(1).integers(BLOCKS, size=LENGTH), 1.02),
        (traces.loop(FRAMES * 11 // 10, 100), 0.7),
        (traces.loop(FRAMES * 5 // 4, 100), 0.85),
        (np.random.default_rng(1).permutation(FRAMES * 2), 1.02),
    ],
    ids=[
        "zipf",
        "nearly even",
        "binary search",
        "hot set under a scan",
        "hot set among others",
        "a working set that drifts",
        "at random",
        "a loop a little larger than the limit",
        "a larger loop",
        "everything once",
    ],
)
def test_blocks_read_against_lru(
    machine: Path, trace: traces.Trace, most: float, ahead: bool
) -> None:
    read, rescued = run(machine, trace, FRAMES, ahead)
    assert read <= most * traces.lru(trace, FRAMES)
    # Each is a fault, even without I/O.
    assert rescued <= len(trace) / 8


@pytest.mark.parametrize("frames", [4, 16, 64, 4096])
def test_other_limits(machine: Path, frames: int) -> None:
    trace = traces.zipf(4 * frames, 40 * frames + 20_000)
    read, _ = run(machine, trace, frames, ahead=True)
    assert read <= 1.3 * traces.lru(trace, frames)


def test_what_was_hot_once_leaves(machine: Path) -> None:
    """Ten hot sets, one after another, each of three quarters of the frames."""
    sets = np.random.default_rng(1).permutation(BLOCKS * 2)[: 10 * (FRAMES * 3 // 4)]
    random = np.random.default_rng(2)
    trace = np.concatenate([random.choice(hot, 20_000) for hot in np.split(sets, 10)])
    read, _ = run(machine, trace, FRAMES, ahead=True)
    assert read <= 1.3 * traces.lru(trace, FRAMES)


def test_a_hot_set_that_a_scan_has_passed(machine: Path) -> None:
    """Touches of blocks that have left as part of a sequence are not taken for that sequence."""
    random = np.random.default_rng(1)
    parts, scan = [], np.arange(BLOCKS)
    for _ in range(10):
        hot = random.permutation(BLOCKS)[: FRAMES // 2]
        parts += [*(random.permutation(hot) for _ in range(4)), scan, random.permutation(hot)]
    trace = np.concatenate(parts)
    read, _ = run(machine, trace, FRAMES, ahead=True)
    # Of each round most of the scan, and of the hot set what the last scan had not left there.
    assert read <= 0.9 * 10 * (BLOCKS + FRAMES // 2)
