"""Pictures that are smaller than a tile, made large enough."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.tiling import Box

__all__ = ["pad_mirrored"]


def pad_mirrored(image: NDArray[Any], height: int, width: int) -> tuple[NDArray[Any], Box]:
    """`image` [H, W, C] at least `height` x `width` px large, mirrored at its sides (dcb|abcd|cba); and where it lies.

    As often as it takes, and as much on each side. A picture that is large enough comes back as it is.
    """
    missing = [max(0, n - have) for n, have in zip((height, width), image.shape[:2], strict=True)]
    top, left = (n // 2 for n in missing)
    inside = Box(left, top, image.shape[1], image.shape[0])
    if not any(missing):
        return image, inside
    border = (top, missing[0] - top, left, missing[1] - left)
    padded = np.asarray(cv2.copyMakeBorder(image, *border, cv2.BORDER_REFLECT_101))
    return padded.reshape(*padded.shape[:2], image.shape[2]), inside
