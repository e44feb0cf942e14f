"""Good tiles made locally wrong, so that a network can learn to put them right. numpy and OpenCV only.

After Bauer, "Self-Supervised Training with Autoencoders for Visual Anomaly Detection" (arXiv 2206.11723): content is
cut out, deformed elastically, changed in brightness, and put back under a mask of random shape. From the paper come
the three ingredients and the real-valued mask. Ours are: how shapes and displacements are drawn (noise on a coarse
grid, which is fast), content that is blurred or flat beside the deformed, streaks beside blobs, and the sizes, which
are drawn evenly over their logarithm so that specks of a few pixels are as frequent as large stains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["DEFAULT", "KINDS", "SHAPES", "Corruption", "corrupt", "corrupt_tiles"]

Pixels = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]
Rng = np.random.Generator

Kind = Literal["elastic", "brightness", "blur", "flat"]
Shape = Literal["ellipse", "blob", "streak"]

KINDS: tuple[Kind, ...] = get_args(Kind)
"""What is put in: deformed texture; the same, lighter or darker; blurred texture; one level."""

SHAPES: tuple[Shape, ...] = get_args(Shape)
"""What it is put in under."""

_MARGIN_PX = 3
"""Around every shape within its window, for the soft edge: a mask is 0 along the sides of its window."""


class Corruption(BaseModel):
    """How tiles are corrupted. Pairs are (smallest, largest), both possible."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    patches: tuple[int, int] = Field(default=(1, 4), description="how many per tile, from, to")
    size_px: tuple[float, float] = Field(default=(5.0, 96.0), description="longest extent of a shape, from, to")
    largest_share: float = Field(default=0.5, gt=0, le=1, description="of the tile's side, is as long as shapes get")
    shift: tuple[float, float] = Field(
        default=(0.03, 0.4), description="change of brightness, from, to, as a share of full scale, either way"
    )
    displacement_px: tuple[float, float] = Field(
        default=(0.7, 6.0), description="standard deviation of the elastic displacement, from, to"
    )
    kinds: tuple[Kind, ...] = Field(
        default=KINDS, min_length=1, description="what is put in, all equally often; the paper's: elastic,brightness"
    )
    shapes: tuple[Shape, ...] = Field(default=SHAPES, min_length=1, description="under which, all equally often")

    @model_validator(mode="after")
    def _ordered(self) -> Corruption:
        for name in ("patches", "size_px", "shift", "displacement_px"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} is ({low}, {high}), expected 0 < smallest <= largest")
        return self


DEFAULT = Corruption()


def corrupt(tile: Pixels, rng: Rng, spec: Corruption = DEFAULT) -> tuple[Pixels, Plane]:
    """A corrupted copy of `tile` uint8 [h, w, C], C of 1 or 3, and its mask float32 [h, w] in [0, 1].

    The mask is the share of foreign content per pixel: 1 within, 0 where the copy is bit-equal to the tile, between the
    two along soft edges. Equal states of `rng` give equal pixels. A millisecond for a tile of 128 x 128 on one core.
    """
    if tile.dtype != np.uint8 or tile.ndim != 3 or tile.shape[2] not in (1, 3) or min(tile.shape[:2]) < 16:
        raise ValueError(
            f"a tile to corrupt is {tile.dtype} {tile.shape}, expected uint8 [h, w, C] of at least 16 x 16 and 1 or 3 "
            "channels"
        )
    corrupted, mask = tile.copy(), np.zeros(tile.shape[:2], np.float32)
    for _ in range(int(rng.integers(spec.patches[0], spec.patches[1] + 1))):
        _corrupt_once(corrupted, mask, rng, spec)
    return corrupted, mask


def corrupt_tiles(tiles: Pixels, rng: Rng, spec: Corruption = DEFAULT) -> tuple[Pixels, Plane]:
    """`corrupt` for each of `tiles` uint8 [N, h, w, C], one after the other: uint8 [N, h, w, C], float32 [N, h, w]."""
    corrupted, masks = np.empty_like(tiles), np.empty(tiles.shape[:3], np.float32)
    for i, tile in enumerate(tiles):
        corrupted[i], masks[i] = corrupt(tile, rng, spec)
    return corrupted, masks


def _corrupt_once(tile: Pixels, mask: Plane, rng: Rng, spec: Corruption) -> None:
    """Puts one patch into `tile` and `mask`, in place."""
    draw = _SHAPES[spec.shapes[int(rng.integers(len(spec.shapes)))]]
    kind = spec.kinds[int(rng.integers(len(spec.kinds)))]
    side = min(tile.shape[:2])
    low = min(spec.size_px[0], side / 2)
    size = _log_uniform(rng, low, max(low, min(spec.size_px[1], spec.largest_share * side)))
    shape = draw(size, rng)  # [a, b]
    # Shapes may hang over the tile's side by half: what lies there must be repainted from one side alone.
    y, x = (int(rng.integers(-(a // 2), n - a + a // 2 + 1)) for a, n in zip(shape.shape, tile.shape, strict=False))
    top, left, bottom, right = (
        max(y, 0),
        max(x, 0),
        min(y + shape.shape[0], len(tile)),
        min(x + shape.shape[1], len(tile[0])),
    )
    shape = shape[top - y : bottom - y, left - x : right - x]
    window = np.s_[top:bottom, left:right]
    content = _content(tile, (top, left, *shape.shape), kind, rng, spec)
    before = tile[window].astype(np.float32)
    blended = before + shape[..., None] * (content - before)
    np.copyto(tile[window], np.clip(np.rint(blended), 0, 255).astype(np.uint8))
    np.maximum(mask[window], shape, out=mask[window])


def _content(tile: Pixels, box: tuple[int, int, int, int], kind: str, rng: Rng, spec: Corruption) -> Plane:
    """What goes into `box` (top, left, height, width): float32 [height, width, C], 0 to 255, not yet clipped."""
    top, left, height, width = box
    if kind == "flat":
        return np.full((height, width, tile.shape[2]), rng.uniform(0, 255), np.float32)
    if rng.random() < 0.5:  # from elsewhere in the tile, as it does not fit there
        top, left = (int(rng.integers(0, n - a + 1)) for n, a in zip(tile.shape[:2], (height, width), strict=True))
    if kind == "blur":
        patch = tile[top : top + height, left : left + width].astype(np.float32)
        blurred = cv2.GaussianBlur(patch, (0, 0), _log_uniform(rng, 0.8, 5.0), borderType=cv2.BORDER_REFLECT_101)
        return np.asarray(blurred, np.float32).reshape(height, width, -1)
    content = _deformed(tile, (top, left, height, width), rng, spec)
    if kind == "brightness":
        shift = 255 * _log_uniform(rng, *spec.shift) * rng.choice([-1.0, 1.0])
        tint = rng.uniform(0.3, 1.0, tile.shape[2]) if rng.random() < 0.3 else np.ones(tile.shape[2])
        content = content + (shift * tint).astype(np.float32)
    return content


def _deformed(tile: Pixels, box: tuple[int, int, int, int], rng: Rng, spec: Corruption) -> Plane:
    """The box (top, left, height, width) of the tile, deformed elastically; float32 [height, width, C]."""
    top, left, height, width = box
    amount, grain = _log_uniform(rng, *spec.displacement_px), _log_uniform(rng, 4.0, 16.0)
    x = np.arange(left, left + width, dtype=np.float32) + amount * _noise(height, width, grain, rng)
    y = np.arange(top, top + height, dtype=np.float32)[:, None] + amount * _noise(height, width, grain, rng)
    bent = cv2.remap(tile, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    return bent.astype(np.float32).reshape(height, width, -1)


def _ellipse(size: float, rng: Rng) -> Plane:
    """A turned ellipse, its longer axis `size` pixels, the shorter at least a third of it."""
    axes = np.array([size, max(2.0, size * rng.uniform(0.35, 1.0))]) / 2
    return _soft(_fill(_canvas(size), axes, rng), rng)


def _blob(size: float, rng: Rng) -> Plane:
    """The part of an ellipse where coarse noise is above a level: one or several ragged islands."""
    canvas = _canvas(size)
    side = len(canvas)
    inside = _fill(canvas, np.array([size, max(2.0, size * rng.uniform(0.5, 1.0))]) / 2, rng)
    noise = _noise(side, side, max(2.0, size / rng.uniform(2.5, 6.0)), rng)
    level = np.quantile(noise[inside > 0], rng.uniform(0.1, 0.6))
    return _soft(inside * (noise > level), rng)


def _streak(size: float, rng: Rng) -> Plane:
    """A bent line of `size` pixels from end to end, 1 to 4 px thick."""
    canvas = _canvas(size)
    angle, t = rng.uniform(0, np.pi), np.linspace(-1, 1, 12)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    bent = 0.25 * rng.uniform(-1, 1) * (1 - t * t) + 0.1 * rng.uniform(-1, 1) * np.sin(np.pi * t)
    points = len(canvas) / 2 + (size / 2 - 1) * (t[:, None] * along + bent[:, None] * across)
    drawn = np.zeros(canvas.shape, np.uint8)
    fixed = np.round(points * 16).astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(drawn, [fixed], False, 255, int(rng.integers(1, min(4, max(1, int(size / 4))) + 1)), cv2.LINE_AA, 4)
    canvas += drawn.astype(np.float32) / 255
    return _soft(canvas, rng)


_SHAPES: dict[str, Callable[[float, Rng], Plane]] = {"ellipse": _ellipse, "blob": _blob, "streak": _streak}


def _canvas(size: float) -> Plane:
    side = int(np.ceil(size)) + 2 * _MARGIN_PX
    return np.zeros((side, side), np.float32)


def _fill(canvas: Plane, axes: npt.NDArray[Any], rng: Rng) -> Plane:
    """Fills an ellipse with half axes `axes` around the canvas' middle, at any angle."""
    middle = (len(canvas) - 1) / 2
    drawn = np.zeros(canvas.shape, np.uint8)
    centre, half = (round(middle * 16),) * 2, tuple(int(a) for a in np.maximum(16, np.round((axes - 0.5) * 16)))
    cv2.ellipse(drawn, centre, half, float(rng.uniform(0, 180)), 0, 360, 255, -1, cv2.LINE_AA, 4)
    canvas += drawn.astype(np.float32) / 255
    return canvas


def _soft(canvas: Plane, rng: Rng) -> Plane:
    """The same with edges as soft as a camera's; 0 along the sides, some pixel at 1."""
    soft = cv2.GaussianBlur(canvas, (5, 5), rng.uniform(0.4, 1.2), borderType=cv2.BORDER_CONSTANT)
    soft[soft < 1 / 64] = 0
    soft[[0, -1]] = 0
    soft[:, [0, -1]] = 0
    return np.asarray(soft / max(float(soft.max()), 1e-3), np.float32)


def _noise(height: int, width: int, grain: float, rng: Rng) -> Plane:
    """Smooth noise of about unit variance with features of `grain` pixels, float32 [height, width]."""
    rows, columns = (int(np.ceil(n / grain)) + 3 for n in (height, width))
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    scale, offset = np.float32(1 / grain), rng.uniform(0, 1, 2).astype(np.float32) + 1
    move = np.array([[scale, 0, offset[0]], [0, scale, offset[1]]], np.float32)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(coarse, move, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101))


def _log_uniform(rng: Rng, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
