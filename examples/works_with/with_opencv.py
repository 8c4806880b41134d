"""OpenCV over a paged image."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from shown import NBYTES, Shown, paged

WIDTH = 4096


def smaller(pixels: Any) -> Any:
    """Make all of it smaller."""
    return cv2.resize(np.asarray(pixels), (256, 128), interpolation=cv2.INTER_AREA)


def histogram(pixels: Any) -> Any:
    """Count the values."""
    return cv2.calcHist([np.asarray(pixels)], [0], None, [16], [0, 256])


def blurred(pixels: Any) -> Any:
    """Return an image of the same size: that is made in memory."""
    return cv2.blur(np.asarray(pixels), (5, 5))


def main() -> None:
    """Show it."""
    values = np.random.default_rng(4).integers(0, 255, (NBYTES // WIDTH, WIDTH), np.uint8)
    with paged(values) as array:
        shown = Shown("opencv-python-headless", array.region)
        shown.call("resize", smaller, array, values)
        shown.call("calcHist", histogram, array, values)
        shown.call("blur", blurred, array, values, copies=True)
        shown.end()


if __name__ == "__main__":
    main()
