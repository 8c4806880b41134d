"""Images of Pillow over paged arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from shown import NBYTES, Shown, paged

WIDTH = 3072
PART = (100, 100, 400, 300)


def cropped(pixels: Any) -> Any:
    """Cut a part out of an image that is the memory of an array."""
    return Image.fromarray(np.asarray(pixels)).crop(PART)


def smaller(pixels: Any) -> Any:
    """Make all of it smaller."""
    return Image.fromarray(np.asarray(pixels)).reduce(16)


def coloured(pixels: Any) -> Any:
    """Make an image of three bytes a pixel: Pillow has four, and unpacks them all."""
    return Image.fromarray(np.asarray(pixels).reshape(-1, WIDTH // 3, 3)).crop(PART)


def main() -> None:
    """Show it."""
    height = NBYTES // WIDTH
    values = np.random.default_rng(4).integers(0, 255, (height, WIDTH), np.uint8)
    with paged(values) as array:
        shown = Shown("pillow", array.region)
        shown.call("fromarray of grey pixels, crop", cropped, array, values)
        shown.call("fromarray of grey pixels, reduce", smaller, array, values)
        shown.call("fromarray of RGB", coloured, array, values, copies=True)
        shown.end()


if __name__ == "__main__":
    main()
