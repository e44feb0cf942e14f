"""Surfaces to fit on, good and defective, and the real images that MASKLINE_TEST_DATA names."""

from __future__ import annotations

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
from engines.bundle import SmoothedMap

__all__ = ["Category", "beside_the_mean_image", "crops", "photograph", "real_images", "stripes", "with_defect"]

Pixels = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.floating]


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


def real_images(category: str) -> Category:
    """A category in the folder that MASKLINE_TEST_DATA names; skips the test where it is not set."""
    root = os.environ.get("MASKLINE_TEST_DATA")
    if not root:
        pytest.skip(f"MASKLINE_TEST_DATA is not set: no real images with defects (it names a folder with {category})")
    folder = Path(root) / category
    defective = (path for path in folder.glob("test/*/*") if path.parent.name != "good")
    return Category(
        *([_read(p) for p in sorted(x)] for x in (folder.glob("train/good/*"), folder.glob("test/good/*"), defective))
    )


def beside_the_mean_image(images: Category, px: int, judge: Callable[[Pixels], Numbers]) -> tuple[float, float]:
    """AUROC over images of `judge`, which scores tiles [N, px, px, 1], and of the trivial detector: the smoothed
    distance to the mean of the good images. An image scores as the worst of the whole tiles in it."""
    mean = (np.mean(images.fit, 0) / 255).astype(np.float32)[None, ..., None]
    ours, trivial = [], []
    for image in (*images.good, *images.bad):
        rows, columns = (n // px for n in image.shape)
        whole = image[: rows * px, : columns * px]
        tiles = whole.reshape(rows, px, columns, px).swapaxes(1, 2).reshape(-1, px, px, 1)
        ours.append(float(judge(tiles).max()))
        trivial.append(float(error_map(image[None, ..., None], mean, SmoothedMap()).max()))
    truth = [0] * len(images.good) + [1] * len(images.bad)
    return float(roc_auc_score(truth, ours)), float(roc_auc_score(truth, trivial))


def _read(path: Path) -> Pixels:
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert image is not None, path
    return np.asarray(image, np.uint8)
