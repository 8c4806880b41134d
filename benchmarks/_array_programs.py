"""Ten programs that compute with arrays, and print a digest of what comes out."""

from __future__ import annotations

#: Before each: how large, what is random, and how it ends.
HEAD = """
import hashlib, sys
import numpy as np
n = int(sys.argv[1]) << 17  # numbers of 8 bytes
random = np.random.default_rng(0)
def end(*arrays):
    digest = hashlib.sha256()
    for array in arrays:
        flat = np.ascontiguousarray(array).reshape(-1)
        for first in range(0, len(flat), 1 << 16):
            digest.update(flat[first:first + (1 << 16)].tobytes())
    print(digest.hexdigest())
"""

#: Each needs some times the megabytes that it is passed.
PROGRAMS = {
    "sum, five times": "x = np.arange(n) % 1000\nend([int(x.sum()) for _ in range(5)])",
    "add in place": "x = np.zeros(n)\nfor i in range(5):\n    x += i\nend(x)",
    "expression": "x = np.linspace(0, 1, n // 4)\ny = np.sqrt(x * x + 2 * x + 1) - x\nend(y)",
    "sort": "x = random.integers(1 << 40, size=n // 2)\nx.sort()\nend(x)",
    "standardise": (
        "x = random.standard_normal((n // 32, 16))\nx -= x.mean(axis=0)\nx /= x.std(axis=0)\nend(x)"
    ),
    "matrix product": (
        "m = int((n // 3) ** 0.5)\na = (np.arange(m * m) % 97.0).reshape(m, m)\n"
        "end((a @ a.T)[::64])"
    ),
    "transform": ("x = random.standard_normal(n // 4)\nend(np.abs(np.fft.rfft(x))[::64].round(6))"),
    "stencil": (
        "m = int((n // 2) ** 0.5)\nx = np.zeros((m, m))\nx[0] = 1\n"
        "for _ in range(3):\n    y = x.copy()\n"
        "    y[1:-1, 1:-1] = (x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:]) / 4\n"
        "    x = y\nend(x)"
    ),
    "take rows": (
        "x = np.arange(n // 2, dtype=float).reshape(-1, 256)\n"
        "end(x[random.integers(len(x), size=len(x) // 4)].sum(axis=1))"
    ),
    "unique": "x = random.integers(1 << 16, size=n // 3)\nend(*np.unique(x, return_counts=True))",
}
