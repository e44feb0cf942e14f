"""What benches decide about where no images are given: crops of photographs, some with a painted defect."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.demo.defects import paint_any

__all__ = ["photographs"]

PHOTOS = Path(__file__).parent.parent / "demo" / "photos"


def photographs(side: int, good: int, bad: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Crops of the photographs' right halves, uint8 [good, side, side, 1], and [bad, side, side, 1] others with a
    painted defect each; always the same ones."""
    rng = np.random.default_rng(0)
    halves = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted(PHOTOS.glob("*.png"))]
    crops = []
    for k in range(good + bad):
        half = np.asarray(halves[k % len(halves)])[:, 256:]
        y, x = int(rng.integers(half.shape[0] - side + 1)), int(rng.integers(half.shape[1] - side + 1))
        crop = half[y : y + side, x : x + side]
        if k >= good:
            luma = crop.astype(np.float32) * np.float32(1 / 255)
            crop = np.rint(paint_any(luma, rng)[0] * 255).astype(np.uint8)
        crops.append(crop[..., None])
    return np.stack(crops[:good]), np.stack(crops[good:])
