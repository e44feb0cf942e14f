"""A recipe worked out: what is judged, and what a recipe may not ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest

from edge.archive import write_pictures
from edge.errors import RecipeError
from edge.plan import plan_line
from edge.recipes import load_recipe
from engines.architecture import MaeArchitecture
from engines.bundle import DirectMap, Manifest, write_bundle
from tests.support import marker_recipe

MAP_PLANE = 2.5


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


@pytest.mark.parametrize("channels", [1, 3])
def test_a_slot_has_room_for_the_map_that_a_network_draws_and_pictures_do_without_it(
    tmp_path: Path, channels: Literal[1, 3]
) -> None:
    manifest = Manifest(
        name="draws",
        architecture=MaeArchitecture(channels=channels),
        error_map=DirectMap(largest=2 * MAP_PLANE),
        licence="none",
        files={"network.onnx": "0" * 64},
    )
    write_bundle(tmp_path / "draws", manifest, {"network.onnx": b"graph"})
    path = marker_recipe(tmp_path)
    path.write_text(path.read_text().replace('"marker"\nframe', f'"{tmp_path}/draws"\nframe'))
    plan = plan_line(load_recipe(path)).stations["s0"]
    shapes = {a.name: a.shape for a in plan.layout.arrays}
    assert shapes["tiles"] == (1, 224, 224, channels)
    assert shapes["reconstruction"] == (1, 224, 224, channels + 1)
    assert shapes["map"] == (1, 224, 224)

    arrays = {a.name: np.zeros(a.shape, a.dtype) for a in plan.layout.arrays}
    arrays["reconstruction"][..., :channels] = 0.5
    arrays["reconstruction"][..., channels] = arrays["map"][...] = MAP_PLANE
    write_pictures(tmp_path / "pictures", arrays, plan)
    repainted, shown = (cv2.imread(str(tmp_path / f"pictures/{n}.png"), -1) for n in ("reconstruction", "map"))
    assert repainted is not None
    assert shown is not None
    assert set(np.unique(repainted)) == {128}
    assert np.ptp(shown) == 0
    assert shown.max() == 65535 // 2
