"""Rectangles of a frame's pixels, and how they move with a part: pure functions on arrays.

Coordinates are pixels, x to the right and y down; a pixel covers [x, x + 1), and a box [x, x + width) by
[y, y + height). cv2 counts from the centres of pixels instead: half a pixel less.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_BOXES", "Box", "Place", "boxes_to_region", "enclosing", "flat", "move", "transformed", "warp"]

Array = NDArray[Any]

MAX_BOXES = 32
"""At most so many boxes are reported per map or view, the largest ones: a covered lens has thousands."""
_REACH_PX = 2
"""What bilinear interpolation sees beyond its place, and one."""


class Box(NamedTuple):
    """A rectangle of pixels: [x, x + width) by [y, y + height)."""

    x: int
    y: int
    width: int
    height: int

    @property
    def rows(self) -> slice:
        return slice(self.y, self.y + self.height)

    @property
    def columns(self) -> slice:
        return slice(self.x, self.x + self.width)


class Place(NamedTuple):
    """How a part lies: the centre of its region has moved, and the region has turned about it, clockwise as it is
    seen."""

    dx_px: float
    dy_px: float
    angle_deg: float

    def matrix(self, region: Box) -> NDArray[np.float64]:
        """[2, 3]: from where a point of the part lies in the recipe to where it lies in this frame."""
        centre = np.array([region.x + region.width / 2, region.y + region.height / 2])
        cos, sin = math.cos(math.radians(self.angle_deg)), math.sin(math.radians(self.angle_deg))
        turn = np.array([[cos, -sin], [sin, cos]])
        return np.column_stack([turn, centre + np.array([self.dx_px, self.dy_px]) - turn @ centre])

    def moved(self, region: Box) -> NDArray[np.float64]:
        """[4, 2]: where the corners of a region lie in this frame."""
        return transformed(self.matrix(region), region)


def transformed(matrix: NDArray[np.float64], box: Box) -> NDArray[np.float64]:
    """[4, 2]: the corners of a box, moved by `matrix` [2, 3]."""
    x, y, right, bottom = box.x, box.y, box.x + box.width, box.y + box.height
    corners = np.array([[x, y], [right, y], [right, bottom], [x, bottom]], np.float64)
    return np.asarray(corners @ matrix[:, :2].T + matrix[:, 2])


def flat(image: Array) -> Array:
    """A view without the channel axis where there is only one channel: cv2 knows no [H, W, 1]."""
    return image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image


def warp(frame: Array, region: Box, place: Place, out: Array) -> Array:
    """Fill `out` [h, w, C] with what lies under a moved and turned region of `frame` [H, W, C]; return `out`.

    One bilinear interpolation, whatever the shift, the angle and the enlargement. `out` is the region's size or larger:
    shrinking belongs behind it, where areas are averaged (`resize`). A part in its place comes out as it is.
    """
    import cv2  # actuators know boxes, and no pixels

    height, width = out.shape[:2]
    corners = place.moved(region)
    low = np.maximum(np.floor(corners.min(axis=0)).astype(int) - _REACH_PX, 0)
    high = np.ceil(corners.max(axis=0)).astype(int) + _REACH_PX
    scale = np.array([region.width / width, region.height / height])
    to_region = np.array([[scale[0], 0, region.x + scale[0] / 2], [0, scale[1], region.y + scale[1] / 2], [0, 0, 1]])
    matrix = place.matrix(region) @ to_region  # from the centre of a pixel of `out` into the frame
    matrix[:, 2] -= low + 0.5
    cv2.warpAffine(
        flat(frame[low[1] : high[1], low[0] : high[0]]),
        matrix,
        (width, height),
        dst=flat(out),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return out


def move(picture: Array, region: Box, place: Place) -> Array:
    """What is drawn on a part in its place, [H, W] of the frame, as it lies when the part has moved; 0 elsewhere."""
    import cv2

    matrix = place.matrix(region)
    matrix[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5  # between centres of pixels
    size = (picture.shape[1], picture.shape[0])
    return np.asarray(cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_LINEAR))


def enclosing(corners: NDArray[np.float64], width: int, height: int) -> Box:
    """The box around points [n, 2] that lies inside a frame of `width` x `height`, rounded outwards."""
    corners = np.round(corners, 6)  # 30.000000000000004 is 30
    left, top = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, (width - 1, height - 1)).tolist()
    right, bottom = np.clip(np.ceil(corners.max(axis=0)).astype(int), (left + 1, top + 1), (width, height)).tolist()
    return Box(left, top, right - left, bottom - top)


def boxes_to_region(boxes: list[Box], region: Box, place: Place) -> list[tuple[float, float, float, float]]:
    """x, y, width, height in frame pixels of boxes on a part that has moved, as if it lay in its place.

    A box that encloses a turned defect is somewhat larger than it, and stays as it is.
    """
    import cv2

    back = cv2.invertAffineTransform(place.matrix(region))
    found = []
    for box in boxes:
        x, y = back[:, :2] @ (box.x + box.width / 2, box.y + box.height / 2) + back[:, 2]
        found.append((float(x) - box.width / 2, float(y) - box.height / 2, float(box.width), float(box.height)))
    return found
