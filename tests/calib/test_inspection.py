"""Pictures of any size go the way of the line, and what was added to them is not judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from category_helpers import BlurBackend, recipe, spoiled, texture, write_null_bundle

from calib.calibration import StationCalibration
from calib.inspection import Inspector
from calib.run import calibrate
from edge.anomaly import error_map
from edge.errors import BundleError, CalibrationError, RecipeError, SourceError
from edge.scores import view_score
from edge.tiling import cut, grid
from engines.bundle import Score, SmoothedMap, load_bundle


@pytest.fixture(autouse=True)
def _blurring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.backends.null.NullBackend", BlurBackend)


def picture(path: Path, image: Any) -> Path:
    cv2.imwrite(str(path), image)
    return path


def good_pictures(folder: Path, sizes: tuple[tuple[int, int], ...] = ((64, 64), (40, 90), (20, 25))) -> list[Path]:
    return [picture(folder / f"good{k}.png", texture(k, sizes[k % len(sizes)])) for k in range(20)]


def inspector(folder: Path, *, plan: str = "x1", tiling: str = "", **bundle: Any) -> Inspector:
    line = recipe(folder, bundle=write_null_bundle(folder / "blur", **bundle), plan=plan, tiling=tiling)
    return Inspector(line.stations[0], load_bundle(folder / "blur"), line.engine)


def test_a_picture_is_scored_as_its_tiles_are(tmp_path: Path) -> None:
    found = inspector(tmp_path, tiling="overlap_px = 4")
    limits = found.calibrate(good_pictures(tmp_path))
    image, _ = spoiled(1, (70, 50))
    inspected = found.inspect(picture(tmp_path / "bad.png", image), limits)
    tiling = grid(70, 50, 32, 4)
    tiles = cut(image[..., None], tiling, np.empty((tiling.count, 32, 32, 1), np.uint8))
    repainted = np.empty(tiles.shape, np.float32)
    BlurBackend().infer(tiles, repainted)
    maps = error_map(tiles, repainted, SmoothedMap(norm="signed", sigma_px=1.5))
    assert inspected.score == view_score(maps, Score(kind="max")).score
    fused = np.zeros((70, 50), np.float32)
    for tile, box in zip(maps, tiling.boxes, strict=True):
        fused[box.rows, box.columns] = np.maximum(fused[box.rows, box.columns], tile)
    assert np.array_equal(inspected.anomaly_map, fused)


@pytest.mark.parametrize("tiling", ["", "resize = 0.5", "resize = 1.7, overlap_px = 8"])
@pytest.mark.parametrize("size", [(32, 32), (100, 41), (20, 90), (17, 12)])
def test_a_defect_is_found_where_it_is(tmp_path: Path, tiling: str, size: tuple[int, int]) -> None:
    found = inspector(tmp_path, tiling=tiling)
    limits = found.calibrate(good_pictures(tmp_path))
    image, mask = spoiled(3, size)
    bad = found.inspect(picture(tmp_path / "bad.png", image), limits)
    assert not bad.passed
    assert bad.anomaly_map.shape == size
    assert cv2.dilate(mask.astype(np.uint8), np.ones((3, 3)))[np.unravel_index(bad.anomaly_map.argmax(), size)]
    assert found.inspect(picture(tmp_path / "good.png", texture(99, size)), limits).passed
    assert bad.ms_per_tile > 0


def test_what_was_added_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = inspector(tmp_path, score=Score(kind="area"), error_map=SmoothedMap(norm="l1", sigma_px=0.5))
    limits = found.calibrate(good_pictures(tmp_path))
    monkeypatch.setattr(BlurBackend, "infer", lambda self, tiles, out: out.fill(0))  # all is wrong everywhere
    small = found.inspect(picture(tmp_path / "small.png", texture(1, (20, 25))), limits)
    assert small.score == 20 * 25
    assert (small.anomaly_map > 0).all()


def test_areas_are_joined_where_the_recipe_says_how_small_a_defect_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line and pictures are calibrated and judged by whole areas: here each tile has half of one at either side."""

    def halves(backend: BlurBackend, tiles: np.ndarray, out: np.ndarray) -> None:
        np.multiply(tiles, np.float32(1 / 255), out=out)
        out[:, 10:14, :3] += 0.5
        out[:, 10:14, -3:] += 0.5

    monkeypatch.setattr(BlurBackend, "infer", halves)
    score, error = Score(kind="area", map_quantile=0.98), SmoothedMap(norm="l1", sigma_px=0.5)
    line = recipe(tmp_path, bundle=write_null_bundle(tmp_path / "halves", score=score, error_map=error))
    (tmp_path / "good").mkdir()
    good = good_pictures(tmp_path / "good", ((64, 64),))

    def largest(**fields: float) -> list[float]:
        changed = line.model_copy(update={"stations": (line.stations[0].model_copy(update=fields),)})
        pictures = Inspector(changed.stations[0], load_bundle(tmp_path / "halves"), line.engine)
        limits = pictures.calibrate(good)
        of_line = calibrate(changed, tmp_path / "good").stations["cam"]
        return [*(x.score_quantiles["max"] for x in (limits, of_line)), pictures.inspect(good[0], limits).score]

    alone = largest()
    assert len(set(alone)) == 1
    assert largest(scale_mm_per_px=1.0, smallest_defect_mm2=5.0) == [2 * a for a in alone]


def test_a_margin_is_that_of_the_picture(tmp_path: Path) -> None:
    found = inspector(tmp_path, tiling="margin_px = 6")
    limits = found.calibrate(good_pictures(tmp_path))
    inside = found.inspect(picture(tmp_path / "small.png", texture(1, (20, 25))), limits).anomaly_map
    assert (inside[6:-6, 6:-6] > 0).all()
    assert np.count_nonzero(inside) == 8 * 13


def test_a_bundle_without_the_mask_plan_is_served_with_its_first(tmp_path: Path) -> None:
    good = good_pictures(tmp_path)
    assert inspector(tmp_path, plan="cascade").calibrate(good).provenance.plan == "x1"
    assert inspector(tmp_path, plan="x4", plans=("x1", "x4")).calibrate(good).provenance.plan == "x4"
    cascade = inspector(tmp_path, plan="cascade", plans=("x1", "x32")).calibrate(good)
    assert cascade.provenance.plan == "cascade"
    assert cascade.cascade_band == (0, 0)


def test_a_black_picture_does_not_pass(tmp_path: Path) -> None:
    found = inspector(tmp_path)
    limits = found.calibrate(good_pictures(tmp_path))
    black = found.inspect(picture(tmp_path / "black.png", np.zeros((64, 64), np.uint8)), limits)
    assert black.score < limits.score_threshold
    assert not black.passed


def test_colour_and_deep_pictures_are_seen_as_the_bundle_sees_them(tmp_path: Path) -> None:
    found = inspector(tmp_path)
    limits = found.calibrate(good_pictures(tmp_path))
    image, _ = spoiled(5)
    grey = found.inspect(picture(tmp_path / "grey.png", image), limits)
    colour = found.inspect(picture(tmp_path / "colour.png", np.repeat(image[..., None], 3, 2)), limits)
    deep = found.inspect(picture(tmp_path / "deep.png", image.astype(np.uint16) * 257), limits)
    assert grey.score == colour.score == deep.score


def test_what_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = good_pictures(tmp_path)
    found = inspector(tmp_path)
    limits: StationCalibration = found.calibrate(good)
    with pytest.raises(CalibrationError, match="8 good parts"):
        found.calibrate(good[:8])
    flat = picture(tmp_path / "flat.png", np.full((64, 64), 90, np.uint8))
    with pytest.raises(CalibrationError, match=r"flat\.png: all of one grey"):
        found.calibrate([*good, flat])
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(SourceError, match=r"broken\.png"):
        found.inspect(broken, limits)
    elsewhere = inspector(tmp_path, tiling="region = { x_px = 0, y_px = 0, width_px = 50, height_px = 50 }")
    with pytest.raises(RecipeError, match=r"good1\.png: region of interest 50x50 px .*does not lie inside"):
        elsewhere.inspect(good[1], limits)
    monkeypatch.setattr(BlurBackend, "infer", lambda self, tiles, out: out.fill(np.nan))
    with pytest.raises(BundleError, match=r"blur: what it answers to .*good0\.png is not finite; fit it again"):
        found.inspect(good[0], limits)
    with pytest.raises(CalibrationError, match=r"blur: .*NaN or infinity; fit it again"):
        found.calibrate(good)


def test_thresholds_of_another_bundle_do_not_hold(tmp_path: Path) -> None:
    found = inspector(tmp_path)
    good = good_pictures(tmp_path)
    limits = found.calibrate(good)
    elsewhere = limits.provenance.model_copy(update={"bundle_sha256": "0" * 64})
    assert found.inspect(good[0], limits).passed
    assert not found.inspect(good[0], limits.model_copy(update={"provenance": elsewhere})).passed
