"""Parts of a real texture, painted onto a background where and how a test says, with edges between pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.demo.web import load_photo
from edge.tiling import Box, Place

__all__ = ["FRAME", "PART", "Defect", "blank", "paint_part", "save", "where_in_frame"]

FRAME = (400, 480)
"""Height and width."""
PART = Box(120, 90, 240, 224)
"""Where the part lies in its place."""
Defect = tuple[float, float, float]
"""Centre, from the part's upper left corner, and diameter: a dark spot."""

_FINE = 4


def blank(seed: int = 0, size: tuple[int, int] = FRAME, *, noise: float = 1.5) -> NDArray[np.float32]:
    """A dark background under a light that falls off, float32 [H, W], 0 to 255."""
    rng = np.random.default_rng(seed)
    light = np.linspace(24, 34, size[1], dtype=np.float32)[None]
    return np.asarray(light + noise * rng.standard_normal(size), np.float32)


def _shape(part: Box, kind: str) -> NDArray[np.float32]:
    height, width = part.height * _FINE, part.width * _FINE
    if kind == "rectangle":
        return np.ones((height, width), np.float32)
    mask = np.zeros((height, width), np.uint8)
    if kind == "disc":
        cv2.circle(mask, (width // 2, height // 2), min(height, width) // 2 - 1, 1, -1)
    else:  # an L: no symmetry at all
        mask[:, : width // 3] = 1
        mask[-height // 4 :] = 1
    return mask.astype(np.float32)


def paint_part(
    place: Place,
    seed: int = 0,
    *,
    onto: NDArray[np.float32] | None = None,
    kind: str = "rectangle",
    texture: str = "gravel",
    defect: Defect | None = None,
    part: Box = PART,
    gain: float = 1.0,
    noise: float = 1.5,
) -> NDArray[np.uint8]:
    """A frame, uint8 [H, W, 1], with a part that has moved and turned about its centre by `place`."""
    background = blank(seed, noise=noise) if onto is None else onto
    photo = load_photo(texture)
    height, width = part.height * _FINE, part.width * _FINE
    surface = 90 + 130 * cv2.resize(photo[: part.height, : part.width], (width, height), interpolation=cv2.INTER_CUBIC)
    if defect:
        x, y, diameter = (round(value * _FINE) for value in defect)
        cv2.circle(surface, (x, y), diameter // 2, 50.0, -1, cv2.LINE_AA)
    fine = np.array([[1 / _FINE, 0, part.x], [0, 1 / _FINE, part.y], [0, 0, 1]])
    moved = np.vstack([place.matrix(part), [0, 0, 1]])
    large = np.diag([_FINE, _FINE, 1.0]) @ moved @ fine
    large[:2, 2] += large[:2, :2] @ (0.5, 0.5) - 0.5
    size = (background.shape[1] * _FINE, background.shape[0] * _FINE)

    def put(picture: NDArray[Any], border: int) -> NDArray[np.float32]:
        turned = cv2.warpAffine(np.asarray(picture, np.float32), large[:2], size, borderMode=border)
        return np.asarray(cv2.resize(turned, background.shape[::-1], interpolation=cv2.INTER_AREA), np.float32)

    alpha = put(_shape(part, kind), cv2.BORDER_CONSTANT)
    seen = background * (1 - alpha) + put(surface, cv2.BORDER_REPLICATE) * alpha
    seen = seen + noise * np.random.default_rng(seed + 1000).standard_normal(seen.shape)
    return np.clip(np.rint(seen * gain), 0, 255).astype(np.uint8)[..., None]


def where_in_frame(place: Place, x: float, y: float, part: Box = PART) -> tuple[float, float]:
    """Where a point of the part, from its upper left corner, lies in the frame."""
    turned = place.matrix(part) @ (part.x + x, part.y + y, 1.0)
    return float(turned[0]), float(turned[1])


def save(image: NDArray[np.uint8], path: Path) -> Path:
    """Write a frame as PNG."""
    assert cv2.imwrite(str(path), image)
    return path
