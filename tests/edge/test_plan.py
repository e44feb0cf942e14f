"""A recipe worked out: what is judged, and what a recipe may not ask for."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.errors import RecipeError
from edge.plan import plan_line
from edge.recipes import load_recipe
from tests.support import marker_recipe


def ignored(tmp_path: Path, tiling: str) -> np.ndarray | None:
    path = marker_recipe(tmp_path)
    text = path.read_text().replace(
        "frame = { width_px = 224, height_px = 224 }", "frame = { width_px = 300, height_px = 260 }"
    )
    path.write_text(text.replace("[stations.source]", f"tiling = {{ {tiling} }}\n[stations.source]"))
    return plan_line(load_recipe(path)).stations["s0"].prepare.ignore_tiles


def test_everything_is_judged_unless_said_otherwise(tmp_path: Path) -> None:
    assert ignored(tmp_path, "overlap_px = 8") is None


def test_the_margin_is_seen_and_not_judged(tmp_path: Path) -> None:
    tiles = ignored(tmp_path, "margin_px = 28, region = { x_px = 10, y_px = 20, width_px = 224, height_px = 224 }")
    assert tiles is not None
    expected = np.ones((224, 224), bool)
    expected[28:-28, 28:-28] = False
    assert np.array_equal(tiles[0], expected)


def test_margin_and_mask_add_up(tmp_path: Path) -> None:
    mask = np.zeros((260, 300), np.uint8)
    mask[100:120, 100:120] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    region = "region = { x_px = 0, y_px = 0, width_px = 224, height_px = 224 }"
    tiles = ignored(tmp_path, f'margin_px = 28, ignore_mask = "mask.png", {region}')
    assert tiles is not None
    assert tiles[0, 100:120, 100:120].all()
    assert tiles[0, :28].all()
    assert not tiles[0, 130:190, 130:190].any()


def test_a_margin_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"station s0: tiling.margin_px = 130: leaves nothing of a region of 300 x 260 px"
    ):
        ignored(tmp_path, "margin_px = 130")
