"""Time that `import pagemove` takes beyond `import numpy`."""

from __future__ import annotations

import compileall
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pagemove
from benchmarks._measure import Effort, Finding, spread
from benchmarks._report import run_alone
from pagemove._native import calls

_TARGET_MS = 60

# An editable install looks on import whether it has to be built anew; what users install does not.
_CHILD = """
import sys, time
editable = "_pagemove_editable"
sys.meta_path = [f for f in sys.meta_path if not type(f).__module__.startswith(editable)]
sys.path.insert(0, sys.argv[1])
started = time.perf_counter_ns()
import numpy
between = time.perf_counter_ns()
import pagemove
finished = time.perf_counter_ns()
assert pagemove.__file__.startswith(sys.argv[1]), pagemove.__file__
print(between - started, finished - between)
"""


def _stage(folder: str) -> None:
    """Lay out the package as an installed one: sources, native modules, compiled."""
    package = Path(folder) / "pagemove"
    source = Path(pagemove.__file__).parent
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__"))
    for module in Path(calls.__file__).parent.glob("*.so"):
        shutil.copy2(module, package / "_native")
    compileall.compile_dir(package, quiet=1)


def measure(effort: Effort) -> list[Finding]:
    ours, numpys = [], []
    with tempfile.TemporaryDirectory() as folder:
        _stage(folder)
        for number in range(max(1, effort.rounds // 10) + 1):
            command = [sys.executable, "-c", _CHILD, folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            # The first brings the files into the page cache.
            if number:
                numpy_ns, pagemove_ns = map(int, done.stdout.split())
                numpys.append(numpy_ns)
                ours.append(pagemove_ns)
    note = f"numpy itself takes {spread(numpys).median / 1e6:.0f} ms"
    figure = spread(ours).scaled(1e-6)
    return [Finding("import pagemove", "import numpy", figure, _TARGET_MS, unit="ms", note=note)]


if __name__ == "__main__":
    run_alone(measure)
