"""Tiles to measure an engine on: of the user's good parts, or procedural ones; and with defects painted into some."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.demo.defects import paint_any
from edge.errors import RecipeError, SourceError
from edge.sources.folder import SUFFIXES
from edge.sources.images import BadImageError, decode_image
from edge.tiling import plan_prepare, prepare
from engines.backends.verify import Samples
from engines.bundle import Manifest
from engines.textures import canvas

__all__ = ["good_tiles", "samples"]

Tiles = NDArray[np.uint8]


def samples(manifest: Manifest, good: Path | None, count: int) -> Samples:
    """`count` tiles, every other one with a painted defect. Raises SourceError as `good_tiles` does."""
    tiles = good_tiles(manifest, good, count)
    untouched, rng = (len(tiles) + 1) // 2, np.random.default_rng(0)
    for tile in tiles[untouched:]:
        luma = tile.mean(2, dtype=np.float32) / np.float32(255)
        change = paint_any(luma, rng)[0] - luma
        tile[:] = np.clip(np.rint(tile + 255 * change[..., None]), 0, 255)
    return Samples(tiles, untouched)


def good_tiles(manifest: Manifest, good: Path | None, count: int) -> Tiles:
    """At most `count` tiles uint8 [N, h, w, C], evenly taken from the images of a folder, or procedural without one.

    Raises SourceError that names a folder without images, or an image that cannot be used.
    """
    side, channels = manifest.tile_px, manifest.channels
    if good is None:
        return np.stack([np.repeat(canvas(0, k, side)[..., None], channels, 2) for k in range(count)])
    paths = sorted(p for p in good.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise SourceError(f"--good {good}: no images in it (looked for {', '.join(sorted(SUFFIXES))})")
    chosen = [paths[i] for i in sorted({round(x) for x in np.linspace(0, len(paths) - 1, min(count, len(paths)))})]
    tiles = np.concatenate([_tiles(path, manifest) for path in chosen])
    picked: Tiles = tiles[np.linspace(0, len(tiles) - 1, min(count, len(tiles))).round().astype(int)]
    return picked


def _tiles(path: Path, manifest: Manifest) -> Tiles:
    """The tiles of one image, as a line without a region or a mask would cut it."""
    try:
        image = decode_image(path.read_bytes())
        window = (manifest.window.low, manifest.window.high) if image.dtype == np.uint16 else None
        plan = plan_prepare(image.shape, image.dtype, tile=manifest.tile_px, channels=manifest.channels, window=window)
    except (OSError, BadImageError, RecipeError) as error:
        raise SourceError(f"image {path}: {error}") from error
    return prepare(image, plan, np.empty(plan.tiles_shape, np.uint8))
