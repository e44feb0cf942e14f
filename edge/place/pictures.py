"""Frames as the locators see them: grey, 0 to 255 whatever their depth, shrunk by whole factors."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Grey", "shrunk", "to_grey"]

Grey = NDArray[np.float32]
"""float32 [h, w], 0 to 255."""


def to_grey(image: NDArray[Any], full_scale: float) -> Grey:
    """uint8 or uint16 [h, w, C] as grey; `full_scale`: the largest value of its depth."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.shape[2] == 3 else image[..., 0]
    return np.asarray(np.multiply(grey, np.float32(255 / full_scale), dtype=np.float32))


def shrunk(image: NDArray[Any], factor: int, full_scale: float) -> Grey:
    """The same, areas of `factor` x `factor` pixels averaged to one; what is left over at the far sides is left out."""
    height, width = image.shape[0] // factor, image.shape[1] // factor
    if factor == 1:
        return to_grey(image, full_scale)
    whole = image[: height * factor, : width * factor]
    small = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
    return to_grey(small.reshape(height, width, -1), full_scale)
