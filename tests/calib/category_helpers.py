"""A small category in MVTec-AD's layout, and an engine without a network that finds what is wrong in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.recipes import load_recipe
from edge.settings import Recipe
from engines.backends.null import NullBackend
from engines.bundle import ErrorMap, Manifest, NullArchitecture, Score, SmoothedMap, write_bundle

TILE_PX = 32
SPOT_PX = 8
SIZES = ((64, 64), (40, 90), (32, 32))

RECIPE = """
line = "test"
safe_state = "reject_all"
line_ok = {{ wired = "none", because = "a test" }}
deadline = {{ deadline_ms = 1000 }}
engine = {{ backend = "{backend}", threads = 1 }}
[[stations]]
name = "cam"
bundle = "{bundle}"
plan = "{plan}"
frame = {{ width_px = 64, height_px = 64 }}
source = {{ kind = "folder", path = "." }}
tiling = {{ {tiling} }}
"""


class BlurBackend(NullBackend):
    """Repaints the surroundings of each pixel: what is small and different stands out."""

    def infer(self, tiles: NDArray[np.uint8], out: NDArray[np.float32]) -> int | None:
        """See `Backend`."""
        for tile, repainted in zip(tiles, out, strict=True):
            repainted[..., 0] = cv2.GaussianBlur(tile[..., 0].astype(np.float32) / 255, (0, 0), 6)
        return None


def texture(seed: int, size: tuple[int, int] = (64, 64)) -> NDArray[np.uint8]:
    """A good part: noise."""
    return np.random.default_rng(seed).normal(120, 6, size).clip(0, 255).astype(np.uint8)


def spoiled(seed: int, size: tuple[int, int] = (64, 64)) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A bad part, with a spot that is lighter; and where."""
    image, mask = texture(seed, size), np.zeros(size, bool)
    y, x = (int(v) for v in np.random.default_rng(seed).integers(0, [n - SPOT_PX + 1 for n in size]))
    mask[y : y + SPOT_PX, x : x + SPOT_PX] = True
    image[mask] += 60
    return image, mask


def write_category(folder: Path, train: int = 24, test: int = 6, sizes: Sequence[tuple[int, int]] = SIZES) -> Path:
    """`test` images of each kind: good, `spot` with masks and one `spot_tiny`."""
    for kind in ("spot", "spot_tiny"):
        for part in ("test", "ground_truth"):
            (folder / part / kind).mkdir(parents=True)
    for part in ("train", "test"):
        (folder / part / "good").mkdir(parents=True)
    for k in range(train):
        cv2.imwrite(str(folder / f"train/good/{k:02}.png"), texture(k, sizes[k % len(sizes)]))
    for k in range(test):
        size = sizes[k % len(sizes)]
        cv2.imwrite(str(folder / f"test/good/{k}.png"), texture(100 + k, size))
        image, mask = spoiled(200 + k, size)
        kind = "spot_tiny" if k == 0 else "spot"
        cv2.imwrite(str(folder / f"test/{kind}/{k}.png"), image)
        cv2.imwrite(str(folder / f"ground_truth/{kind}/{k}_mask.png"), mask.astype(np.uint8) * 255)
    return folder


def write_null_bundle(
    path: Path,
    *,
    tile_px: int = TILE_PX,
    error_map: ErrorMap | None = None,
    score: Score | None = None,
    plans: tuple[str, ...] = ("x1",),
) -> Path:
    """A bundle without a network, for `BlurBackend`."""
    manifest = Manifest(
        name=path.name,
        architecture=NullArchitecture(kind="null", tile_px=tile_px),
        plans=plans,
        error_map=error_map or SmoothedMap(norm="signed", sigma_px=1.5),
        score=score or Score(kind="max"),
        licence="none",
    )
    return write_bundle(path, manifest, {}).path


def recipe(
    folder: Path, *, backend: str = "null", bundle: str | Path = "null", plan: str = "x1", tiling: str = ""
) -> Recipe:
    """A line of one station with frames of 64 x 64 px; its file is recipe.toml."""
    text = RECIPE.format(backend=backend, bundle=bundle, plan=plan, tiling=tiling)
    (folder / "recipe.toml").write_text(text)
    return load_recipe(folder / "recipe.toml")
