"""Defects painted into good images, and the truth about them: seeded, and plausible to whoever looks at the report.

All work on luminance: float32 [H, W], 0 (black) to 1 (full scale). The light comes from the upper left. Edges are
anti-aliased, dirt keeps the texture under it, holes have a shaded and a lit rim, threads throw a shadow.

A defect is as strong as its *contrast* says: the mean of |after - before| over the pixels where it shows, as a share of
full scale. A pixel shows when it changed by more than VISIBLE; these, with small gaps closed, are the truth mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["CONTRASTS", "KINDS", "MIN_SIZE_PX", "SIZES_PX", "VISIBLE", "Defect", "paint", "paint_any"]

Luma = NDArray[np.float32]
AnyLuma = NDArray[np.floating[Any]]
Painter = Callable[[Luma, float], AnyLuma]
"""From the patch before and a strength (0 to 1) to the patch after."""

VISIBLE = 0.04
MIN_SIZE_PX = 6.0
CONTRASTS = (0.10, 0.60)
"""Contrast that `paint_any` draws from."""

SIZES_PX = {
    "scratch": (6.0, 120.0),
    "hole": (6.0, 40.0),
    "stain": (10.0, 80.0),
    "missing_brick": (20.0, 90.0),
    "fibre": (24.0, 140.0),
}
"""Longest extent that `paint_any` draws from, per kind; never more than 60 % of the image's shorter side."""

KINDS = tuple(SIZES_PX)

_FINE = 4  # supersampling of outlines
_TWO_SIDES = 0.12  # a pattern has edges where its bright and dark parts differ by more


@dataclass(frozen=True)
class Defect:
    """What was painted; the measures are of the result, not of the intention."""

    kind: str
    contrast: float  # mean visible change, share of full scale
    size_px: float  # longer side of the box around the mask
    mask: NDArray[np.bool_]  # [H, W]


def paint_any(
    luma: Luma,
    rng: np.random.Generator,
    contrast: tuple[float, float] = CONTRASTS,
    kinds: Sequence[str] = KINDS,
) -> tuple[Luma, Defect]:
    """Paint one defect of a random kind out of `kinds`, of random size, place and contrast; see `paint`."""
    kind = kinds[int(rng.integers(len(kinds)))]
    smallest, largest = SIZES_PX[kind]
    largest = max(smallest, min(largest, 0.6 * min(luma.shape)))
    size_px = float(np.exp(rng.uniform(np.log(smallest), np.log(largest))))
    return paint(luma, kind, rng, size_px, float(rng.uniform(*contrast)))


def paint(luma: Luma, kind: str, rng: np.random.Generator, size_px: float, contrast: float) -> tuple[Luma, Defect]:
    """Paint one defect of the given longest extent [px] at a random place, at least as strong as `contrast`.

    Returns the painted image (the input stays as it was) and the truth. Where the image leaves no room for the contrast
    (black on black), the strongest that is possible is painted, and its measured contrast returned. Raises ValueError
    for an unknown kind, or a defect that does not fit into the image.
    """
    if kind not in _PAINTERS:
        raise ValueError(f"defect kind {kind!r}; known are {', '.join(KINDS)}")
    side = int(np.ceil(size_px)) + 12
    height, width = luma.shape
    if size_px < MIN_SIZE_PX or side > min(height, width):
        raise ValueError(
            f"a {kind} of {size_px:.1f} px in an image of {width} x {height} px; smallest are {MIN_SIZE_PX:.0f} px, "
            "and every side needs a margin of 6 px"
        )
    y, x = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    before = luma[y : y + side, x : x + side]
    after, shows, measured = _strong_enough(before, _PAINTERS[kind](before, size_px, rng), contrast)
    painted, mask = luma.copy(), np.zeros(luma.shape, bool)
    painted[y : y + side, x : x + side] = after
    closed = cv2.morphologyEx(shows.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    mask[y : y + side, x : x + side] = closed > 0
    rows, columns = np.nonzero(shows)
    extent = max(np.ptp(rows), np.ptp(columns)) + 1 if rows.size else 0
    return painted, Defect(kind, measured, float(extent), mask)


def _strong_enough(before: Luma, painter: Painter, contrast: float) -> tuple[Luma, NDArray[np.bool_], float]:
    """The weakest rendering that reaches the contrast, by bisection over the strength; the strongest if none does."""
    low, high, best = 0.0, 1.0, _measured(before, painter(before, 1.0))
    if best[2] > contrast:
        for _ in range(10):
            middle = (low + high) / 2
            tried = _measured(before, painter(before, middle))
            if tried[2] >= contrast:
                high, best = middle, tried
            else:
                low = middle
    return best


def _measured(before: Luma, painted: AnyLuma) -> tuple[Luma, NDArray[np.bool_], float]:
    after = np.clip(painted, 0, 1).astype(np.float32)
    change = np.abs(after - before)
    shows = change > VISIBLE
    return after, shows, float(change[shows].mean()) if shows.any() else 0.0


def _scratch(before: Luma, size_px: float, rng: np.random.Generator) -> Painter:
    """A slightly bent line, 1 to 2.4 px wide, uneven along its length, with a shaded flank."""
    half = size_px / 2
    angle = rng.uniform(0, np.pi)
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    bend = rng.uniform(-0.15, 0.15) * size_px
    t = np.linspace(-1, 1, max(8, int(size_px)))[:, np.newaxis]
    points = _middle(before) + half * t * along + bend * (1 - t * t) * across
    core = _stroke(before.shape, points, rng.uniform(1.0, 2.4) * _uneven(len(points), rng, 0.35))
    flank = np.roll(core, (1, 1), (0, 1)) * (1 - core)
    level = _other_level(before, rng)

    def painted(patch: Luma, strength: float) -> AnyLuma:
        shaded = patch * (1 - 0.5 * strength * flank)
        return shaded + strength * core * (level - shaded)

    return painted


def _hole(before: Luma, size_px: float, rng: np.random.Generator) -> Painter:
    """A ragged dark opening; its upper left wall lies in shadow, its lower right rim catches the light."""
    inside = _fill(before.shape, _ragged_disc(_middle(before), size_px / 2, rng, 0.12))
    depth = np.clip(_lit_slope(inside, size_px / 5), -1, 1)
    rim = np.clip(cv2.GaussianBlur(inside, (0, 0), 1.2) - inside, 0, 1) * np.clip(depth, 0, 1) * 2
    floor = 0.07 + 0.05 * np.clip(depth, 0, 1)

    def painted(patch: Luma, strength: float) -> AnyLuma:
        sunk = patch + strength * inside * (floor - patch)
        return np.asarray(sunk + 0.25 * strength * rim)

    return painted


def _stain(before: Luma, size_px: float, rng: np.random.Generator) -> Painter:
    """Something spilled and dried: a soft, blotchy outline, stronger towards its edge; the texture stays visible."""
    outline = _fill(before.shape, _ragged_disc(_middle(before), size_px * 0.46, rng, 0.3))
    soft = cv2.GaussianBlur(outline, (0, 0), max(0.8, size_px / 18))
    edge = np.clip(soft * (1 - soft) * 4, 0, 1)
    blotches = 1 + 0.25 * _clouds(before.shape, max(3.0, size_px / 6), rng)
    amount = np.clip(soft * blotches * (0.75 + 0.25 * edge), 0, 1)
    bright = rng.random() < 0.3

    def painted(patch: Luma, strength: float) -> AnyLuma:
        change = amount * (0.92 - patch) if bright else -0.9 * amount * patch
        return np.asarray(patch + strength * change)

    return painted


def _missing_brick(before: Luma, size_px: float, rng: np.random.Generator) -> Painter:
    """A piece of the pattern has broken out, along its own edges: a grainy bed, shaded at its upper left."""
    gone = _piece(before, size_px, rng)
    slope = np.clip(_lit_slope(gone, max(1.5, size_px / 14)), -1, 1)
    grain = 0.03 * _clouds(before.shape, 1.2, rng) + 0.03 * _clouds(before.shape, 4.0, rng)
    level = 0.12 if rng.random() < 0.7 else _other_level(before, rng)
    bed = np.clip(level * (1 + 0.6 * slope) + grain, 0.02, 0.98)

    def painted(patch: Luma, strength: float) -> AnyLuma:
        return np.asarray(patch + strength * gone * (bed - patch))

    return painted


def _fibre(before: Luma, size_px: float, rng: np.random.Generator) -> Painter:
    """A thread of even width that winds over the surface and throws a soft shadow to the lower right."""
    steps = max(12, int(2 * size_px))
    turns = cv2.GaussianBlur(rng.normal(0, 1, (1, steps)), (0, 0), steps / 8)[0]
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(turns / (np.abs(turns).max() + 1e-6)) * rng.uniform(5, 14) / steps
    path = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1), 0)
    path -= (path.max(0) + path.min(0)) / 2
    points = _middle(before) + path * (size_px / max(np.ptp(path[:, 0]), np.ptp(path[:, 1])))
    core = _stroke(before.shape, points, rng.uniform(1.2, 2.0) * _uneven(len(points), rng, 0.1))
    shadow = np.roll(cv2.GaussianBlur(core, (0, 0), 1.0), (2, 2), (0, 1)) * (1 - core)
    level = _other_level(before, rng)

    def painted(patch: Luma, strength: float) -> AnyLuma:
        shaded = patch * (1 - 0.4 * strength * shadow)
        return shaded + strength * core * (level - shaded)

    return painted


_PAINTERS: dict[str, Callable[[Luma, float, np.random.Generator], Painter]] = {
    "scratch": _scratch,
    "hole": _hole,
    "stain": _stain,
    "missing_brick": _missing_brick,
    "fibre": _fibre,
}


def _middle(patch: Luma) -> NDArray[np.float64]:
    """The centre of a patch as (x, y)."""
    return np.array([(patch.shape[1] - 1) / 2, (patch.shape[0] - 1) / 2])


def _other_level(patch: Luma, rng: np.random.Generator) -> float:
    """Nearly white or nearly black, whichever is farther from the patch; sometimes the other one."""
    farther_is_white = float(np.median(patch)) < 0.5
    return 0.95 if farther_is_white == (rng.random() < 0.75) else 0.04


def _uneven(count: int, rng: np.random.Generator, amount: float) -> NDArray[np.float64]:
    """Smooth noise around 1 along a line, [count]."""
    noise = cv2.GaussianBlur(rng.normal(0, 1, (1, count)), (0, 0), max(1.0, count / 16))[0]
    return np.asarray(np.clip(1 + amount * noise / (np.abs(noise).max() + 1e-6), 0.3, 2))


def _clouds(shape: tuple[int, ...], grain_px: float, rng: np.random.Generator) -> Luma:
    """Smooth noise with features of `grain_px`, mean 0, standard deviation 1, [H, W]."""
    noise = cv2.GaussianBlur(rng.normal(0, 1, shape).astype(np.float32), (0, 0), grain_px)
    return np.asarray((noise - noise.mean()) / (noise.std() + 1e-6), np.float32)


def _ragged_disc(
    centre: NDArray[np.float64], radius: float, rng: np.random.Generator, raggedness: float
) -> NDArray[np.float64]:
    """An outline around a centre whose largest extent is twice the radius, [N, 2]."""
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    wobble = sum(
        raggedness / k**0.7 * rng.normal() * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(2, 8)
    )
    outline = np.clip(1 + wobble, 0.45, 1.6)[:, np.newaxis] * np.stack([np.cos(angle), np.sin(angle)], 1)
    outline -= (outline.max(0) + outline.min(0)) / 2
    return np.asarray(centre + outline * (2 * radius / np.ptp(outline, axis=0).max()))


def _fill(shape: tuple[int, ...], outline: NDArray[np.float64]) -> Luma:
    """Coverage of a closed outline, anti-aliased, 0 to 1, [H, W]."""
    fine = np.zeros((shape[0] * _FINE, shape[1] * _FINE), np.uint8)
    cv2.fillPoly(fine, [np.round((outline + 0.5) * _FINE).astype(np.int32)], 255)
    return _shrink(fine, shape)


def _stroke(shape: tuple[int, ...], points: NDArray[np.float64], widths: NDArray[np.float64]) -> Luma:
    """Coverage of a line through `points` [N, 2] with the widths [N] in pixels, anti-aliased, 0 to 1, [H, W]."""
    fine = np.zeros((shape[0] * _FINE, shape[1] * _FINE), np.uint8)
    places = np.round((points + 0.5) * _FINE).astype(np.int32)
    for start, end, width in zip(places[:-1], places[1:], widths, strict=False):
        cv2.line(fine, start.tolist(), end.tolist(), 255, max(1, round(float(width) * _FINE)))
    return _shrink(fine, shape)


def _shrink(fine: NDArray[np.uint8], shape: tuple[int, ...]) -> Luma:
    small = cv2.resize(fine, (shape[1], shape[0]), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return np.asarray(cv2.GaussianBlur(small, (0, 0), 0.4), np.float32)


def _lit_slope(inside: Luma, width_px: float) -> Luma:
    """How far the wall of a recess faces the light from the upper left: -1 (in shadow) to 1 (lit), [H, W]."""
    smooth = cv2.GaussianBlur(inside, (0, 0), width_px)
    slope = -(cv2.Sobel(smooth, cv2.CV_32F, 1, 0) + cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
    return np.asarray(slope / (np.abs(slope).max() + 1e-6), np.float32)


def _piece(patch: Luma, size_px: float, rng: np.random.Generator) -> Luma:
    """A piece of the pattern within a ragged disc: the largest connected part that is all bright or all dark.

    The whole disc where the pattern has no such sides, or none with a piece of a third of the disc.
    """
    disc = _fill(patch.shape, _ragged_disc(_middle(patch), size_px / 2, rng, 0.15))
    smooth = cv2.GaussianBlur(patch, (0, 0), 1.2)
    levels = np.clip(smooth * 255, 0, 255).astype(np.uint8)
    threshold, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_OTSU)
    bright = levels > threshold
    best, best_area = disc, float(disc.sum()) / 3
    if bright.all() or not bright.any() or smooth[bright].mean() - smooth[~bright].mean() < _TWO_SIDES:
        return best
    for side in (bright, ~bright):
        piece = cv2.morphologyEx(((disc > 0.5) & side).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        count, labels, stats, _ = cv2.connectedComponentsWithStats(piece, connectivity=4)
        for label in range(1, count):
            if stats[label, cv2.CC_STAT_AREA] > best_area:
                best_area = float(stats[label, cv2.CC_STAT_AREA])
                filled = cv2.morphologyEx((labels == label).astype(np.float32), cv2.MORPH_CLOSE, np.ones((7, 7)))
                best = np.asarray(cv2.GaussianBlur(filled, (0, 0), 0.7), np.float32)
    return best
