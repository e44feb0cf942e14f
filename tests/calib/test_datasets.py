"""Folders in MVTec-AD's layout: found as they are, and what is missing is named."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from calib.datasets import find_categories, load_mask
from edge.errors import SourceError


def image(path: Path, size: tuple[int, int] = (40, 60), value: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full(size, value, np.uint8))
    return path


@pytest.fixture
def tile(tmp_path: Path) -> Path:
    """A category with two kinds of defects, one image of which has no mask."""
    folder = tmp_path / "data" / "tile"
    for name in ("train/good/b.png", "train/good/a.jpg", "test/good/0.png", "test/hole/0.png", "test/crack_tiny/7.jpg"):
        image(folder / name)
    mask = np.zeros((40, 60), np.uint8)
    mask[3:6, 10:20] = 255
    (folder / "ground_truth/hole").mkdir(parents=True)
    cv2.imwrite(str(folder / "ground_truth/hole/0_mask.png"), mask)
    return folder


def test_a_category_is_read_as_it_lies(tile: Path) -> None:
    (found,) = find_categories([tile])
    assert found.name == "tile"
    assert [path.name for path in found.train] == ["a.jpg", "b.png"]
    assert [(i.name, i.defect) for i in found.test] == [
        ("good/0.png", ""),
        ("crack_tiny/7.jpg", "crack_tiny"),
        ("hole/0.png", "hole"),
    ]
    good, crack, hole = (load_mask(i, (40, 60)) for i in found.test)
    assert good is not None
    assert not good.any()
    assert crack is None
    assert hole is not None
    assert hole.sum() == 30
    assert hole[3, 10]


def test_folders_of_categories_may_be_named_together(tile: Path) -> None:
    image(tile.parent / "readme" / "picture.png")
    for name in ("train/good/a.png", "test/good/a.png", "test/cut/a.png"):
        image(tile.parent.parent / "more" / "cloth" / name)
    assert [c.name for c in find_categories([tile.parent])] == ["tile"]
    assert [c.name for c in find_categories([tile, tile.parent.parent / "more"])] == ["tile", "cloth"]
    with pytest.raises(SourceError, match="another category 'tile'"):
        find_categories([tile, tile.parent])


@pytest.mark.parametrize("gone", ["train/good", "test/good"])
def test_a_missing_folder_is_named(tile: Path, gone: str) -> None:
    (tile / gone).rename(tile / "elsewhere")
    with pytest.raises(SourceError, match=rf"tile/{gone}: no such folder.*'tile' needs good parts"):
        find_categories([tile])


def test_what_is_no_category_is_said(tile: Path) -> None:
    with pytest.raises(SourceError, match="nowhere: there is no such folder"):
        find_categories([tile / "nowhere"])
    with pytest.raises(SourceError, match=r"no category in MVTec-AD's layout: expected train/good and test/good"):
        find_categories([tile / "train" / "good"])
    for kind in ("hole", "crack_tiny"):
        (tile / "test" / kind).rename(tile / kind)
    with pytest.raises(SourceError, match="no folder of defective images"):
        find_categories([tile])


def test_a_mask_of_another_size_is_refused(tile: Path) -> None:
    hole = find_categories([tile])[0].test[2]
    with pytest.raises(SourceError, match=r"0_mask\.png: 60 x 40 px, but its image has 60 x 41"):
        load_mask(hole, (41, 60))
