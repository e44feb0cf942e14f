"""Folders of test images in MVTec-AD's layout: good parts to learn from, good and defective ones to be measured on.

    CATEGORY/train/good/*                       good parts, for fitting and calibration
    CATEGORY/test/good/*                        good parts to be measured on
    CATEGORY/test/DEFECT/NAME.png               defective ones, a folder per kind
    CATEGORY/ground_truth/DEFECT/NAME_mask.png  what is defective there, nonzero

An image without a mask counts in the figures of images, and in none of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calib.pixels import Mask
from edge.errors import SourceError
from edge.sources.folder import list_images, load_image

__all__ = ["Category", "TestImage", "find_categories", "load_mask"]

GOOD = "good"


@dataclass(frozen=True)
class TestImage:
    """One image whose truth is known."""

    __test__ = False  # pytest takes what is called Test... for tests

    path: Path
    defect: str
    """The folder's name; empty for good parts."""
    mask: Path | None
    """Of a defective image, if there is one."""

    @property
    def name(self) -> str:
        """Folder and file, as it is called in details and errors."""
        return f"{self.path.parent.name}/{self.path.name}"


@dataclass(frozen=True)
class Category:
    """One product."""

    name: str
    train: tuple[Path, ...]
    """Good parts, sorted by name."""
    test: tuple[TestImage, ...]
    """Good ones first, then kind by kind."""


def find_categories(folders: Sequence[Path]) -> list[Category]:
    """The categories in `folders`, each of which is a category or a folder of categories.

    Raises SourceError that names the folder, what was expected in it, and categories that are named twice.
    """
    found: dict[str, Category] = {}
    for folder in folders:
        for path in _category_folders(folder):
            category = _read_category(path)
            if category.name in found:
                raise SourceError(f"{path}: there is another category {category.name!r}: rename one of the folders")
            found[category.name] = category
    return list(found.values())


def _category_folders(folder: Path) -> list[Path]:
    folder = folder.resolve()
    if not folder.is_dir():
        raise SourceError(f"--data {folder}: there is no such folder; name a category in MVTec-AD's layout")
    if (folder / "train").is_dir() or (folder / "test").is_dir():
        return [folder]
    inside = sorted(path for path in folder.iterdir() if (path / "train").is_dir())
    if not inside:
        raise SourceError(
            f"--data {folder}: no category in MVTec-AD's layout: expected train/{GOOD} and test/{GOOD} in it, or in "
            "folders in it"
        )
    return inside


def _read_category(folder: Path) -> Category:
    train, good = folder / "train" / GOOD, folder / "test" / GOOD
    for needed in (train, good):
        if not needed.is_dir():
            raise SourceError(f"{needed}: no such folder, and category {folder.name!r} needs good parts there")
    test = [TestImage(path, "", None) for path in list_images(good)]
    for kind in sorted(path for path in good.parent.iterdir() if path.is_dir() and path != good):
        test += [TestImage(path, kind.name, _mask_of(path, folder)) for path in list_images(kind)]
    if not any(image.defect for image in test):
        raise SourceError(f"{good.parent}: no folder of defective images beside {GOOD!r}: there is nothing to find")
    return Category(folder.name, tuple(list_images(train)), tuple(test))


def _mask_of(path: Path, category: Path) -> Path | None:
    mask = category / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
    return mask if mask.is_file() else None


def load_mask(image: TestImage, size: tuple[int, int]) -> Mask | None:
    """What is defective in an image of `size` (height, width): bool [H, W]; nothing in a good one, None where unknown.

    Raises SourceError for a mask that cannot be read or has another size than its image.
    """
    if not image.defect:
        return np.zeros(size, bool)
    if image.mask is None:
        return None
    mask: Mask = (load_image(image.mask) != 0).any(axis=2)
    if mask.shape != size:
        raise SourceError(
            f"{image.mask}: {mask.shape[1]} x {mask.shape[0]} px, but its image has {size[1]} x {size[0]}; a mask must "
            "have its image's size"
        )
    return mask
