"""Anomalies that nobody has seen: procedural textures laid over good tiles where Perlin noise is high.

The way of DRAEM (Zavrtanik et al., ICCV 2021): gradient noise of a random scale, turned by a random angle, is cut at a
threshold, and what is above it is blended with a texture from elsewhere. Over the foreground alone, which MemSeg
(Yang et al., 2023) added, the noise counts only where the product is and not its background. Both take their textures
from photographs (DTD); ours are drawn (`engines.textures`). Ours are also the opacities, which are drawn evenly over
their logarithm and begin lower, so that faint anomalies are as frequent as plain ones, and that most tiles get some,
where in those papers half of them do: fits are short.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from engines.textures import canvas

__all__ = ["foreground", "perlin_noise", "with_anomalies"]

Pixels = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Rng = np.random.Generator

ABOVE = 0.5
"""Where the noise is higher, there is an anomaly: about 6 % of a tile."""
SMALLEST_CELL_PX = 4
OPACITY = (0.1, 1.0)
TEXTURES, TEXTURES_SEED, SMALLEST_TEXTURE_PX = 64, 21, 256
"""How many textures there are, of which series of canvases, and how large they are at least."""
TWO_LEVELS = 0.85
"""Share of the variance that two levels must explain to be called product and background. Of a single bump of grey
levels they explain 2/3 to 3/4, however narrow it is."""
RIM_PX, RIM_SHARE = 2, 0.8
"""The background is what at least this share of the tile's rim shows."""


def with_anomalies(tile: Pixels, rng: Rng, share: float = 0.8) -> tuple[Pixels, Mask]:
    """A copy of `tile` uint8 [h, w, C] with anomalies in it, and where they are, bool [h, w].

    Half of them lie anywhere in the tile and half on its foreground. `share` of the tiles get any; the others, and
    those where no noise is above the threshold, come back as they are with an empty mask. Equal states of `rng` give
    equal pixels.
    """
    height, width, channels = tile.shape
    if rng.random() >= share:
        return tile.copy(), np.zeros((height, width), bool)
    where = _turned_noise(height, width, rng) > ABOVE
    if rng.random() < 0.5:
        where &= foreground(tile)
    opacity = np.float32(np.exp(rng.uniform(*np.log(OPACITY))))
    strange = _texture(height, width, channels, rng)
    blended = tile + opacity * where[..., None] * (strange - tile.astype(np.float32))
    return np.rint(blended).clip(0, 255).astype(np.uint8), where


def foreground(tile: Pixels) -> Mask:
    """Where the product is, bool [h, w], in a tile uint8 [h, w, C]: what is on the other side of Otsu's threshold than
    the tile's rim. All of it where there are no two levels, or the rim shows both.
    """
    grey = cv2.GaussianBlur(tile.mean(2).astype(np.uint8), (0, 0), 1.5)
    _, binary = cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    bright = np.asarray(binary, bool)
    share, variance = float(bright.mean()), float(grey.var())
    rim = np.ones(bright.shape, bool)
    rim[RIM_PX:-RIM_PX, RIM_PX:-RIM_PX] = False
    rim_bright = float(bright[rim].mean())
    if share in (0.0, 1.0) or 1 - RIM_SHARE < rim_bright < RIM_SHARE:
        return np.ones(bright.shape, bool)
    apart = float(grey[bright].mean()) - float(grey[~bright].mean())
    if share * (1 - share) * apart**2 < TWO_LEVELS * variance:
        return np.ones(bright.shape, bool)
    return ~bright if rim_bright >= RIM_SHARE else bright


def perlin_noise(height: int, width: int, cells: tuple[int, int], rng: Rng) -> Plane:
    """Perlin's gradient noise (SIGGRAPH 1985, with the fade of 2002): float32 [height, width], from -1 to 1, smooth
    over `cells` rows and columns of a lattice with a random slope in each corner.
    """
    angle = rng.uniform(0, 2 * np.pi, (cells[0] + 1, cells[1] + 1))
    slopes = np.stack([np.sin(angle), np.cos(angle)]).astype(np.float32)
    y, x = ((np.arange(n) + 0.5) * (count / n) for n, count in zip((height, width), cells, strict=True))
    i, j = y.astype(int), x.astype(int)
    dy, dx = (y - i).astype(np.float32)[:, None], (x - j).astype(np.float32)[None]

    def corner(below: int, right: int) -> Plane:
        slope = slopes[:, (i + below)[:, None], (j + right)[None]]
        return np.asarray(slope[0] * (dy - below) + slope[1] * (dx - right), np.float32)

    u, v = _fade(dy), _fade(dx)
    top, bottom = (corner(below, 0) * (1 - v) + corner(below, 1) * v for below in (0, 1))
    return np.asarray(math.sqrt(2) * (top * (1 - u) + bottom * u), np.float32)


def _fade(t: Plane) -> Plane:
    """Smooth steps from 0 to 1 with neither slope nor bend at the ends."""
    return np.asarray(t * t * t * (t * (6 * t - 15) + 10), np.float32)


def _turned_noise(height: int, width: int, rng: Rng) -> Plane:
    """Noise [height, width] of 1 to many cells each way, a power of two, turned by any angle."""
    side = math.ceil(math.hypot(height, width))
    finest = int(np.log2(max(1, min(height, width) // SMALLEST_CELL_PX)))
    rows, columns = (2 ** int(rng.integers(finest + 1)) for _ in range(2))
    noise = perlin_noise(side, side, (rows, columns), rng)
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), float(rng.uniform(0, 180)), 1.0)
    turn[0, 2] -= (side - width) / 2
    turn[1, 2] -= (side - height) / 2
    return np.asarray(cv2.warpAffine(noise, turn, (width, height), borderMode=cv2.BORDER_REFLECT_101))


def _texture(height: int, width: int, channels: int, rng: Rng) -> npt.NDArray[Any]:
    """A piece of a drawn texture, float32 [height, width, channels], 0 to 255; colours are tints of it."""
    whole = _canvas(int(rng.integers(TEXTURES)), max(height, width, SMALLEST_TEXTURE_PX))
    y, x = (int(rng.integers(n - part + 1)) for n, part in zip(whole.shape, (height, width), strict=True))
    piece = whole[y : y + height, x : x + width].astype(np.float32)
    tint = rng.uniform(0.3, 1.0, channels) if channels > 1 else np.ones(1)
    return piece[..., None] * tint.astype(np.float32)


@lru_cache(maxsize=TEXTURES)
def _canvas(number: int, size: int) -> Pixels:
    return canvas(TEXTURES_SEED, number, size)
