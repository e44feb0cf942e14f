"""Surfaces to fit on, good and defective, and the real images that MASKLINE_TEST_DATA names."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import roc_auc_score

import edge.demo
from edge.anomaly import error_map
from edge.demo.defects import paint
from edge.scores import view_score
from edge.tiling import cut, grid
from engines.bundle import DirectMap, ErrorMap, Score, SmoothedMap

__all__ = [
    "SIGNED",
    "SQUARED",
    "Beside",
    "Category",
    "beside_the_mean_image",
    "crops",
    "photograph",
    "real_folder",
    "real_images",
    "stripes",
    "with_defect",
]

Pixels = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float32]

SQUARED = SmoothedMap(norm="l2", sigma_px=2.0)
SIGNED = SmoothedMap(norm="signed", sigma_px=2.0)


def photograph(name: str) -> Pixels:
    """scikit-image's brick, grass or gravel, as the package has them."""
    return _read(Path(edge.demo.__file__).parent / "photos" / f"{name}.png")


def stripes() -> Pixels:
    """A fine weave with sensor noise, 256 x 512."""
    y, x = np.mgrid[:256, :512]
    ripple = 60 * np.sin(2 * np.pi * x / 9) * (0.8 + 0.2 * np.sin(2 * np.pi * y / 7))
    return np.clip(128 + ripple + np.random.default_rng(1).normal(0, 4, x.shape), 0, 255).astype(np.uint8)


def crops(images: Sequence[Pixels], count: int, rng: np.random.Generator, px: int) -> Pixels:
    """[count, px, px, 1] from anywhere in images [h, w]."""
    found = []
    for _ in range(count):
        image = images[int(rng.integers(len(images)))]
        y, x = (int(rng.integers(n - px + 1)) for n in image.shape)
        found.append(image[y : y + px, x : x + px])
    return np.stack(found)[..., None]


def with_defect(tile: Pixels, rng: np.random.Generator) -> Pixels:
    """A tile [h, w, 1] with a defect of 6 to 12 px and at most 10 % contrast."""
    kind = ("hole", "stain", "scratch")[int(rng.integers(3))]
    luma = tile[..., 0].astype(np.float32) / 255
    painted, defect = paint(luma, kind, rng, float(rng.uniform(6, 12)), float(rng.uniform(0.07, 0.095)))
    assert 0 < defect.contrast <= 0.1
    return np.rint(painted[..., None] * 255).astype(np.uint8)


@dataclass(frozen=True)
class Category:
    """Grey images [h, w] of one folder in MVTec AD's layout."""

    fit: list[Pixels]
    good: list[Pixels]
    bad: list[Pixels]


def real_folder(category: str) -> Path:
    """A category in the folder that MASKLINE_TEST_DATA names; skips the test where it is not set."""
    root = os.environ.get("MASKLINE_TEST_DATA")
    if not root:
        pytest.skip(f"MASKLINE_TEST_DATA is not set: no real images with defects (it names a folder with {category})")
    return Path(root) / category


def real_images(category: str) -> Category:
    """What is in `real_folder`."""
    folder = real_folder(category)
    defective = (path for path in folder.glob("test/*/*") if path.parent.name != "good")
    return Category(
        *([_read(p) for p in sorted(x)] for x in (folder.glob("train/good/*"), folder.glob("test/good/*"), defective))
    )


@dataclass(frozen=True)
class Beside:
    """Image AUROC of an engine, and of the trivial detector: the distance to the mean of the good images."""

    ours: float
    alike: float
    """Of the mean image, with the engine's own error map and score; with SQUARED where the engine draws its own map."""
    signed: float
    """Of the mean image, with SIGNED, the best of several maps over the three fabrics."""


def beside_the_mean_image(
    images: Category, px: int, answer: Callable[[Pixels], Numbers], spec: ErrorMap, score: Score | None = None
) -> Beside:
    """How well `answer`, from tiles uint8 [N, px, px, 1] to what a network says of them, ranks images by its error map
    and score (default: the maximum): tiles as the line cuts them, the worst decides. The mean image is compared whole.

    Logs the figures, which `pytest -rP --log-level INFO` shows.
    """
    score = score or Score(kind="max")
    mean = (np.mean(images.fit, 0) / 255).astype(np.float32)[None, ..., None]
    at = grid(*mean.shape[1:3], px)

    def ours(image: Pixels) -> Numbers:
        tiles = cut(image[..., None], at, np.empty((at.count, px, px, 1), np.uint8))
        return error_map(tiles, answer(tiles), spec)

    def trivial(spec: ErrorMap, score: Score) -> float:
        return _image_auroc(images, lambda image: error_map(image[None, ..., None], mean, spec), score)

    found = Beside(
        _image_auroc(images, ours, score),
        trivial(SQUARED, Score(kind="max")) if isinstance(spec, DirectMap) else trivial(spec, score),
        trivial(SIGNED, Score(kind="max")),
    )
    logging.getLogger(__name__).info("image AUROC, tiny defects too: %s", found)
    return found


def _image_auroc(images: Category, maps: Callable[[Pixels], Numbers], score: Score) -> float:
    """By maps [N, h, w] of an image. The threshold of areas comes from good images to fit on."""
    threshold = None
    if score.kind == "area":
        threshold = float(np.quantile([maps(image) for image in images.fit[::4]], score.map_quantile))
    scores = [view_score(maps(image), score, threshold).score for image in (*images.good, *images.bad)]
    return float(roc_auc_score([0] * len(images.good) + [1] * len(images.bad), scores))


def _read(path: Path) -> Pixels:
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert image is not None, path
    return np.asarray(image, np.uint8)
